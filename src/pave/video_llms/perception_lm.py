"""PerceptionLM: one step per frame; images and videos pass through the same method, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from pave.video_llms.interface import VideoLayout, VideoLLMInterface


class PerceptionLMInterface(VideoLLMInterface):
    model_types = ("perception_lm",)
    shares_videos = True
    features_method = "get_image_features"
    projector_path = "multi_modal_projector"

    def pre_projector_width(self, config: Any) -> int:
        return int(config.vision_config.model_args["embed_dim"])

    def encoder_inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The method takes the pixels of either under one name."""
        return {**batch, "pixel_values": batch.get("pixel_values_videos")}

    def layouts(
        self, config: Any, arguments: Mapping[str, Any], frame_counts: Sequence[int] | None = None
    ) -> list[VideoLayout]:
        videos, frames = arguments["pixel_values"].shape[:2]
        rows, columns = config.vision_config.model_args["ref_feat_shape"]
        ratio = config.projector_pooling_ratio
        return [VideoLayout(steps=frames, grid=(rows // ratio, columns // ratio))] * videos

    def pre_projector(
        self, inner: Any, captured: Tensor, layouts: Sequence[VideoLayout], arguments: Mapping[str, Any]
    ) -> list[Tensor]:
        """Pooled by the mean, as the projector pools what it makes."""
        rows, columns = layouts[0].grid
        ratio = inner.config.projector_pooling_ratio
        frames_FCHW = captured.transpose(1, 2).unflatten(2, (rows * ratio, columns * ratio))
        pooled = F.avg_pool2d(frames_FCHW, ratio).flatten(2).transpose(1, 2)
        return self.split(pooled, layouts)
