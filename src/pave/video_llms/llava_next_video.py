"""LLaVA-NeXT-Video: one step per frame, pooled before the projector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pave.video_llms.interface import VideoLayout, VideoLLMInterface


class LlavaNextVideoInterface(VideoLLMInterface):
    model_types = ("llava_next_video",)
    shares_videos = True
    projector_path = "multi_modal_projector"

    def pre_projector_width(self, config: Any) -> int:
        layers = config.vision_feature_layer
        count = 1 if isinstance(layers, int) else len(layers)
        return int(config.vision_config.hidden_size) * count

    def layouts(
        self, config: Any, arguments: Mapping[str, Any], frame_counts: Sequence[int] | None = None
    ) -> list[VideoLayout]:
        videos, frames, _, height, width = arguments["pixel_values_videos"].shape
        patch, stride = config.vision_config.patch_size, config.spatial_pool_stride
        grid = (height // patch // stride, width // patch // stride)
        return [VideoLayout(steps=frames, grid=grid)] * videos

    def pre_projector(
        self, inner: Any, captured: Tensor, layouts: Sequence[VideoLayout], arguments: Mapping[str, Any]
    ) -> list[Tensor]:
        return list(captured.reshape(len(layouts), -1, captured.shape[-1]))
