"""3-D rotary positions (time, row, column) of prompts with videos, where the base's own are not those it was trained with.

transformers 5.23 lets the text after a video go on after its rows and columns alone. In families that put a whole video into one
run of placeholders, text behind a video longer than it is wide then overlaps it in time. The rule here is the one of the released
models (and of other engines): text goes on one after the largest position of any axis. The two agree wherever no video is longer
than wide. Families that write a timestamp before every step make a run of each step, which is never longer than wide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

IMAGE, VIDEO = 1, 2
"""Values of ``mm_token_type_ids``."""


def rotary_positions(
    batch: Mapping[str, Any], *, spatial_merge: int, temporal_merge: int = 1, seconds_per_step: float | None = None
) -> Tensor | None:
    """Positions of a prompt, (3, B, L), or None where the batch holds no picture or video.

    Args:
        batch: ``mm_token_type_ids`` (B, L), ``image_grid_thw`` and ``video_grid_thw``, ``attention_mask``, and
            ``second_per_grid_ts`` where times are scaled.
        spatial_merge: patches per token and side.
        temporal_merge: steps of ``video_grid_thw`` that become one step of tokens.
        seconds_per_step: positions per second, None where a step of time is one position.

    Raises:
        ValueError: if a prompt holds another number of placeholders than the grids describe.
    """
    grids = {IMAGE: batch.get("image_grid_thw"), VIDEO: batch.get("video_grid_thw")}
    types = batch.get("mm_token_type_ids")
    if types is None or all(grid is None for grid in grids.values()):
        return None
    seconds = batch.get("second_per_grid_ts")
    boxes = {kind: _boxes(grid, spatial_merge, temporal_merge if kind == VIDEO else 1) for kind, grid in grids.items()}
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
                box = next(boxes[kind], None)
                if box is None:
                    raise ValueError(f"prompt {row}: more vision placeholders than the grids describe")
                scaled = kind == VIDEO and seconds_per_step
                step = seconds_per_step * (next(intervals) if intervals else 1.0) if scaled else 1.0  # type: ignore[operator]
                part = _box_positions(box, step) + start
                parts.append(part)
                taken += part.shape[1]
                start = int(part.max()) + 1
            if taken != length:
                raise ValueError(f"prompt {row}: {length} vision placeholders, but the grids describe {taken} tokens")
        positions[:, row, kept] = torch.cat(parts, dim=1)
    return positions.to(types.device)


def _boxes(grid: Tensor | None, spatial: int, temporal: int) -> Iterator[Sequence[int]]:
    rows = [] if grid is None else grid.tolist()
    return iter([(t // temporal, h // spatial, w // spatial) for t, h, w in rows])


def _box_positions(box: Sequence[int], step: float) -> Tensor:
    """(3, t*h*w) from zero; the time of a step is truncated to an integer after scaling."""
    t, h, w = box
    time = (torch.arange(t) * step).long()
    return torch.stack(torch.meshgrid(time, torch.arange(h), torch.arange(w), indexing="ij")).reshape(3, -1)
