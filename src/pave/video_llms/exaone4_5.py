"""EXAONE 4.5: the grids and the windowed vision tower of Qwen2.5-VL before a language model with one-dimensional positions."""

from __future__ import annotations

from pave.video_llms.interface import GridInterface


class Exaone4_5Interface(GridInterface):
    model_types = ("exaone4_5",)
    frames_per_step = 2
    windowed = True
