"""Which side steps each video frame reads: pure functions from times to windows.

Everything is batched over ragged videos (other numbers of frames and steps, channels missing in some rows), in float64
where times are concerned, without a loop over samples. Letters are those of :mod:`pave.tokens`; R counts the *readable
steps* of a video: its K side steps, then T resampled ones where a resampling rule made any.

**timestamps.** A frame owns the half-open interval from halfway to the frame before it to halfway to the frame after it,
``[lower, upper)``. A side step belongs to the frame whose interval holds its time. The first and the last frame have one
neighbour only; their interval reaches outwards by half of the gap to it. Side steps further out belong to no frame: a
stream that starts earlier or ends later than the video is not squeezed into it. Frames need not be sorted. Frames with
equal times (a last frame repeated as padding) share one interval, measured to the nearest frames of *other* times, and
with it its steps; of other frames, no two own the same step. Where there is no frame of another time, as in a video of a
single frame, the interval has no ends: it holds every step, whatever its time.

**index.** The rule of the released implementation (arXiv 2503.19794): the steps are put in order by their times, and then
only counted. With ``a, r = divmod(K, T)`` the first r frames own a + 1 consecutive steps, the others a. A stream with
K < T is first resampled to T steps, linearly in the number of the step, first on first and last on last
(``align_corners=True``; a single step is copied).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Alignment = Literal["timestamps", "index"]
EmptyFrames = Literal["skip", "nearest", "interpolate"]


@dataclass(frozen=True)
class Resampled:
    """Steps made by linear interpolation: ``(1 - weight) * step[left] + weight * step[right]``, one for each frame."""

    left_BT: Tensor
    right_BT: Tensor
    weight_BT: Tensor


@dataclass(frozen=True)
class Windows:
    """The side steps each frame reads.

    Attributes:
        order_BK: indices of the side steps in time order; steps that are not valid come last.
        start_BT: place of the first step that a frame reads, counted in time order. Places from K on mean resampled steps.
        length_BT: how many steps it reads, in consecutive places. 0 = nothing in reach, a padded frame, or no channel.
        resampled: the resampled steps, or None where the rule needed none.
    """

    order_BK: Tensor
    start_BT: Tensor
    length_BT: Tensor
    resampled: Resampled | None = None

    def readable_BR(self) -> Tensor:
        """For each place, the index of the step in the stream ``cat([K side steps, T resampled steps])``."""
        if self.resampled is None:
            return self.order_BK
        K, (B, T) = self.order_BK.shape[1], self.start_BT.shape
        extra_T = torch.arange(K, K + T, device=self.order_BK.device)
        return torch.cat([self.order_BK, extra_T.expand(B, T)], dim=1)


def align(
    frame_valid_BT: Tensor,
    frame_times_BT: Tensor | None,
    side_valid_BK: Tensor,
    side_times_BK: Tensor | None,
    *,
    alignment: Alignment = "timestamps",
    neighbourhood_frames: int = 0,
    neighbourhood_seconds: float = 0.0,
    empty_frames: EmptyFrames = "skip",
) -> Windows:
    """Find the window of every frame by the rule ``alignment``.

    Args:
        frame_valid_BT: True where a frame is real.
        frame_times_BT: seconds; not read under "index".
        side_valid_BK: True where a side step is real; K is at least 1 (pad with an invalid step).
        side_times_BK: seconds. Under "index" they only put the steps in order, and may be None.
        neighbourhood_frames: n: a frame reads from the lower edge of the n-th frame before it to the upper edge of the
            n-th frame after it (index: the chunks of those frames). Frames of its own time are not counted, others one by one.
        neighbourhood_seconds: both edges move outwards by this much (timestamps only).
        empty_frames: what a frame with no step in reach reads (timestamps only): nothing; the nearest step; or one step interpolated
            linearly in time at the frame's time, between the step before and the step after it (outside the stream: its first or
            last step). The nearest step is the earlier of two equally near ones; among steps of one time, which keep their order
            in the stream, the step before a frame is the last and the step after it the first.

    Raises:
        ValueError: if times are missing, or the time of a valid frame is not finite.
    """
    if alignment == "index":
        return align_by_index(frame_valid_BT, side_valid_BK, side_times_BK, neighbourhood_frames=neighbourhood_frames)
    if frame_times_BT is None or side_times_BK is None:
        what = "video frame" if frame_times_BT is None else "side step"
        raise ValueError(
            f"alignment 'timestamps' needs the time of every {what}, but no times were given; "
            "give times in seconds or use alignment 'index'"
        )
    return align_by_timestamps(
        frame_valid_BT,
        frame_times_BT,
        side_valid_BK,
        side_times_BK,
        neighbourhood_frames=neighbourhood_frames,
        neighbourhood_seconds=neighbourhood_seconds,
        empty_frames=empty_frames,
    )


def time_order(side_valid_BK: Tensor, side_times_BK: Tensor | None) -> Tensor:
    """Indices of the steps in time order, shape (B, K): steps of equal time keep their order, invalid ones come last."""
    if side_times_BK is None:
        return torch.argsort((~side_valid_BK).byte(), dim=1, stable=True)
    return torch.argsort(torch.where(side_valid_BK, side_times_BK, torch.inf), dim=1, stable=True)


def frame_rank(frame_valid_BT: Tensor) -> Tensor:
    """The number of each frame among the valid frames of its video, from 0; meaningless at padded frames."""
    return (frame_valid_BT.cumsum(dim=1) - 1).clamp(min=0)


def align_by_index(
    frame_valid_BT: Tensor, side_valid_BK: Tensor, side_times_BK: Tensor | None = None, *, neighbourhood_frames: int = 0
) -> Windows:
    """The rule "index" of the module's docstring; arguments as for :func:`align`."""
    K, T = side_valid_BK.shape[1], frame_valid_BT.shape[1]
    order_BK = time_order(side_valid_BK, side_times_BK)
    steps_B1 = side_valid_BK.sum(dim=1, keepdim=True)
    frames_B1 = frame_valid_BT.sum(dim=1, keepdim=True)
    share_B1 = steps_B1 // frames_B1.clamp(min=1)
    remainder_B1 = steps_B1 % frames_B1.clamp(min=1)

    rank_BT = frame_rank(frame_valid_BT)
    first_BT = (rank_BT - neighbourhood_frames).clamp(min=0)
    after_BT = torch.minimum(rank_BT + neighbourhood_frames + 1, frames_B1)
    start_BT = first_BT * share_B1 + torch.minimum(first_BT, remainder_B1)
    end_BT = after_BT * share_B1 + torch.minimum(after_BT, remainder_B1)

    resampled = None
    short_B1 = (steps_B1 < frames_B1) & (steps_B1 > 0)
    if bool(short_B1.any()):
        start_BT = torch.where(short_B1, K + first_BT, start_BT)
        end_BT = torch.where(short_B1, K + after_BT, end_BT)
        last_B1 = (steps_B1 - 1).clamp(min=0)
        place_BT = torch.arange(T, device=order_BK.device) * last_B1 / (frames_B1 - 1).clamp(min=1).double()
        left_BT = torch.minimum(place_BT.long(), last_B1)
        right_BT = torch.minimum(left_BT + 1, last_B1)
        weight_BT = (place_BT - left_BT).clamp(max=1)
        resampled = Resampled(order_BK.gather(1, left_BT), order_BK.gather(1, right_BT), weight_BT)
    length_BT = torch.where(frame_valid_BT & (steps_B1 > 0), end_BT - start_BT, 0)
    return Windows(order_BK, start_BT, length_BT, resampled)


def frame_intervals(
    frame_valid_BT: Tensor, frame_times_BT: Tensor, *, neighbourhood_frames: int = 0, neighbourhood_seconds: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The interval ``[lower, upper)`` of every frame in seconds, two float64 tensors (B, T); meaningless at padded frames.

    A neighbourhood counts frames in time order, frames of its own time not, others one by one.
    """
    times_BT = torch.where(frame_valid_BT, frame_times_BT.double(), torch.inf)
    sorted_BT = times_BT.sort(dim=1).values
    last_B1 = (frame_valid_BT.sum(dim=1, keepdim=True) - 1).clamp(min=0)

    before_BT = torch.searchsorted(sorted_BT, sorted_BT) - 1  # the nearest earlier frame of another time, -1: none
    after_BT = torch.searchsorted(sorted_BT, sorted_BT, right=True)  # the nearest later one, beyond last_B1: none
    has_before_BT, has_after_BT = before_BT >= 0, after_BT <= last_B1
    earlier_BT = sorted_BT.gather(1, before_BT.clamp(min=0))
    later_BT = sorted_BT.gather(1, torch.minimum(after_BT, last_B1))
    half_after_BT = torch.where(has_after_BT, (later_BT - sorted_BT) / 2, torch.inf)
    half_before_BT = torch.where(has_before_BT, (sorted_BT - earlier_BT) / 2, torch.inf)
    lower_BT = torch.where(has_before_BT, (earlier_BT + sorted_BT) / 2, sorted_BT - half_after_BT)
    upper_BT = torch.where(has_after_BT, (sorted_BT + later_BT) / 2, sorted_BT + half_before_BT)

    first_BT = (torch.searchsorted(sorted_BT, times_BT) - neighbourhood_frames).clamp(min=0)
    final_BT = torch.searchsorted(sorted_BT, times_BT, right=True) - 1 + neighbourhood_frames
    lower_BT = lower_BT.gather(1, first_BT) - neighbourhood_seconds
    upper_BT = upper_BT.gather(1, torch.minimum(final_BT, last_B1)) + neighbourhood_seconds
    return lower_BT, upper_BT


def align_by_timestamps(
    frame_valid_BT: Tensor,
    frame_times_BT: Tensor,
    side_valid_BK: Tensor,
    side_times_BK: Tensor,
    *,
    neighbourhood_frames: int = 0,
    neighbourhood_seconds: float = 0.0,
    empty_frames: EmptyFrames = "skip",
) -> Windows:
    """The rule "timestamps" of the module's docstring; arguments as for :func:`align`."""
    if not bool(torch.isfinite(frame_times_BT)[frame_valid_BT].all()):
        raise ValueError("frame times: the time of a valid frame is not finite; every real frame needs a time in seconds")
    K, T = side_valid_BK.shape[1], frame_valid_BT.shape[1]
    order_BK = time_order(side_valid_BK, side_times_BK)
    steps_BK = torch.where(side_valid_BK, side_times_BK.double(), torch.inf).gather(1, order_BK)
    lower_BT, upper_BT = frame_intervals(
        frame_valid_BT,
        frame_times_BT,
        neighbourhood_frames=neighbourhood_frames,
        neighbourhood_seconds=neighbourhood_seconds,
    )
    reads_BT = frame_valid_BT & side_valid_BK.any(dim=1, keepdim=True)
    start_BT = torch.searchsorted(steps_BK, lower_BT)
    length_BT = torch.where(reads_BT, torch.searchsorted(steps_BK, upper_BT) - start_BT, 0)
    if empty_frames == "skip":
        return Windows(order_BK, start_BT, length_BT)

    empty_BT = reads_BT & (length_BT == 0)
    left_BT, right_BT, weight_BT = _around(steps_BK, side_valid_BK, torch.where(frame_valid_BT, frame_times_BT.double(), 0.0))
    length_BT = torch.where(empty_BT, 1, length_BT)
    if empty_frames == "nearest":
        nearest_BT = torch.where(weight_BT > 0.5, right_BT, left_BT)
        return Windows(order_BK, torch.where(empty_BT, nearest_BT, start_BT), length_BT)
    own_T = torch.arange(K, K + T, device=order_BK.device)
    resampled = Resampled(order_BK.gather(1, left_BT), order_BK.gather(1, right_BT), weight_BT)
    return Windows(order_BK, torch.where(empty_BT, own_T, start_BT), length_BT, resampled)


def _around(steps_BK: Tensor, side_valid_BK: Tensor, times_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Places of the steps just before and just after each time, and how far the time lies from the first to the second."""
    last_B1 = (side_valid_BK.sum(dim=1, keepdim=True) - 1).clamp(min=0)
    right_BT = torch.searchsorted(steps_BK, times_BT)
    left_BT = torch.minimum((right_BT - 1).clamp(min=0), last_B1)
    right_BT = torch.minimum(right_BT, last_B1)
    earlier_BT, later_BT = steps_BK.gather(1, left_BT), steps_BK.gather(1, right_BT)
    weight_BT = torch.where(later_BT > earlier_BT, (times_BT - earlier_BT) / (later_BT - earlier_BT), 0.0)
    return left_BT, right_BT, weight_BT
