"""Qwen2-VL and Qwen2.5-VL: dynamic resolution, two frames per time step, merged patches, 3-D positions in the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pave.video_llms.interface import GridInterface
from pave.video_llms.mrope import rotary_positions


class Qwen2VLInterface(GridInterface):
    model_types = ("qwen2_vl",)
    frames_per_step = 2
    lengthens_prompt = True
    shares_videos = True
    width_field = "embed_dim"

    def position_ids(self, config: Any, batch: Mapping[str, Tensor]) -> Tensor | None:
        return rotary_positions(batch, spatial_merge=config.vision_config.spatial_merge_size)


class Qwen2_5VLInterface(GridInterface):
    model_types = ("qwen2_5_vl",)
    frames_per_step = 2
    lengthens_prompt = True
    shares_videos = True
    windowed = True

    def position_ids(self, config: Any, batch: Mapping[str, Tensor]) -> Tensor | None:
        vision = config.vision_config
        return rotary_positions(
            batch, spatial_merge=vision.spatial_merge_size, seconds_per_step=getattr(vision, "tokens_per_second", None)
        )
