"""What of the sound an encoder hears: which channel, and how far its clock is off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from pave.side_channels.base import AudioClip, SideEncoder, SideFeatures

if TYPE_CHECKING:
    from typing_extensions import Self

    from pave.config import EncoderConfig

SETTINGS = ("channel", "num_channels", "offset_seconds")
"""Settings that ``build_encoder`` adds to every encoder of sound."""


class ArrangedAudioEncoder:
    """An encoder of mono sound, given sound of several channels or of a clock that is off.

    Args:
        encoder: hears mono sound.
        channel: "mix" is the mean of the channels; a number is that channel alone, counted from 0; "each" encodes every channel
            by itself and puts its tokens behind those of the channel before, in the same step.
        num_channels: how many channels the sound has, needed with "each"; sound of another number is refused.
        offset_seconds: added to every time: how much later than its own clock says the sound belongs.

    Raises:
        ValueError: if a setting is wrong.
    """

    source: ClassVar[str] = "audio"
    sample_rate: int | None

    def __init__(
        self,
        encoder: SideEncoder[AudioClip],
        *,
        channel: int | str = "mix",
        num_channels: int | None = None,
        offset_seconds: float = 0.0,
    ) -> None:
        name = encoder.spec().name
        number = isinstance(channel, int) and not isinstance(channel, bool) and channel >= 0
        if channel not in ("mix", "each") and not number:
            raise ValueError(f"{name}: channel must be 'mix', 'each' or the number of a channel from 0, got {channel!r}")
        if (channel == "each") != (num_channels is not None):
            raise ValueError(f"{name}: channel 'each' needs num_channels, and only it takes that")
        if num_channels is not None and num_channels < 1:
            raise ValueError(f"{name}: num_channels must be at least 1, got {num_channels}")
        if not isfinite(offset_seconds):
            raise ValueError(f"{name}: offset_seconds must be finite, got {offset_seconds}")
        self._encoder = encoder
        self._name = name
        self.sample_rate = encoder.sample_rate
        self.channel = channel
        self.num_channels = num_channels
        self.offset_seconds = offset_seconds

    @property
    def width(self) -> int:
        """C."""
        return self._encoder.width

    @property
    def tokens_per_step(self) -> int:
        """M: the encoder's, times the number of channels under "each"."""
        return self._encoder.tokens_per_step * (self.num_channels or 1)

    def encode(self, source: AudioClip) -> SideFeatures:
        """Features of a clip.

        Raises:
            ValueError: if the clip has another sample rate, or other channels than the settings say.
        """
        return self.encode_batch([source])[0]

    def encode_batch(self, sources: Sequence[AudioClip]) -> list[SideFeatures]:
        """Features of several clips, in order."""
        split = [self._split(clip) for clip in sources]
        encoded = iter(self._encoder.encode_batch([clip for clips in split for clip in clips]))
        return [self._join([next(encoded) for _ in clips]) for clips in split]

    def _split(self, clip: AudioClip) -> list[AudioClip]:
        """The mono clips that the encoder hears."""
        if self.channel == "mix":
            return [clip.mixed()]
        if isinstance(self.channel, int):
            if self.channel >= clip.num_channels:
                raise ValueError(
                    f"{self._name}: channel {self.channel} is not there, the sound has {clip.num_channels}; they count from 0"
                )
            return [clip.channel(self.channel)]
        if clip.num_channels != self.num_channels:
            raise ValueError(
                f"{self._name}: num_channels says {self.num_channels} channels but the sound has {clip.num_channels}; "
                "use channel: mix for sound of any number"
            )
        return [clip.channel(number) for number in range(clip.num_channels)]

    def _join(self, parts: list[SideFeatures]) -> SideFeatures:
        features_KMC = torch.cat([part.features_KMC for part in parts], dim=1)
        return SideFeatures(features_KMC, parts[0].times_K + self.offset_seconds)

    def spec(self) -> EncoderConfig:
        """Every setting of the encoder and of what it hears."""
        config = self._encoder.spec()
        own: dict[str, Any] = {name: getattr(self, name) for name in SETTINGS}
        return replace(config, settings={**config.settings, **own})

    def to(self, device: torch.device | str) -> Self:
        """Move the encoder."""
        self._encoder.to(device)
        return self

    def __repr__(self) -> str:
        own = ", ".join(f"{name}={getattr(self, name)!r}" for name in SETTINGS)
        return f"ArrangedAudioEncoder({self._encoder!r}, {own})"
