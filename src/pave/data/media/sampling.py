"""Which frames of a video to take. Exact integer arithmetic on time stamps; nothing here touches a file."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Literal

import numpy as np

from pave.config import Strict


@dataclass(frozen=True, kw_only=True)
class FrameSampling(Strict):
    """Which frames to take: ``num_frames`` of them spread over the video, or ``fps`` a second, or (neither given) every one.

    No frame is ever taken twice. A window with fewer frames than asked for gives all of them.
    """

    num_frames: int | None = None
    """How many frames, spread uniformly over the window (see spacing)."""
    fps: float | None = None
    """Frames per second: the frame nearest to start, start + 1/fps, start + 2/fps, ..."""
    max_frames: int | None = None
    """With fps or with neither: where that gives more frames, this many are spread uniformly instead."""
    spacing: Literal["centres", "endpoints"] = "centres"
    """centres: the frames on screen at the centres of num_frames equal intervals of the window. endpoints: first frame, last
    frame and evenly counted frames between, by index: numpy.linspace(0, N - 1, num_frames, dtype=int), as in the paper."""
    start: float = 0.0
    """The window's start, seconds after the first frame."""
    end: float | None = None
    """The window's end, seconds after the first frame; null (or later than the video's end) is the video's end."""

    def __post_init__(self) -> None:
        if self.num_frames is not None and (self.fps is not None or self.max_frames is not None):
            raise ValueError("num_frames cannot be combined with fps or max_frames")
        for name in ("num_frames", "max_frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ValueError(f"fps must be above 0 and at most 1000, got {self.fps}")
        if not 0 <= self.start < float("inf"):
            raise ValueError(f"start must be a finite number of seconds that is not negative, got {self.start}")
        if self.end is not None and not self.start < self.end:
            raise ValueError(f"end ({self.end}) must come after start ({self.start})")


def choose_frames(ticks: Sequence[int], end_tick: int, tick: Fraction, sampling: FrameSampling) -> tuple[list[int], int]:
    """Apply a sampling to a video's time stamps.

    Args:
        ticks: presentation times of all frames in ascending order, as counts of ``tick``.
        end_tick: when the last frame leaves the screen.
        tick: seconds per count.
        sampling: what to take.

    Returns:
        The chosen frames as ascending, distinct indices into ``ticks``, and how many frames were asked for (a greater number
        where the window holds fewer).

    Raises:
        ValueError: if the window starts at or after the end of the video.
    """
    zero = ticks[0]
    start = zero + _exact(sampling.start) / tick
    end: Fraction = Fraction(end_tick)
    if sampling.end is not None:
        end = min(end, zero + _exact(sampling.end) / tick)
    if start >= end_tick:
        seconds = float((end_tick - zero) * tick)
        raise ValueError(f"the window starts at {sampling.start} s but the video lasts {seconds:.6g} s")
    first = bisect_right(ticks, start) - 1
    stop = max(first + 1, bisect_left(ticks, end))
    everything = list(range(first, stop))
    asked = len(everything) if sampling.num_frames is None else sampling.num_frames
    if sampling.fps is not None:
        asked = ceil((end - start) * tick * _exact(sampling.fps))
    limited = sampling.max_frames is not None and asked > sampling.max_frames
    if sampling.fps is not None and not limited:
        return _nearest(ticks, float(start), 1 / float(_exact(sampling.fps) * tick), asked, first, stop), asked
    wanted = asked if sampling.max_frames is None else min(asked, sampling.max_frames)
    if wanted >= len(everything):
        return everything, wanted
    if sampling.spacing == "endpoints":
        return [first + int(i) for i in np.linspace(0, len(everything) - 1, wanted, dtype=int)], wanted
    centres = [start + (2 * i + 1) * (end - start) / (2 * wanted) for i in range(wanted)]
    return _distinct([bisect_right(ticks, centre) - 1 for centre in centres], stop), wanted


def _exact(seconds: float) -> Fraction:
    """A decimal number as people mean it: 0.1 is one tenth. Good to a microsecond."""
    return Fraction(seconds).limit_denominator(1_000_000)


def _nearest(ticks: Sequence[int], start: float, step: float, count: int, first: int, stop: int) -> list[int]:
    """The frames nearest to ``start + i * step`` (the earlier one of two equally near), each once."""
    ticks_F = np.asarray(ticks[first:stop], dtype=np.float64)
    targets = start + step * np.arange(count, dtype=np.float64)
    middles = (ticks_F[1:] + ticks_F[:-1]) / 2
    return [first + int(i) for i in np.unique(np.searchsorted(middles, targets, side="left"))]


def _distinct(indices: list[int], stop: int) -> list[int]:
    """Ascending indices with repeats moved to the next free frame, or back where there is none before ``stop``."""
    for i in range(1, len(indices)):
        indices[i] = max(indices[i], indices[i - 1] + 1)
    indices[-1] = min(indices[-1], stop - 1)
    for i in range(len(indices) - 2, -1, -1):
        indices[i] = min(indices[i], indices[i + 1] - 1)
    return indices
