"""The side channels of a session: which stream a push goes to, and what the patches that act read of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pave.config import PatchConfig
from pave.inference.session_clip import Reader, check_streams
from pave.inference.session_streams import Lateness, SideStream, StreamReport
from pave.patching import is_patched
from pave.patching.fuse import read_sides
from pave.tokens import SideTokens

logger = logging.getLogger(__name__)


@dataclass
class SideClip:
    """What has come of the side channels of some patches before a time."""

    readers: dict[str, Reader] = field(default_factory=dict)
    """By "patch.channel", for the rules of what is complete."""
    tokens: dict[str, dict[str, SideTokens]] = field(default_factory=dict)
    """By patch and channel, for the model; channels without a step are not there."""


class SideStreams:
    """Streams by channel, or by patch and channel where they were pushed so.

    Args:
        model: whose patches read them; it may get others and lose some at any time.
        lateness: of all channels, or by channel. A channel that no patch has is warned of.

    Raises:
        ValueError: if it is something else.
    """

    def __init__(self, model: Any, lateness: Lateness | Mapping[str, Lateness]) -> None:
        _check_lateness(lateness)
        self._model = model
        self._lateness = lateness
        given = () if isinstance(lateness, Lateness) else lateness
        known = {channel for config in self.configs().values() for channel in config.side_channels}
        for channel in [name for name in given if name not in known]:
            logger.warning(
                "lateness: no patch on the model has a side channel %r; there are %s", channel, sorted(known) or "none"
            )
        self._streams: dict[tuple[str | None, str], SideStream] = {}

    def configs(self) -> dict[str, PatchConfig]:
        """Of the patches on the model."""
        return dict(self._model.patch_configs) if is_patched(self._model) else {}

    def check(self, channel: str, patch: str | None, tokens_KMC: Tensor | None = None) -> None:
        """Refuse a channel that no patch has or that cannot be streamed, and tokens that do not fit it.

        Raises:
            ValueError: saying which.
        """
        configs, name = self.configs(), name_of(patch, channel)
        if not configs:
            raise ValueError(f"side channel {name!r}: the model carries no patch that could take it")
        having = [own for own in configs if channel in configs[own].side_channels and patch in (None, own)]
        if not having:
            known = {own: list(config.side_channels) for own, config in configs.items()}
            raise ValueError(f"there is no side channel {name!r}; the model carries {known}")
        for own in having:
            check_streams(name_of(own, channel), configs[own].side_channels[channel].fusion)
        if tokens_KMC is not None:
            times_1K = torch.zeros(1, len(tokens_KMC), dtype=torch.float64)
            tokens = SideTokens(torch.zeros_like(tokens_KMC)[None], times_BK=times_1K)
            given: Mapping[str, Any] = {channel: tokens} if patch is None else {patch: {channel: tokens}}
            read_sides(self._model.pave_patches, given, having, times_1K)

    def open(self, channel: str, patch: str | None) -> SideStream:
        """The stream that a push goes to; made by the first one.

        Raises:
            ValueError: if the channel was pushed the other way before.
        """
        others = [of for of, name in self._streams if name == channel and (of is None) != (patch is None)]
        if any(self._streams[of, channel].pushed for of in others):
            how = "without a patch" if others[0] is None else "by patch and channel"
            raise ValueError(f"side channel {channel!r}: it was pushed {how} before; push all of it so")
        if others:
            self._switch(channel, {of: self._streams.pop((of, channel)) for of in others})
        if (patch, channel) not in self._streams:
            self._streams[patch, channel] = self._new(channel, patch)
        return self._streams[patch, channel]

    def _switch(self, channel: str, before: Mapping[str | None, SideStream]) -> None:
        """From a stream for all patches to one for each, or back, while nothing came of it. What will not come any more is kept: for all
        patches only what none of them waits for."""
        having = [patch for patch, config in self.configs().items() if channel in config.side_channels]
        if None in before:
            until, patches = before[None].complete_until, list[str | None](having)
        else:
            until = min(before[of].complete_until if of in before else -math.inf for of in having)
            patches = [None]
        for patch in patches:
            self._streams[patch, channel] = self._new(channel, patch)
            self._streams[patch, channel].complete(until)

    def _new(self, channel: str, patch: str | None) -> SideStream:
        lateness = self._lateness if isinstance(self._lateness, Lateness) else self._lateness.get(channel, Lateness())
        return SideStream(f"side channel {name_of(patch, channel)!r}", lateness)

    def complete(self, until: float) -> None:
        """Nothing before ``until`` will come of any channel, also of those of which nothing came so far."""
        by_patch = {channel for patch, channel in self._streams if patch is not None}
        for patch, config in self.configs().items():
            for channel in config.side_channels:
                self.open(channel, patch if channel in by_patch else None)
        for stream in self._streams.values():
            stream.complete(until)

    def read(self, patches: Sequence[str], newest_frame: float, until: float = math.inf) -> SideClip:
        """What has come for these patches before ``until``."""
        found = SideClip()
        configs = self.configs()
        for patch in patches:
            for channel, settings in configs[patch].side_channels.items():
                stream = self._streams.get((patch, channel)) or self._streams.get((None, channel)) or self._new(channel, patch)
                tokens_KMC, times_K = stream.steps(until)
                watermark = stream.watermark(newest_frame)
                if len(times_K):
                    found.tokens.setdefault(patch, {})[channel] = SideTokens.from_videos([tokens_KMC], [times_K])
                name = name_of(patch, channel)
                found.readers[name] = Reader(name, settings.fusion, times_K, watermark)
        return found

    def newest(self) -> float:
        """Seconds of the newest step of any channel."""
        return max((stream.newest for stream in self._streams.values()), default=-math.inf)

    def keep_from(self, oldest_frame: float | None, seconds: float) -> None:
        """Let go of the steps that no frame can reach any more.

        Args:
            oldest_frame: seconds of the oldest frame that is held. None: there is none yet.
            seconds: no two frames that are held lie further apart, so no interval reaches further than half of it.
        """
        widths = (x.fusion.neighbourhood_seconds for config in self.configs().values() for x in config.side_channels.values())
        reach = seconds / 2 + max(widths, default=0.0)
        for stream in self._streams.values():
            stream.drop_before(stream.newest - seconds if oldest_frame is None else oldest_frame - reach)

    def clear(self) -> None:
        """Let go of everything."""
        for stream in self._streams.values():
            stream.clear()

    def report(self, newest_frame: float) -> dict[str, StreamReport]:
        """By "channel" or "patch.channel", as it was pushed."""
        return {
            name_of(*key): stream.report(len(stream.steps()[1]), stream.num_bytes, newest_frame)
            for key, stream in self._streams.items()
        }


def _check_lateness(given: object) -> None:
    values = list(given.values()) if isinstance(given, Mapping) else [given]
    wrong = [value for value in values if not isinstance(value, Lateness)]
    if wrong:
        raise ValueError(f"lateness: expected a Lateness, or one by channel, got {wrong[0]!r}")


def name_of(patch: str | None, channel: str) -> str:
    """How a channel is called in reports and messages."""
    return channel if patch is None else f"{patch}.{channel}"
