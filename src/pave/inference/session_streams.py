"""What has come of a stream so far: items in the order of their times, and the watermark up to which they are complete.

A *watermark* is a time before which nothing is taken any more. It is moved by what comes (``Lateness``) and by ``complete``, never back. What
comes behind it is late: counted and left out.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MERGE_STEPS = 256


@dataclass(frozen=True)
class Lateness:
    """How long a stream is waited for.

    Raises:
        ValueError: if a number is negative or not a number.
    """

    reorder_seconds: float = 0.0
    """How far the times within the stream may be out of order: its watermark stands this far behind the newest time that came."""
    silence_seconds: float = math.inf
    """How far a side channel may lag behind the frames: its watermark stands no further behind the newest frame. Infinite: a channel that
    falls silent is waited for until ``complete`` says that it is over."""

    def __post_init__(self) -> None:
        for name in ("reorder_seconds", "silence_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be a number of seconds that is not negative, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class StreamReport:
    """What became of all that was pushed of one stream."""

    pushed: int
    """Frames or steps that came, late and broken ones included."""
    held: int
    let_go: int
    """That were held once and are not any more."""
    late: int
    """That came behind the watermark and were left out."""
    latest_seconds: float
    """How far behind the watermark the worst of them came; 0 without one."""
    broken: int
    """Steps that held a NaN or an infinity and were left out."""
    newest: float | None
    """Seconds of the newest one that came; None before the first."""
    watermark: float
    """Seconds; minus infinity before anything is known to be complete."""
    num_bytes: int


class Stream:
    """Counts and the watermark, for frames and side channels alike."""

    def __init__(self, what: str, lateness: Lateness) -> None:
        self.what = what
        self.lateness = lateness
        self.newest = -math.inf
        self.pushed = self.late = self.let_go = self.broken = 0
        self.latest_seconds = 0.0
        self.complete_until = -math.inf
        """What ``complete`` said last."""

    def complete(self, until: float) -> None:
        """Nothing before ``until`` will come."""
        self.complete_until = max(self.complete_until, until)

    def watermark(self, newest_frame: float) -> float:
        """Seconds.

        Args:
            newest_frame: seconds of the newest frame that came.
        """
        own = self.newest - self.lateness.reorder_seconds
        waited = newest_frame - self.lateness.silence_seconds if math.isfinite(newest_frame) else -math.inf
        return max(own, waited, self.complete_until)

    def sort_out(self, times: NDArray[np.float64], newest_frame: float) -> NDArray[np.bool_]:
        """Count what comes now, and say which of it is in time.

        Args:
            times: seconds of what comes.
            newest_frame: as for ``watermark``, from before it came.
        """
        behind = self.watermark(newest_frame) - times
        self.pushed += len(times)
        self.late += int((behind > 0).sum())
        self.latest_seconds = max(self.latest_seconds, *np.where(np.isfinite(behind), behind, 0.0), 0.0)
        self.newest = max(self.newest, *times, -math.inf)
        return behind <= 0

    def report(self, held: int, num_bytes: int, newest_frame: float) -> StreamReport:
        return StreamReport(
            self.pushed,
            held,
            self.let_go,
            self.late,
            self.latest_seconds,
            self.broken,
            self.newest if math.isfinite(self.newest) else None,
            self.watermark(newest_frame),
            num_bytes,
        )


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a stream."""

    serial: int
    """Names it among all frames of its session."""
    time: float
    """Seconds."""
    pixels_HWC: NDArray[np.uint8]


class FrameStream(Stream):
    """The frames that are held."""

    def __init__(self, lateness: Lateness) -> None:
        super().__init__("frames", lateness)
        self.frames: list[Frame] = []
        self._serial = 0

    def push(self, frames_FHWC: NDArray[np.uint8], times_F: NDArray[np.float64]) -> None:
        """Take frames in; the pictures are copied."""
        in_time = self.sort_out(times_F, -math.inf)
        for pixels_HWC, time, taken in zip(frames_FHWC, times_F.tolist(), in_time.tolist(), strict=True):
            if taken:
                frame = Frame(self._serial, time, np.array(pixels_HWC))
                self.frames.insert(bisect_right(self.times(), time), frame)
                self._serial += 1

    def times(self) -> list[float]:
        return [frame.time for frame in self.frames]

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the frames that are held."""
        return self.frames[0].pixels_HWC.shape[:2] if self.frames else None  # type: ignore[return-value]

    @property
    def num_bytes(self) -> int:
        return sum(frame.pixels_HWC.nbytes for frame in self.frames)

    def drop_oldest(self, count: int) -> None:
        """Let go of so many frames."""
        self.frames = self.frames[count:]
        self.let_go += count


class SideStream(Stream):
    """The steps of one side channel that are held."""

    def __init__(self, what: str, lateness: Lateness) -> None:
        super().__init__(what, lateness)
        self._tokens: list[Tensor] = []
        self._times: list[Tensor] = []
        self._pending = 0
        self._not_before = -math.inf

    def push(self, tokens_KMC: Tensor, times_K: Tensor, newest_frame: float) -> None:
        """Take steps in; the tokens are copied.

        Raises:
            ValueError: if the steps before had another number of tokens or width.
        """
        if self._tokens and self._tokens[0].shape[1:] != tokens_KMC.shape[1:]:
            before, now = (" x ".join(map(str, x.shape[1:])) for x in (self._tokens[0], tokens_KMC))
            raise ValueError(
                f"{self.what}: steps of {now} (tokens x width) came after steps of {before}; push steps of one encoder"
            )
        in_time = torch.from_numpy(self.sort_out(times_K.numpy(), newest_frame))
        broken = in_time & ~torch.isfinite(tokens_KMC).flatten(1).all(dim=1)
        self.broken += int(broken.sum())
        taken = in_time & ~broken
        self._tokens.append(tokens_KMC[taken])
        self._times.append(times_K[taken])
        self._pending += len(self._times[-1])
        if self._pending > max(_MERGE_STEPS, len(self._times[0])):
            self._merge()

    def drop_before(self, time: float) -> None:
        """Let go of the steps before ``time``, except for the last of them, which is the nearest one of a frame behind a gap."""
        self._not_before = max(self._not_before, time)

    def steps(self, before: float = math.inf) -> tuple[Tensor, Tensor]:
        """Tokens (K, M, C) and times (K,) of the steps that are held and come before a time, in the order of their times."""
        if not self._times:
            return torch.zeros(0, 1, 1), torch.zeros(0, dtype=torch.float64)
        self._merge()
        tokens_KMC, times_K = self._tokens[0], self._times[0]
        count = int(torch.searchsorted(times_K, before))
        return tokens_KMC[:count], times_K[:count]

    def clear(self) -> None:
        """Let go of everything."""
        self.let_go += sum(map(len, self._times))
        self._tokens, self._times, self._pending = [], [], 0

    @property
    def num_bytes(self) -> int:
        return sum(x.untyped_storage().nbytes() for x in (*self._tokens, *self._times))

    def _merge(self) -> None:
        """One sorted tensor of all pieces. Pieces are put together now and then only, so that a push costs what it brings."""
        tokens_KMC, times_K = torch.cat(self._tokens), torch.cat(self._times)
        times_K, order_K = times_K.sort(stable=True)
        first = max(0, int(torch.searchsorted(times_K, self._not_before)) - 1)
        self.let_go += first
        self._tokens, self._times = [tokens_KMC[order_K[first:]]], [times_K[first:].clone()]
        self._pending = 0


def checked_times(times: Tensor | NDArray[np.floating] | Sequence[float], count: int, what: str) -> NDArray[np.float64]:
    """Times as float64 seconds.

    Raises:
        ValueError: if there is not one finite time for each of ``count`` items.
    """
    made = torch.as_tensor(times, dtype=torch.float64).cpu().numpy()
    if made.shape != (count,):
        raise ValueError(f"{what}: {count} came with times of shape {made.shape}; give each its time in seconds")
    if not np.isfinite(made).all():
        raise ValueError(f"{what}: a time is not finite")
    return made
