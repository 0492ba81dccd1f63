"""From files to frames and side features, through a cache by content."""

from __future__ import annotations

import json
import threading
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import torch

from pave.config import EncoderConfig, SideChannelConfig
from pave.data.dataset import PatchDataset
from pave.data.media import FrameSampling, VideoClip, read_frames
from pave.data.samples import Sample
from pave.data.sources import files_read
from pave.data.store.plan import wanted_key
from pave.data.store.reading import StoredChannels
from pave.data.vision import VisionSource
from pave.inference.cache import ByteCache
from pave.side_channels import SideEncoder, SideFeatures, build_encoder, modules_named
from pave.utils.content import ContentHashes


class MediaReader:
    """Reads frames and side features, and keeps them by what is in the files.

    Args:
        cache: where they are kept.
        encoders: modules with side encoders of one's own that a patch may name.
        stored: where side features come from instead of encoders that are run, with the config of each encoder's channel.
        vision: where the base's features of a video come from instead of its frames.
    """

    def __init__(
        self,
        cache: ByteCache,
        *,
        encoders: str | Iterable[str] = (),
        stored: tuple[StoredChannels, Mapping[str, EncoderConfig]] | None = None,
        vision: VisionSource | None = None,
    ) -> None:
        self.cache = cache
        self.vision = vision
        self.hashes = ContentHashes()
        self.modules = (encoders,) if isinstance(encoders, str) else tuple(encoders)
        self._stored = None if stored is None else stored[0]
        self._names = {} if stored is None else {identity(config): name for name, config in stored[1].items()}
        self._built: dict[str, SideEncoder[Any]] = {}
        self._lock = threading.Lock()

    def encoder(self, config: EncoderConfig, device: torch.device | str | None = None) -> SideEncoder[Any]:
        """The encoder of a config, built once while a patch names it; on a device, or wherever it is.

        Raises:
            ValueError: see ``build_encoder``.
        """
        with self._lock:
            return self._encoder(config, device)

    def _encoder(self, config: EncoderConfig, device: torch.device | str | None) -> SideEncoder[Any]:
        key = identity(config)
        encoder = self._built.get(key)
        if encoder is None:
            with modules_named(self.modules):
                encoder = self._built[key] = build_encoder(config)
        return encoder if device is None else encoder.to(device)

    def keep_encoders(self, configs: Iterable[EncoderConfig]) -> None:
        """Let go of the encoders of all other configs, so that their memory goes with the patches that named them."""
        wanted = {identity(config) for config in configs}
        for key in list(self._built):  # without the lock, which is held while an encoder runs
            if key not in wanted:
                self._built.pop(key, None)

    # --- the video

    def content(self, file: str) -> str | None:
        """What a file's content goes by; None for one that cannot be read: whoever decodes it says why."""
        try:
            return self.hashes.of(file)
        except ValueError:
            return None

    def clip(self, video: str, sampling: FrameSampling) -> VideoClip:
        """The frames of a video.

        Raises:
            ValueError: if it cannot be read.
        """
        key = self._frames_key(video, sampling)
        kept: VideoClip | None = self.cache.get(key)[1] if key is not None else None
        if kept is not None:
            return kept
        clip = read_frames(video, sampling)
        if key is not None:
            self.cache.put(key, clip, clip.frames_FHWC.nbytes + clip.times_F.nbytes + clip.indices_F.nbytes)
        return clip

    def drop_clip(self, video: str, sampling: FrameSampling) -> None:
        """Let go of the frames of a video: what was made of them is kept."""
        key = self._frames_key(video, sampling)
        if key is not None:
            self.cache.drop(key)

    def _frames_key(self, video: str, sampling: FrameSampling) -> Hashable:
        """What the frames of a video are kept under; None where nothing is."""
        content = self.content(video) if self.cache.max_bytes else None
        return None if content is None else ("frames", content, json.dumps(sampling.to_dict(), sort_keys=True))

    # --- side channels

    def features(
        self, name: str, channel: SideChannelConfig, sample: Sample, device: torch.device | str
    ) -> SideFeatures | None:
        """The features of a channel for one sample, from its own file if the sample names one, else from the video.

        Raises:
            ValueError: if a file is missing or damaged or does not suit the encoder.
        """
        path = sample.side_channels.get(name)
        if path is None and name in sample.side_channels:
            return None
        if self._stored is not None:
            return self._from_store(name, channel, sample.video, path)
        with self._lock:  # encoders draw from the random numbers that all threads share
            encoder = self._encoder(channel.encoder, device)
            key = self._features_key(channel.encoder, encoder, sample.video, path)
            there, features = self.cache.get(key) if key is not None else (False, None)
            if there:
                return features
            reading = PatchDataset((), FrameSampling(), {name: encoder}, {name: channel})
            features = _on_cpu(reading.features(name, sample))
            if key is not None:
                size = 0 if features is None else features.features_KMC.nbytes + features.times_K.nbytes
                self.cache.put(key, features, size)
            return features

    def _features_key(
        self, config: EncoderConfig, encoder: SideEncoder[Any], video: str, path: str | None
    ) -> tuple[str, str] | None:
        if not self.cache.max_bytes:
            return None
        try:
            key = wanted_key(encoder, identity(config), video, path, self.hashes.of)
        except ValueError:  # a file that cannot be read: whoever reads it says why
            return None
        return None if key is None else ("side", key)

    def _from_store(self, name: str, channel: SideChannelConfig, video: str, path: str | None) -> SideFeatures | None:
        assert self._stored is not None
        stored = self._names.get(identity(channel.encoder))
        if stored is None:
            raise ValueError(
                f"side channel {name!r}: its patch was loaded after the feature store was chosen; call use_store again"
            )
        return self._stored.load(stored, video, path)

    def files(self, config: EncoderConfig, video: str, path: str | None) -> list[str]:
        """Every file that decides the features of a channel."""
        return files_read(self.encoder(config), video, path) or []


def identity(config: EncoderConfig) -> str:
    """A config as text, by which one process knows its encoder."""
    return json.dumps(config.to_dict(), sort_keys=True, default=str)


def _on_cpu(features: SideFeatures | None) -> SideFeatures | None:
    return None if features is None else SideFeatures(features.features_KMC.cpu(), features.times_K.cpu())
