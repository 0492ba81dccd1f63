"""Long sound through encoders that hear a fixed length at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pave.side_channels.base import AudioClip, SideFeatures, check_sample_rate

if TYPE_CHECKING:
    from typing_extensions import Self

    from pave.config import EncoderConfig


@dataclass(frozen=True)
class Window:
    """A piece of a clip, and which of the tokens it gives are kept."""

    first: int
    """Its first sample."""
    keep_W: NDArray[np.bool_]
    """For each of the W token times of a window."""


def plan_windows(num_samples: int, sample_rate: int, window: int, stride: int, times_W: NDArray[np.float64]) -> list[Window]:
    """Cut a clip into windows so that every moment is heard once.

    Windows begin every ``stride`` samples, from the first sample on, until one reaches the end of the clip. Where two
    overlap, each keeps the tokens on its side of the middle of the overlap. Of the last window only tokens whose centre lies
    before the end of the sound are kept, but at least the first token of the clip.

    Args:
        num_samples: length of the clip.
        sample_rate: Hz.
        window: samples that the encoder hears at a time.
        stride: samples between the beginnings of windows, at most ``window``.
        times_W: centre of each token in seconds after the beginning of its window, ascending.
    """
    count = 1 + max(0, -((window - num_samples) // stride))
    half = (window - stride) / 2 / sample_rate
    windows = []
    for i in range(count):
        first = i * stride
        low = -np.inf if i == 0 else half
        high = (num_samples - first) / sample_rate if i == count - 1 else stride / sample_rate + half
        keep_W = (times_W >= low - 1e-9) & (times_W < high - 1e-9)
        if count == 1:
            keep_W[0] = True
        windows.append(Window(first, keep_W))
    return windows


class WindowedAudioEncoder(ABC):
    """An audio encoder that hears ``window_samples`` at a time; subclasses say how.

    The same sound gives the same tokens wherever the clip stands on the video's clock; only their times move with it.
    """

    source: ClassVar[str] = "audio"
    sample_rate: int | None
    batch_size: int = 8
    """Windows that go through the model at once. Does not change the features beyond rounding."""

    def __init__(
        self, name: str, sample_rate: int, window: int, times_W: NDArray[np.float64], stride_seconds: float | None
    ) -> None:
        """
        Args:
            name: of the encoder, for messages.
            sample_rate: Hz.
            window: samples heard at a time.
            times_W: centre of each token in seconds after the beginning of its window.
            stride_seconds: distance of windows; None sets them so that the tokens of one continue the grid of the one before,
                if windows that touch or overlap can.
        """
        self.name = name
        self.sample_rate = self._rate = sample_rate
        self.window_samples = window
        self._times_W = times_W
        grid = len(times_W) * float(times_W[1] - times_W[0]) if len(times_W) > 1 else window / sample_rate
        self._stride = min(window, round(grid * sample_rate)) if stride_seconds is None else round(stride_seconds * sample_rate)
        if not 1 <= self._stride <= window:
            raise ValueError(
                f"{name}: stride_seconds must be above 0 and at most the window of {window / sample_rate:g} s, got {stride_seconds}"
            )

    @property
    @abstractmethod
    def width(self) -> int:
        """C."""

    @property
    @abstractmethod
    def tokens_per_step(self) -> int:
        """M."""

    @abstractmethod
    def spec(self) -> EncoderConfig:
        """Everything that decides the features."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """Move the weights."""

    @abstractmethod
    def _encode_windows(self, windows: list[NDArray[np.float32]]) -> Tensor:
        """(windows, W, M, C) float32 of pieces of up to ``window_samples`` samples."""

    def encode(self, source: AudioClip) -> SideFeatures:
        """Features of a clip: (K, M, C) float32.

        Raises:
            ValueError: if the clip has another sample rate.
        """
        return self.encode_batch([source])[0]

    def encode_batch(self, sources: Sequence[AudioClip]) -> list[SideFeatures]:
        """Features of several clips, in order; their windows go through the model together."""
        jobs: list[tuple[int, Window]] = []
        for number, clip in enumerate(sources):
            check_sample_rate(clip, self._rate, self.name)
            windows = plan_windows(len(clip), self._rate, self.window_samples, self._stride, self._times_W)
            jobs += [(number, window) for window in windows]
        features: list[list[Tensor]] = [[] for _ in sources]
        times: list[list[NDArray[np.float64]]] = [[] for _ in sources]
        for begin in range(0, len(jobs), self.batch_size):
            batch = jobs[begin : begin + self.batch_size]
            pieces = [sources[number].samples[w.first : w.first + self.window_samples] for number, w in batch]
            with torch.no_grad():
                encoded_BWMC = self._encode_windows(pieces)
            for (number, window), encoded_WMC in zip(batch, encoded_BWMC, strict=True):
                features[number].append(encoded_WMC[torch.from_numpy(window.keep_W).to(encoded_WMC.device)])
                times[number].append(sources[number].start_time + window.first / self._rate + self._times_W[window.keep_W])
        return [
            SideFeatures(torch.cat(parts), torch.from_numpy(np.concatenate(stamps)))
            for parts, stamps in zip(features, times, strict=True)
        ]
