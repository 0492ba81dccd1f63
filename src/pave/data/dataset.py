"""Samples to decoded items: frames, their times, side features. Decoding happens when an item is asked for."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from pave.config import SideChannelConfig
from pave.data.items import PatchItem, SampleError, VideoVision
from pave.data.media import FrameSampling, read_frames
from pave.data.samples import Sample
from pave.data.sources import files_read, read_source
from pave.data.store.plan import identify, wanted_key
from pave.data.store.reading import StoredChannels
from pave.data.vision import VisionSource
from pave.side_channels import FEATURES_VERSION
from pave.side_channels.base import SideEncoder, SideFeatures
from pave.utils.content import ContentHashes, stamp_or_none, unchanged
from pave.utils.files import atomic_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecodedVideo:
    """What is read from the files of one sample, and cached."""

    frames_FHWC: NDArray[np.uint8]
    times_F: NDArray[np.float64]
    side: Mapping[str, SideFeatures | None]
    vision: VideoVision | None = None
    """Where it is there, the frames have a shape only."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays."""
        count = self.times_F.nbytes + (self.frames_FHWC.nbytes if self.vision is None else self.vision.num_bytes)
        for features in self.side.values():
            if features is not None:
                count += features.features_KMC.nbytes + features.times_K.nbytes
        return count


@dataclass
class CacheReport:
    """What a cache did so far, in this process."""

    hits: int = 0
    misses: int = 0
    items: int = 0
    """Videos that this process put into it."""
    num_bytes: int = 0
    """Bytes of those."""
    full: bool = False
    """True once a video did not fit any more."""


class PatchDataset(Dataset[PatchItem]):
    """A map-style dataset of ``PatchItem``. It works in the worker processes of a DataLoader.

    Samples about one video (and the same side files) share one entry of the cache. A cache is filled until it is full and
    then stays as it is; each process has its own memory cache, while a folder is shared by all and outlives the run. Its entries
    are named by the files' paths and stamps (``pave.utils.content``), the sampling, and the encoders as the feature store names
    them: with their weights, their code and the version of this library's readers.

    A video without an audio track lacks an audio channel; that is an ordinary case.

    Args:
        samples: what to read.
        frame_sampling: which frames of a video are taken.
        encoders: by channel, what makes its features. Their weights stay on the CPU.
        channels: the patch's channels by name.
        cache: "memory", a folder, or None.
        cache_bytes: most that the cache may hold; for a folder, most that one process adds.
        stored: where features are read from instead of running encoders (``pave.data.store``), of all channels.
        vision: where the base's frozen vision features come from; then frames are not decoded here. None: frames are decoded.

    Raises:
        ValueError: if a channel has no encoder, or one of another width; or the cache is a folder and nothing says which weights or
            code an encoder has.
        SampleError: from an item, if its files are missing or damaged, do not suit an encoder, or were changed while they were read.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        frame_sampling: FrameSampling,
        encoders: Mapping[str, SideEncoder[Any]],
        channels: Mapping[str, SideChannelConfig],
        *,
        cache: str | None = None,
        cache_bytes: int = 4 * 2**30,
        stored: StoredChannels | None = None,
        vision: VisionSource | None = None,
    ) -> None:
        missing = sorted(set(channels) - set(encoders))
        if missing:
            raise ValueError(f"side channel {missing[0]!r} has no encoder")
        for name, channel in channels.items():
            if encoders[name].width != channel.width:
                raise ValueError(
                    f"side channel {name!r}: the encoder {channel.encoder.name!r} gives features of width {encoders[name].width}, but the "
                    f"patch says width {channel.width}; set the channel's width to {encoders[name].width}"
                )
        self.samples = list(samples)
        self.frame_sampling = frame_sampling
        self.encoders = {name: encoders[name] for name in channels}
        self.stored = stored
        self.vision = vision
        self.cache_bytes = cache_bytes
        self.cache_report = CacheReport()
        self._memory: dict[str, tuple[str, DecodedVideo]] | None = {} if cache == "memory" else None
        self._folder = Path(cache) if cache is not None and cache != "memory" else None
        self._ids = dict.fromkeys(self.encoders, "")  # in memory, there are no other encoders
        if self._folder is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:  # a run does without a cache
                logger.warning("%s: the cache cannot be written (%s); videos are decoded each time", self._folder, error)
                self._folder = None
        if self._folder is not None:
            hashes = ContentHashes(self._folder / "hashes.json")
            self._ids = {name: identify(encoder, hashes).id for name, encoder in self.encoders.items()}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> PatchItem:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[PatchItem]:
        """The items of a batch, in order; a video that several of them are about is read once."""
        return self.read([self.samples[index] for index in indices])

    def read(self, samples: Sequence[Sample]) -> list[PatchItem]:
        """The items of any samples, in order, whether they are the dataset's own or not; the cache is the same.

        Raises:
            SampleError: if files of one are missing or damaged or do not suit an encoder.
        """
        videos: dict[str, DecodedVideo] = {}
        items = []
        for sample in samples:
            source = source_of(sample)
            try:
                video = videos.get(source) or self._video(sample)
            except ValueError as error:
                raise SampleError(f"sample {sample.id!r}: {error}", getattr(error, "code", None)) from error
            videos[source] = video
            items.append(PatchItem(sample.id, video.frames_FHWC, video.times_F, sample.turns, video.side, video.vision, source))
        return items

    @property
    def types(self) -> list[str]:
        """The type of every sample, for a staged order."""
        return [sample.type for sample in self.samples]

    # --- reading

    def _video(self, sample: Sample) -> DecodedVideo:
        with unchanged(self._files(sample)):  # or frames of one file might meet the sound of another
            if self._memory is None and self._folder is None:
                return self._decode(sample)
            key = self._key(sample)
            found = self._remembered(key, sample) if self._memory is not None else self._load(key, sample)
            if found is not None:
                self.cache_report.hits += 1
                return found
            self.cache_report.misses += 1
            video = self._decode(sample)
        self._keep(key, sample, video)
        return video

    def _files(self, sample: Sample) -> list[str]:
        """Every file that decides the item of a sample."""
        behind = [files_read(encoder, sample.video, path) for encoder, path in self._streams(sample).values()]
        return list(dict.fromkeys([sample.video, *itertools.chain.from_iterable(files or () for files in behind)]))

    def _streams(self, sample: Sample) -> dict[str, tuple[SideEncoder[Any], str | None]]:
        """By channel its encoder and what the sample names for it, without the channels that the sample says are missing."""
        sides = sample.side_channels
        return {name: (e, sides.get(name)) for name, e in self.encoders.items() if sides.get(name, "") is not None}

    def _decode(self, sample: Sample) -> DecodedVideo:
        vision = None if self.vision is None else self.vision.load(sample.video)
        clip = read_frames(sample.video, self.frame_sampling) if vision is None else None
        side = {name: self.features(name, sample) for name in self.encoders}
        if vision is not None:
            return DecodedVideo(vision.shape_of_frames, vision.times_F, side, vision)
        assert clip is not None
        return DecodedVideo(clip.frames_FHWC, clip.times_F, side)

    def features(self, name: str, sample: Sample) -> SideFeatures | None:
        """A channel's features, not through the cache: from its own file if the sample names one, else from the video; None where
        the channel is missing.

        Raises:
            ValueError: if a file is missing or damaged or does not suit the encoder.
        """
        try:
            with own_randomness():  # an encoder gives the same features whenever and in whatever process it is asked
                return self._features(name, sample)
        except ArithmeticError as error:  # a number that no reader expected concerns its sample alone
            path = sample.side_channels.get(name) or sample.video
            raise ValueError(f"{path}: a number in it is out of range ({' '.join(str(error).split())[:120]})") from error

    def _features(self, name: str, sample: Sample) -> SideFeatures | None:
        encoder = self.encoders[name]
        path = sample.side_channels.get(name)
        if path is None and name in sample.side_channels:
            return None
        if self.stored is not None:
            return self.stored.load(name, sample.video, path)
        source = read_source(encoder, sample.video, path)
        return None if source is None else encoder.encode(source)

    # --- caching

    def _key(self, sample: Sample) -> str:
        streams = {
            name: wanted_key(encoder, self._ids[name], sample.video, path, _untouched)
            for name, (encoder, path) in self._streams(sample).items()
        }
        frames = self.frame_sampling.to_dict() if self.vision is None else "no frames"
        facts = [FEATURES_VERSION, _untouched(sample.video), frames, streams]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]

    def _remembered(self, key: str, sample: Sample) -> DecodedVideo | None:
        """The entry of this process, and no entry of files that were replaced since."""
        assert self._memory is not None
        before, video = self._memory.get(source_of(sample), ("", None))
        if video is None or before == key:
            return video
        del self._memory[source_of(sample)]
        self.cache_report.items -= 1
        self.cache_report.num_bytes -= video.num_bytes
        return None

    def _keep(self, key: str, sample: Sample, video: DecodedVideo) -> None:
        report = self.cache_report
        if report.num_bytes + video.num_bytes > self.cache_bytes:
            if not report.full:
                report.full = True
                logger.warning(
                    "the cache is full with %d videos in %.2f GB; the others are decoded each time (a recipe's cache_gigabytes, or "
                    "gigabytes of keep_videos)",
                    report.items,
                    report.num_bytes / 2**30,
                )
            return
        if self._memory is not None:
            self._memory[source_of(sample)] = key, video
        else:
            try:
                self._store(key, video)
            except (OSError, safetensors.SafetensorError) as error:  # a run does without a cache
                report.full = True
                self.cache_bytes = 0
                logger.warning(
                    "%s: the cache cannot be written (%s); further videos are decoded each time", self._folder, error
                )
                return
        report.items += 1
        report.num_bytes += video.num_bytes

    def _path(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / key[:2] / f"{key}.safetensors"

    def _store(self, key: str, video: DecodedVideo) -> None:
        tensors = {"times": torch.from_numpy(video.times_F)}
        if video.vision is None:
            tensors["frames"] = torch.from_numpy(video.frames_FHWC)
        for name, features in video.side.items():
            if features is not None:
                tensors[f"{name}.features"] = features.features_KMC.contiguous()
                tensors[f"{name}.times"] = features.times_K.contiguous()
        with atomic_path(self._path(key), durable=False) as work:  # can be made again
            safetensors.torch.save_file(tensors, work)

    def _load(self, key: str, sample: Sample) -> DecodedVideo | None:
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            tensors = safetensors.torch.load_file(path)
            side = {
                name: SideFeatures(tensors[f"{name}.features"], tensors[f"{name}.times"])
                if f"{name}.features" in tensors
                else None
                for name in self.encoders
            }
            if self.vision is None:
                return DecodedVideo(tensors["frames"].numpy(), tensors["times"].numpy(), side)
        except (OSError, safetensors.SafetensorError, KeyError, ValueError):
            logger.warning("%s is damaged and is made again", path)
            return None
        vision = self.vision.load(sample.video)  # kept elsewhere
        return DecodedVideo(vision.shape_of_frames, vision.times_F, side, vision)


def source_of(sample: Sample) -> str:
    """Names the files of a sample's video and side channels."""
    return json.dumps([os.path.abspath(sample.video), dict(sample.side_channels)], sort_keys=True, default=str)


@contextlib.contextmanager
def own_randomness() -> Iterator[None]:
    """Random numbers on the CPU that start from one seed, and leave those of the program around alone."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(0)
        np.random.seed(0)
        torch.default_generator.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _untouched(file: str) -> str:
    """What a file's content goes by in a cache: its place and stamp. A missing file is reported by the reader, not here."""
    return json.dumps([os.path.abspath(file), stamp_or_none(file)])
