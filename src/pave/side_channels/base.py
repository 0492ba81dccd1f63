"""What side channels are made of: raw streams, their features, and the encoders between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from typing_extensions import Self

    from pave.config import EncoderConfig

SourceT = TypeVar("SourceT", contravariant=True)


@dataclass(frozen=True, eq=False)
class AudioClip:
    """Sound with its place on the video's clock.

    Raises:
        ValueError: if the samples are not a non-empty, finite vector or matrix, or the rate or the start time is out of range.
    """

    samples: NDArray[np.float32]
    """(n,) float32 of mono sound, or (n, channels); full scale is [-1, 1]. A torch tensor is accepted and converted."""
    sample_rate: int
    """Hz. Sample i was heard at ``start_time + i / sample_rate``."""
    start_time: float = 0.0
    """Seconds on the video's clock (0 = first frame) of the first sample; may be negative."""

    def __post_init__(self) -> None:
        samples: Any = self.samples
        if hasattr(samples, "detach"):
            samples = samples.detach().cpu().numpy()
        samples = np.ascontiguousarray(samples, dtype=np.float32)
        if samples.ndim not in (1, 2) or not samples.size:
            raise ValueError(
                "AudioClip: samples must be a vector with at least one sample, or a matrix of samples by channels, "
                f"got shape {samples.shape}"
            )
        if not np.isfinite(samples).all():
            raise ValueError("AudioClip: samples hold a NaN or an infinity")
        if self.sample_rate < 1:
            raise ValueError(f"AudioClip: sample_rate must be at least 1 Hz, got {self.sample_rate}")
        if not np.isfinite(self.start_time):
            raise ValueError(f"AudioClip: start_time must be finite, got {self.start_time}")
        object.__setattr__(self, "samples", samples)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.samples) / self.sample_rate

    @property
    def num_channels(self) -> int:
        """1 for mono sound."""
        return 1 if self.samples.ndim == 1 else self.samples.shape[1]

    def mixed(self) -> AudioClip:
        """The mean of the channels, as mono sound."""
        return self if self.samples.ndim == 1 else replace(self, samples=self.samples.mean(axis=1))

    def channel(self, number: int) -> AudioClip:
        """One channel, counted from 0, as mono sound."""
        return self if self.samples.ndim == 1 and number == 0 else replace(self, samples=self.samples[:, number])

    def shifted(self, seconds: float) -> AudioClip:
        """The same sound, heard ``seconds`` later."""
        return replace(self, start_time=self.start_time + seconds)


@dataclass(frozen=True, eq=False)
class SideFeatures:
    """What an encoder makes of one video's stream: M feature vectors of width C for each of K steps in time.

    Raises:
        ValueError: if the shapes do not agree, or a time is not finite.
    """

    features_KMC: Tensor
    """Floating; (K, C) is accepted and becomes (K, 1, C)."""
    times_K: Tensor
    """float64 seconds on the video's clock, the centre of each step."""

    def __post_init__(self) -> None:
        features, times = self.features_KMC, self.times_K
        if features.ndim == 2:
            features = features[:, None]
        if features.ndim != 3 or not features.is_floating_point():
            raise ValueError(
                "SideFeatures: features_KMC must be a floating tensor of shape (steps, tokens per step, width), "
                f"got {features.dtype} of shape {tuple(features.shape)}"
            )
        if times.shape != features.shape[:1]:
            raise ValueError(f"SideFeatures: {len(features)} steps but times of shape {tuple(times.shape)}")
        if not bool(times.isfinite().all()):
            raise ValueError("SideFeatures: times_K holds a time that is not finite")
        object.__setattr__(self, "features_KMC", features)
        object.__setattr__(self, "times_K", times.double())

    def __len__(self) -> int:
        return len(self.features_KMC)


@runtime_checkable
class SideEncoder(Protocol[SourceT]):
    """A frozen encoder: the same source always gives the same features, and no gradient flows.

    An encoder is built from an ``EncoderConfig`` by ``build_encoder`` and gives it back, complete, from ``spec``: that is what
    a patch records and what names cached features.
    """

    source: ClassVar[str]
    """What ``encode`` takes: "audio" (an AudioClip), "features" (the path of a stored file), ..."""
    sample_rate: int | None
    """Hz that an AudioClip must have; None for other sources."""

    @property
    def width(self) -> int:
        """C."""
        ...

    @property
    def tokens_per_step(self) -> int:
        """M."""
        ...

    def encode(self, source: SourceT) -> SideFeatures:
        """Features of one stream. Raises ValueError if the source does not suit the encoder."""
        ...

    def encode_batch(self, sources: Sequence[SourceT]) -> list[SideFeatures]:
        """Features of several streams, in order."""
        ...

    def spec(self) -> EncoderConfig:
        """Everything that decides the features; ``build_encoder(encoder.spec())`` makes the same encoder."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """Move the encoder; features come back on the same device."""
        ...


def check_sample_rate(clip: AudioClip, sample_rate: int, encoder: str) -> None:
    """Refuse a clip of another sample rate than the encoder hears, or of several channels.

    Raises:
        ValueError: saying how to get the right sound.
    """
    if clip.sample_rate != sample_rate:
        raise ValueError(
            f"the encoder {encoder!r} needs sound at {sample_rate} Hz but the clip has {clip.sample_rate} Hz; "
            f"read it with read_audio(path, {sample_rate})"
        )
    if clip.samples.ndim != 1:
        raise ValueError(
            f"the encoder {encoder!r} hears mono sound but the clip has {clip.num_channels} channels; mix them (clip.mixed()), or "
            "build the encoder with the setting channel"
        )
