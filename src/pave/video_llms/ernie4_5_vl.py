"""ERNIE 4.5 VL: ``video_grid_thw`` counts frames, and a resampler merges two of them into a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pave.video_llms.interface import GridInterface, VideoLayout
from pave.video_llms.mrope import rotary_positions


class Ernie4_5VLInterface(GridInterface):
    model_types = ("ernie4_5_vl_moe",)
    frames_per_step = 2
    projector_path = "resampler_model"

    def layouts(
        self, config: Any, arguments: Mapping[str, Any], frame_counts: Sequence[int] | None = None
    ) -> list[VideoLayout]:
        vision = config.vision_config
        merge, frames = vision.spatial_merge_size, vision.temporal_merge_size
        grids = arguments["video_grid_thw"].tolist()
        return [VideoLayout(steps=t // frames, grid=(h // merge, w // merge)) for t, h, w in grids]

    def pre_projector(
        self, inner: Any, captured: Tensor, layouts: Sequence[VideoLayout], arguments: Mapping[str, Any]
    ) -> list[Tensor]:
        """The mean over the patches and frames that are merged into one token."""
        vision = inner.config.vision_config
        C = captured.shape[-1]
        merged = captured.reshape(-1, vision.spatial_merge_size**2, C).mean(dim=1)
        frames = vision.temporal_merge_size
        parts = merged.split([layout.num_tokens * frames for layout in layouts])
        return [
            x.view(y.steps, frames, y.tokens_per_step, C).mean(1).reshape(-1, C) for x, y in zip(parts, layouts, strict=True)
        ]

    def position_ids(self, config: Any, batch: Mapping[str, Tensor]) -> Tensor | None:
        vision = config.vision_config
        return rotary_positions(batch, spatial_merge=vision.spatial_merge_size, temporal_merge=vision.temporal_merge_size)
