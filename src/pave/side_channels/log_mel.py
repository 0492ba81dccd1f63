"""Log-mel features: an audio encoder without weights."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from pave.config import EncoderConfig
from pave.side_channels.base import AudioClip, SideFeatures, check_sample_rate

if TYPE_CHECKING:
    from typing_extensions import Self

_MOST_FILTERS = 2**28
_FLOOR = 1e-10
"""Power that counts as silence (-100 dB below a power of 1)."""
_BLOCK_STEPS = 256
"""Steps that are transformed at once, to bound memory."""


class LogMelEncoder:
    """The loudness of each pitch band over time: one token per step, no weights.

    The clip is cut into steps of ``step_seconds`` from its first sample on. A last step of which at least half is sound is
    filled up with silence, a shorter rest is left out; a clip shorter than half a step still gives one step. Each step is
    ``parts_per_step`` equal parts, and a part is the log10 of the mean mel power of its STFT frames, shifted and scaled:
    ``(log10(power) + 4) / 2``, which is -3 for silence and near 3 for a loud tone. The parts of a step stand one after the other.

    STFT frames lie every ``hop_seconds`` so that those of a step are centred in it, and see silence beyond the clip's ends.
    The power of a frame is ``|FFT(hann * x)|^2 / sum(hann^2)``, which for white noise is its variance whatever the window.

    Args:
        sample_rate: Hz that clips must have.
        n_mels: bands, spaced equally on the mel scale from 0 Hz to half the sample rate.
        window_seconds: length of the Hann window.
        hop_seconds: distance of STFT frames, a whole number of samples.
        step_seconds: length of a step, a whole number of parts of whole numbers of hops.
        parts_per_step: time resolution inside a step; the width is ``n_mels * parts_per_step``.

    Raises:
        ValueError: if the lengths do not fit together, or a band is narrower than the FFT resolves.
    """

    source: ClassVar[str] = "audio"
    sample_rate: int | None

    def __init__(
        self,
        *,
        sample_rate: int = 16000,
        n_mels: int = 64,
        window_seconds: float = 0.025,
        hop_seconds: float = 0.01,
        step_seconds: float = 0.25,
        parts_per_step: int = 1,
    ) -> None:
        for name, value, most in (
            ("sample_rate", sample_rate, 1_000_000),
            ("n_mels", n_mels, 4096),
            ("hop_seconds", hop_seconds, 60),
            ("window_seconds", window_seconds, 60),
            ("step_seconds", step_seconds, 3600),
        ):
            if not 0 < value <= most:
                raise ValueError(f"log_mel: {name} must be above 0 and at most {most:,}, got {value}")
        hop, hops_per_step = hop_seconds * sample_rate, step_seconds / hop_seconds
        if abs(hop - round(hop)) > 1e-6 or round(hop) < 1:
            raise ValueError(f"log_mel: hop_seconds ({hop_seconds}) must be a whole number of samples at {sample_rate} Hz")
        if abs(hops_per_step - round(hops_per_step)) > 1e-6 or round(hops_per_step) < 1:
            raise ValueError(f"log_mel: step_seconds ({step_seconds}) must be a whole number of hops of {hop_seconds} s")
        if parts_per_step < 1 or round(hops_per_step) % parts_per_step:
            raise ValueError(f"log_mel: the {round(hops_per_step)} hops of a step do not divide into {parts_per_step} parts")
        if window_seconds < hop_seconds:
            raise ValueError(f"log_mel: window_seconds ({window_seconds}) must be at least hop_seconds ({hop_seconds})")
        self.sample_rate = self._rate = sample_rate
        self._settings = {
            "sample_rate": sample_rate,
            "n_mels": n_mels,
            "window_seconds": window_seconds,
            "hop_seconds": hop_seconds,
            "step_seconds": step_seconds,
            "parts_per_step": parts_per_step,
        }
        self._parts = parts_per_step
        self._hop = round(hop)
        self._hops_per_step = round(hops_per_step)
        self._step = self._hop * self._hops_per_step
        # The difference to the hop is even, so that frames are centred in their hop to the sample.
        self._window = round(window_seconds * sample_rate)
        self._window += (self._window - self._hop) % 2
        self._fft = 2 ** (int(log2(2 * self._window - 1)) + 1)
        if self._fft * n_mels > _MOST_FILTERS:
            raise ValueError(
                f"log_mel: {n_mels} bands of a window of {self._window:,} samples would take {self._fft * n_mels / 2**18:,.0f} MiB; use a "
                "smaller n_mels, window_seconds or sample_rate"
            )
        self._hann = torch.hann_window(self._window, periodic=True)
        self._filters_FN = mel_filters(n_mels, self._fft, sample_rate)
        if not bool((self._filters_FN.sum(dim=0) > 0).all()):
            raise ValueError(
                f"log_mel: {n_mels} mel bands are more than a window of {window_seconds} s can tell apart; use fewer"
            )

    @property
    def width(self) -> int:
        """C."""
        return self._filters_FN.shape[1] * self._parts

    @property
    def tokens_per_step(self) -> int:
        """M, always 1."""
        return 1

    def encode(self, source: AudioClip) -> SideFeatures:
        """Features of a clip: (K, 1, width) float32.

        Raises:
            ValueError: if the clip has another sample rate.
        """
        check_sample_rate(source, self._rate, "log_mel")
        samples = torch.from_numpy(source.samples).to(self._hann.device)
        K = max(1, (2 * len(samples) + self._step) // (2 * self._step))
        margin = (self._window - self._hop) // 2
        needed = K * self._step + 2 * margin
        padded = torch.nn.functional.pad(samples, (margin, max(0, needed - margin - len(samples))))[:needed]
        blocks = []
        for first in range(0, K, _BLOCK_STEPS):
            steps = min(_BLOCK_STEPS, K - first)
            begin = first * self._step
            blocks.append(self._log_mel(padded[begin : begin + steps * self._step + 2 * margin]))
        features_KC = torch.cat(blocks).reshape(K, self.width)
        centres_K = (torch.arange(K, dtype=torch.float64) + 0.5) * (self._step / self._rate)
        return SideFeatures(features_KC, source.start_time + centres_K)

    def _log_mel(self, samples: Tensor) -> Tensor:
        """(parts, bands) of samples that begin and end half a window minus half a hop outside the parts."""
        frames = samples.unfold(0, self._window, self._hop)
        power = torch.fft.rfft(frames * self._hann, n=self._fft).abs().square() / self._hann.square().sum()
        mel = power @ self._filters_FN
        parts = mel.reshape(-1, self._hops_per_step // self._parts, mel.shape[1]).mean(dim=1)
        return (parts.clamp(min=_FLOOR).log10() + 4) / 2

    def encode_batch(self, sources: Sequence[AudioClip]) -> list[SideFeatures]:
        """Features of several clips, in order."""
        return [self.encode(source) for source in sources]

    def spec(self) -> EncoderConfig:
        """Every setting, also those left at their default."""
        return EncoderConfig(name="log_mel", settings=dict(self._settings))

    def to(self, device: torch.device | str) -> Self:
        """Compute on this device."""
        self._hann = self._hann.to(device)
        self._filters_FN = self._filters_FN.to(device)
        return self

    def __repr__(self) -> str:
        return f"LogMelEncoder({', '.join(f'{k}={v}' for k, v in self._settings.items())})"


def mel_filters(n_mels: int, n_fft: int, sample_rate: int) -> Tensor:
    """Triangular filters, (n_fft / 2 + 1, n_mels), of height 1, between 0 Hz and half the sample rate.

    Their corners are equally spaced on the mel scale ``2595 log10(1 + f / 700)`` (O'Shaughnessy, Speech Communication, 1987;
    the one of HTK).
    """
    top = 2595 * torch.log10(torch.tensor(1 + sample_rate / 2 / 700, dtype=torch.float64))
    mels = torch.linspace(0, 1, n_mels + 2, dtype=torch.float64) * top
    corners = 700 * (10 ** (mels / 2595) - 1)
    bins = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)[:, None]
    rising = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    filters: Any = torch.minimum(rising, falling).clamp(min=0).float()
    return filters
