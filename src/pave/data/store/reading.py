"""Reading the features of samples from a store, in place of running their encoders."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from pave.data.samples import Sample
from pave.data.store.plan import identify, plan_features, wanted_key
from pave.data.store.shards import FeatureStore
from pave.side_channels.base import SideEncoder, SideFeatures


class StoredChannels:
    """The features of some channels, out of a store. It works in the worker processes of a DataLoader.

    Args:
        store: the folder.
        encoders: by channel; they are asked who they are, and never run.

    Raises:
        ValueError: if the folder is no store, or an encoder cannot be named.
    """

    def __init__(self, store: str | os.PathLike[str], encoders: Mapping[str, SideEncoder[Any]]) -> None:
        self.store = FeatureStore(store)
        self._hashes = self.store.hashes()
        self._encoders = dict(encoders)
        self._ids = {name: identify(encoder, self._hashes).id for name, encoder in encoders.items()}

    def load(self, channel: str, video: str, path: str | None) -> SideFeatures | None:
        """The features of a channel; None if the video lacks it.

        Args:
            channel: its name.
            video: path of the sample's video.
            path: what the sample names for the channel; None if it names nothing.

        Raises:
            ValueError: naming the file, if the store does not have its features, or it cannot be read.
        """
        key = wanted_key(self._encoders[channel], self._ids[channel], video, path, self._hashes)
        if key is None:
            return None
        try:
            return self.store.load(self._ids[channel], key)
        except KeyError:
            raise ValueError(
                f"{video if path is None else path}: the feature store {self.store.folder} has no features of side channel {channel!r} "
                "for its present content and encoder; run pave extract"
            ) from None

    def check_complete(self, samples: Sequence[Sample], command: str) -> None:
        """Refuse to begin if features are missing. Files are hashed where that was not done before.

        Args:
            samples: that will be read.
            command: that makes what is missing, for the message.

        Raises:
            ValueError: saying how much is missing and naming the first file.
        """
        plan = plan_features(samples, self._encoders, self._hashes)
        if plan.failures:
            first = plan.failures[0]
            raise ValueError(f"side channel {first.channel!r} of sample {first.samples[0]!r}: {first.message}")
        for encoder in plan.encoders:
            self.store.index(encoder, fresh=True)
        missing = [want for want in plan.wanted.values() if want.key not in self.store.index(want.encoder)]
        if missing:
            first_channel = plan.channels[missing[0].key]
            raise ValueError(
                f"the feature store {self.store.folder} lacks {len(missing)} of {len(plan.wanted)} features, the first is side channel "
                f"{first_channel!r} of {missing[0].file}; run: {command}"
            )
