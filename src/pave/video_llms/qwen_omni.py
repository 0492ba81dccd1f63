"""The thinkers of Qwen2.5-Omni and Qwen3-Omni: what sees and writes text; the talker stays out of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pave.video_llms.interface import ATTENTION_LINEARS, GridInterface


class Qwen2_5OmniInterface(GridInterface):
    model_types = ("qwen2_5_omni_thinker",)
    frames_per_step = 2
    windowed = True

    def timing_inputs(self, config: Any, batch: Mapping[str, Any], frame_times_BF: Tensor) -> dict[str, Any]:
        """The true seconds per step: the processor writes those of two frames a second, whatever the frames' times are."""
        counts = torch.isfinite(frame_times_BF).sum(dim=1)
        last = frame_times_BF.gather(1, (counts - 1)[:, None])[:, 0]
        gap = (last - frame_times_BF[:, 0]) / (counts - 1).clamp(min=1)
        return {"video_second_per_grid": (torch.where(counts > 1, gap, 1.0) * self.frames_per_step).float()}


class Qwen3OmniInterface(Qwen2_5OmniInterface):
    model_types = ("qwen3_omni_moe_thinker",)
    windowed = False

    def decoder_linears(self, config: Any) -> tuple[str, ...]:
        return ATTENTION_LINEARS
