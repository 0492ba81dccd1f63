"""Reading the features of samples from a store, in place of running their encoders and the base's vision tower."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from pave.data.items import VideoVision
from pave.data.samples import Sample
from pave.data.store.plan import VISION, identify, plan_features, wanted_key
from pave.data.store.shards import FeatureStore
from pave.data.store.vision import vision_of_parts
from pave.data.vision import BASE_VISION, VISION_VERSION, BaseVision, Encoder
from pave.side_channels.base import SideEncoder, SideFeatures


class _Reader:
    """What both kinds of features have in common. It works in the worker processes of a DataLoader."""

    def __init__(self, store: str | os.PathLike[str], encoders: Mapping[str, Encoder]) -> None:
        self.store = FeatureStore(store)
        self.encoders = dict(encoders)
        self._hashes = self.store.hashes()
        self._ids = {name: identify(encoder, self._hashes).id for name, encoder in encoders.items()}

    def _key(self, channel: str, video: str, path: str | None) -> str | None:
        return wanted_key(self.encoders[channel], self._ids[channel], video, path, self._hashes.of)

    def _lacking(self, channel: str, file: str) -> ValueError:
        return ValueError(
            f"{file}: the feature store {self.store.folder} has no features of {named(channel)} for its present content and encoder; "
            "run pave extract"
        )

    def check_complete(self, samples: Sequence[Sample], command: str) -> None:
        """Refuse to begin if features are missing. Files are hashed where that was not done before.

        Args:
            samples: that will be read.
            command: that makes what is missing, for the message.

        Raises:
            ValueError: saying how much is missing and naming the first file.
        """
        plan = plan_features(samples, self.encoders, self._hashes)
        if plan.failures:
            first = plan.failures[0]
            raise ValueError(f"{named(first.channel)} of sample {first.samples[0]!r}: {first.message}")
        for encoder in plan.encoders:
            self.store.index(encoder, fresh=True)
        missing = [want for want in plan.wanted.values() if want.key not in self.store.index(want.encoder)]
        if missing:
            older = " (there are some that an older version of the library made, which hold something else)"
            raise ValueError(
                f"the feature store {self.store.folder} lacks {len(missing)} of {len(plan.wanted)} features, the first is "
                f"{named(plan.channels[missing[0].key])} of {missing[0].file}{older if self._has_older() else ''}; run: {command}"
            )

    def _has_older(self) -> bool:
        """Whether the store has vision features of an older version."""
        specs = [self.store.facts(encoder).get("spec", {}) for encoder in self.store.encoders()]
        versions = [spec.get("settings", {}).get("version", 0) for spec in specs if spec.get("name") == BASE_VISION]
        return VISION in self.encoders and any(version < VISION_VERSION for version in versions)


class StoredChannels(_Reader):
    """The features of some channels, out of a store.

    Args:
        store: the folder.
        encoders: by channel; they are asked who they are, and never run.

    Raises:
        ValueError: if the folder is no store, or an encoder cannot be named.
    """

    def __init__(self, store: str | os.PathLike[str], encoders: Mapping[str, SideEncoder[Any]]) -> None:
        super().__init__(store, encoders)

    def load(self, channel: str, video: str, path: str | None) -> SideFeatures | None:
        """The features of a channel; None if the video lacks it.

        Args:
            channel: its name.
            video: path of the sample's video.
            path: what the sample names for the channel; None if it names nothing.

        Raises:
            ValueError: naming the file, if the store does not have its features, or it cannot be read.
        """
        key = self._key(channel, video, path)
        if key is None:
            return None
        try:
            return self.store.load(self._ids[channel], key)
        except KeyError:
            raise self._lacking(channel, video if path is None else path) from None


class StoredVision(_Reader):
    """The base's frozen vision features, out of a store.

    Args:
        store: the folder.
        base: whose features; no weights are loaded.

    Raises:
        ValueError: if the folder is no store, or nothing says which weights the base has.
    """

    def __init__(self, store: str | os.PathLike[str], base: BaseVision) -> None:
        super().__init__(store, {VISION: base})
        self.storage = base.storage
        """How they are kept: exact, bfloat16 or float16."""

    def load(self, video: str) -> VideoVision:
        """The features of a video file.

        Raises:
            ValueError: naming it, if the store does not have them, or it cannot be read.
        """
        key = self._key(VISION, video, None)
        assert key is not None
        try:
            parts = self.store.load_parts(self._ids[VISION], key)
        except KeyError:
            raise self._lacking(VISION, video) from None
        assert parts is not None
        return vision_of_parts(parts)


def named(channel: str) -> str:
    """A channel in a message."""
    return channel if channel == VISION else f"side channel {channel!r}"
