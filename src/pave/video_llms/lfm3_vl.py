"""LFM3-VL: grids like Qwen3-VL's, timestamps before every step, a projector of its own."""

from __future__ import annotations

from typing import Any

from pave.video_llms.interface import ATTENTION_LINEARS, GridInterface


class Lfm3VLInterface(GridInterface):
    model_types = ("lfm3_vl",)
    frames_per_step = 2
    projector_path = "multi_modal_projector"

    def decoder_linears(self, config: Any) -> tuple[str, ...]:
        return (*ATTENTION_LINEARS, "g_proj", "w1", "w2", "w3", "in_proj", "out_proj")
