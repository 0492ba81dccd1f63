"""3-D rotary positions (time, row, column) for queries and keys; values are never rotated.

The paper's option (arXiv 2503.19794; off in its 7B recipes): multimodal rotary embedding with base 10000 and rotate-half.
At head width 128 the 64 frequencies are split into sections [16, 24, 24] for time, row and column, and the split is
repeated for the second half of the channels: t16 h24 w24 t16 h24 w24. Other head widths, all multiples of 8, get
proportional sections: rows and columns ``3 * H // 16`` frequencies each, time the rest.

Positions under index alignment reproduce the released code, quirks included: query times and grid coordinates are taken
from an evenly spaced row of float32 numbers truncated to integers, so they are not centred on what they stand for.
Positions under timestamps alignment are seconds in units of the video's mean frame gap (1 s for a single frame), not
truncated; grid coordinates are as under index alignment. Only differences of positions matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor

from pave.fusion.temporal_alignment import Alignment, Windows, frame_rank

BASE = 10000.0


@dataclass(frozen=True)
class Rotation:
    """Cosine and sine of one stream's tokens, each (B, steps, tokens per step, H), float32."""

    cos: Tensor
    sin: Tensor

    def apply(self, tokens_BTSD: Tensor) -> Tensor:
        """Rotate (B, steps, tokens, N * H); dtype is kept."""
        H = self.cos.shape[-1]
        x = tokens_BTSD.unflatten(-1, (-1, H))
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
        rotated = x * self.cos[..., None, :] + turned * self.sin[..., None, :]
        return rotated.flatten(-2).to(tokens_BTSD.dtype)


def sections(head_width: int) -> tuple[int, int, int]:
    """How many of the H / 2 frequencies turn with time, row and column: (16, 24, 24) at H = 128."""
    if head_width % 8:
        raise ValueError(f"rope needs a head width that is a multiple of 8, got {head_width}")
    spatial = 3 * head_width // 16
    return head_width // 2 - 2 * spatial, spatial, spatial


def rotation(time_BT: Tensor, row_S: Tensor, column_S: Tensor, head_width: int) -> Rotation:
    """Angles of tokens at times (B, T) and at rows and columns (S,) that all steps share."""
    device = time_BT.device
    frequency = 1.0 / BASE ** (torch.arange(0, head_width, 2, device=device).float() / head_width)
    (B, T), S = time_BT.shape, len(row_S)
    axes = (
        time_BT.float()[:, :, None].expand(B, T, S),
        row_S.to(device).float().expand(B, T, S),
        column_S.to(device).float().expand(B, T, S),
    )
    parts = frequency.split(sections(head_width))
    half = torch.cat([axis[..., None] * part for axis, part in zip(axes, parts, strict=True)], dim=-1)
    angle = torch.cat([half, half], dim=-1)
    return Rotation(angle.cos(), angle.sin())


def truncated_linspace(last: Tensor, count: Tensor, index: Tensor) -> Tensor:
    """``linspace(0, last, count)`` in float32, cut to integers, at places ``index``; all broadcast, int64.

    Where the exact number is an integer, float32 rounding can land just below it and the cut gives one less. This is the
    arithmetic of ``torch.linspace`` on CUDA; its vectorised CPU form differs in the last bit in rare cases.
    """
    step = (last.float() / (count - 1).clamp(min=1).float()).double()
    from_start = (step * index).float()
    from_end = (last.double() - step * (count - 1 - index)).float()
    value = torch.where(index < count // 2, from_start, from_end)
    return torch.where(count > 1, value, 0.0).long()


def grid_positions(cells: int, side: int) -> Tensor:
    """Coordinates of ``cells`` cells along an axis of length ``side``: the odd places of linspace(0, side, 2 * cells + 1).

    2 in 14 gives 3, 10; 14 in 14 gives 0..13.
    """
    odd = torch.arange(1, 2 * cells, 2)
    return truncated_linspace(torch.tensor(side), torch.tensor(2 * cells + 1), odd)


def square_grid(tokens: int, what: str) -> tuple[int, int]:
    """(side, side) for a square number of tokens.

    Raises:
        ValueError: if the tokens form no square, as their rows and columns would then be a guess.
    """
    side = isqrt(tokens)
    if side * side != tokens:
        raise ValueError(
            f"rope: {tokens} {what} form no square grid, so their rows and columns are unknown; "
            "use a square number of tokens, or a patch without rope"
        )
    return side, side


def flat_grid(grid: tuple[int, int], side: int) -> tuple[Tensor, Tensor]:
    """Row and column of each token of a grid, row by row, spread over a square of ``side`` x ``side``."""
    rows, columns = grid
    return (
        grid_positions(rows, side).repeat_interleave(columns),
        grid_positions(columns, side).repeat(rows),
    )


def index_times(frame_valid_BT: Tensor, side_valid_BK: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
    """Times of frames (B, T) and of the stream ``cat([K side steps, T resampled steps])`` under index alignment.

    The unit is one step of the longer of the two streams: keys are at 0, 1, ..., queries are spread over the same range.
    """
    B, T = frame_valid_BT.shape
    frames_B1 = frame_valid_BT.sum(dim=1, keepdim=True)
    longer_B1 = torch.maximum(frames_B1, side_valid_BK.sum(dim=1, keepdim=True))
    frame_BT = truncated_linspace((longer_B1 - 1).clamp(min=0), frames_B1, frame_rank(frame_valid_BT))
    step_BK = windows.order_BK.argsort(dim=1)
    if windows.resampled is None:
        return frame_BT, step_BK
    return frame_BT, torch.cat([step_BK, torch.arange(T, device=step_BK.device).expand(B, T)], dim=1)


def second_times(
    frame_valid_BT: Tensor, frame_times_BT: Tensor, side_valid_BK: Tensor, side_times_BK: Tensor, windows: Windows
) -> tuple[Tensor, Tensor]:
    """As :func:`index_times`, under timestamps alignment: from the first frame, in units of the mean frame gap."""
    first_B1 = torch.where(frame_valid_BT, frame_times_BT, torch.inf).amin(dim=1, keepdim=True)
    final_B1 = torch.where(frame_valid_BT, frame_times_BT, -torch.inf).amax(dim=1, keepdim=True)
    sorted_BT = torch.where(frame_valid_BT, frame_times_BT, torch.inf).sort(dim=1).values
    gaps_B1 = (sorted_BT.diff(dim=1) > 0).logical_and(sorted_BT[:, 1:].isfinite()).sum(dim=1, keepdim=True)
    gap_B1 = torch.where(gaps_B1 > 0, (final_B1 - first_B1) / gaps_B1, 1.0)
    frame_BT = torch.where(frame_valid_BT, (frame_times_BT - first_B1) / gap_B1, 0.0)
    step_BK = torch.where(side_valid_BK, (side_times_BK - first_B1) / gap_B1, 0.0)
    if windows.resampled is None:
        return frame_BT, step_BK
    return frame_BT, torch.cat([step_BK, frame_BT], dim=1)


def rotations(
    alignment: Alignment,
    head_width: int,
    windows: Windows,
    frames: tuple[Tensor, Tensor | None],
    side: tuple[Tensor, Tensor | None],
    query_grid: tuple[int, int],
    key_grid: tuple[int, int],
) -> tuple[Rotation, Rotation]:
    """The rotations of queries (B, T, S, H) and of keys (B, R, M, H).

    Args:
        alignment: decides the positions in time, and the square on which both grids lie. Under "index" its side is
            ``isqrt(max(S, M))`` as in the released code. Under "timestamps" it is the longest side of the two grids, which
            is the same for square grids.
        head_width: H.
        windows: what the alignment gave.
        frames: validity (B, T) and times.
        side: validity (B, K) and times.
        query_grid: rows and columns of the S tokens of a frame.
        key_grid: rows and columns of the M tokens of a side step.
    """
    if alignment == "index":
        extent = isqrt(max(query_grid[0] * query_grid[1], key_grid[0] * key_grid[1]))
        query_time, key_time = index_times(frames[0], side[0], windows)
    else:
        assert frames[1] is not None and side[1] is not None
        extent = max(*query_grid, *key_grid)
        query_time, key_time = second_times(frames[0], frames[1], side[0], side[1], windows)
    return (
        rotation(query_time, *flat_grid(query_grid, extent), head_width),
        rotation(key_time, *flat_grid(key_grid, extent), head_width),
    )
