"""VideoLLaMA 3: one step per frame with its time written before it; tokens that hardly change from frame to frame may be dropped.

Dropping (``video_compression_mask``) comes after fusion, so side channels meet all tokens, and those that are kept carry the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pave.video_llms.interface import GridInterface, VideoLayout


class VideoLlama3Interface(GridInterface):
    model_types = ("video_llama_3",)
    projector_path = "projector"  # its input is pooled already

    def layouts(
        self, config: Any, arguments: Mapping[str, Any], frame_counts: Sequence[int] | None = None
    ) -> list[VideoLayout]:
        grids, merges = arguments["video_grid_thw"].tolist(), arguments["video_merge_sizes"].tolist()
        return [VideoLayout(steps=t, grid=(h // m, w // m)) for (t, h, w), m in zip(grids, merges, strict=True)]

    def tokens_in_prompt(self, layouts: Sequence[VideoLayout], inputs: Mapping[str, Any]) -> list[int]:
        mask: Tensor | None = inputs.get("video_compression_mask")
        counts = super().tokens_in_prompt(layouts, inputs)
        return counts if mask is None else [int(part.sum()) for part in mask.flatten().split(counts)]
