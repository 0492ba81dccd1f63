"""Qwen2-VL and Qwen2.5-VL: dynamic resolution, two frames per time step, merged patches, 3-D positions in the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from pave.video_llms.interface import VideoLayout, VideoLLMInterface


class Qwen2VLInterface(VideoLLMInterface):
    model_types = ("qwen2_vl", "qwen2_5_vl")
    frames_per_step = 2

    def pre_projector_width(self, config: Any) -> int:
        vision = config.vision_config
        return int(vision.embed_dim if config.model_type == "qwen2_vl" else vision.hidden_size)

    def layouts(self, config: Any, arguments: Mapping[str, Any]) -> list[VideoLayout]:
        merge = config.vision_config.spatial_merge_size
        grids = arguments["video_grid_thw"].tolist()
        return [VideoLayout(steps=t, grid=(h // merge, w // merge)) for t, h, w in grids]

    def projector(self, inner: Any) -> nn.Module:
        module: nn.Module = inner.visual.merger
        return module

    def pre_projector(
        self, inner: Any, captured: Tensor, layouts: Sequence[VideoLayout], arguments: Mapping[str, Any]
    ) -> list[Tensor]:
        """The mean over the patches that the merger joins into one token."""
        vision = inner.config.vision_config
        merged = captured.reshape(-1, vision.spatial_merge_size**2, captured.shape[-1]).mean(dim=1)
        if inner.config.model_type == "qwen2_5_vl":  # the tower works in window order
            from transformers.vision_utils import get_vision_window_index

            window_index, _ = get_vision_window_index(
                arguments["video_grid_thw"], vision.spatial_merge_size, vision.window_size, vision.patch_size
            )
            merged = merged[torch.argsort(window_index).to(merged.device)]
        return list(merged.split([layout.num_tokens for layout in layouts]))

    def position_ids(self, config: Any, batch: Mapping[str, Tensor]) -> Tensor | None:
        """3-D rotary positions of a prompt, (3, B, L): time, row, column; text goes on after the largest of the three.

        transformers 5.23 lets the text after a video go on after its rows and columns alone, so that text behind a video
        longer than it is wide overlaps it in time. The rule here is the one of the released models (and of other
        engines); the two agree wherever no video is longer than wide.
        """
        grids = {1: batch.get("image_grid_thw"), 2: batch.get("video_grid_thw")}
        types = batch.get("mm_token_type_ids")
        if types is None or (grids[1] is None and grids[2] is None):
            return None
        vision = config.vision_config
        rate = getattr(vision, "tokens_per_second", None) if config.model_type == "qwen2_5_vl" else None
        seconds = batch.get("second_per_grid_ts")
        iterators = {kind: iter(grid.tolist()) if grid is not None else iter(()) for kind, grid in grids.items()}
        intervals = iter(torch.as_tensor(seconds).tolist()) if seconds is not None else None
        mask = batch.get("attention_mask")
        positions = torch.zeros(3, *types.shape, dtype=torch.long)
        for row, kinds in enumerate(types.tolist()):
            kept = list(range(len(kinds))) if mask is None else mask[row].nonzero().flatten().tolist()
            parts: list[Tensor] = []
            start = 0
            for kind, group in groupby(kinds[i] for i in kept):
                length = len(list(group))
                if kind == 0:
                    parts.append(torch.arange(length).expand(3, -1) + start)
                    start += length
                    continue
                taken = 0
                while taken < length:  # several videos may follow each other directly
                    grid = next(iterators[kind], None)
                    if grid is None:
                        raise ValueError(f"prompt {row}: more vision placeholders than the grids describe")
                    t, h, w = grid
                    step = rate * (next(intervals) if intervals else 1.0) if kind == 2 and rate else 1.0
                    part = _vision_positions(t, h // vision.spatial_merge_size, w // vision.spatial_merge_size, step) + start
                    parts.append(part)
                    taken += part.shape[1]
                    start = int(part.max()) + 1
                if taken != length:
                    raise ValueError(f"prompt {row}: {length} vision placeholders, but the grids describe {taken} tokens")
            positions[:, row, kept] = torch.cat(parts, dim=1)
        return positions.to(types.device)


def _vision_positions(t: int, h: int, w: int, step: float) -> Tensor:
    """(3, t*h*w) from zero; the time of a step is truncated to an integer after scaling."""
    time = (torch.arange(t) * step).long()
    return torch.stack(torch.meshgrid(time, torch.arange(h), torch.arange(w), indexing="ij")).reshape(3, -1)
