"""Qwen3-VL and Qwen3.5, dense and with experts: every step has its time written before it, so a video is several runs of tokens.

The deepstack features that Qwen3-VL adds inside the language model's first layers are left as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pave.video_llms.interface import ATTENTION_LINEARS, MLP_LINEARS, GridInterface
from pave.video_llms.mrope import rotary_positions

GATED_DELTA_LINEARS = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj")
"""Of the linear-attention layers that take turns with full attention in Qwen3.5."""


class Qwen3VLInterface(GridInterface):
    model_types = ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
    frames_per_step = 2
    shares_videos = True

    def positions_of_rows(self, config: Any, batch: Mapping[str, Any]) -> Tensor | None:
        """Every step is a run of its own, and so are its positions."""
        grid = batch["video_grid_thw"].repeat_interleave(batch["video_grid_thw"][:, 0], dim=0)
        grid[:, 0] = 1
        return rotary_positions({**batch, "video_grid_thw": grid}, spatial_merge=config.vision_config.spatial_merge_size)

    def decoder_linears(self, config: Any) -> tuple[str, ...]:
        return {
            "qwen3_vl": (*ATTENTION_LINEARS, *MLP_LINEARS),
            "qwen3_vl_moe": ATTENTION_LINEARS,
            "qwen3_5": (*ATTENTION_LINEARS, *MLP_LINEARS, *GATED_DELTA_LINEARS),
            "qwen3_5_moe": (*ATTENTION_LINEARS, *MLP_LINEARS, *GATED_DELTA_LINEARS, "shared_expert_gate"),
        }[config.model_type]
