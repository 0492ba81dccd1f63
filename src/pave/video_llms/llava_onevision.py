"""LLaVA-OneVision: one time step per frame, a 2x2 bilinear pooling after the projector, one newline token per video."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pave.video_llms.interface import VideoLayout, VideoLLMInterface


class LlavaOnevisionInterface(VideoLLMInterface):
    model_types = ("llava_onevision",)
    lengthens_prompt = True
    shares_videos = True
    projector_path = "multi_modal_projector"

    def pre_projector_width(self, config: Any) -> int:
        layers = config.vision_feature_layer
        count = 1 if isinstance(layers, int) else len(layers)
        return int(config.vision_config.hidden_size) * count

    def layouts(
        self, config: Any, arguments: Mapping[str, Any], frame_counts: Sequence[int] | None = None
    ) -> list[VideoLayout]:
        videos, frames = arguments["pixel_values_videos"].shape[:2]
        side = math.ceil(config.vision_config.image_size // config.vision_config.patch_size / 2)
        return [VideoLayout(steps=frames, grid=(side, side), trailing=1)] * videos

    def pre_projector(
        self, inner: Any, captured: Tensor, layouts: Sequence[VideoLayout], arguments: Mapping[str, Any]
    ) -> list[Tensor]:
        # pooled by themselves: the projector is not linear, so projecting the pooled features would be another thing
        pooled = inner.apply_pooling(captured)
        return list(pooled.reshape(len(layouts), -1, pooled.shape[-1]))

    def newline(self, inner: Any) -> Tensor | None:
        embedding: Tensor = inner.image_newline
        return embedding
