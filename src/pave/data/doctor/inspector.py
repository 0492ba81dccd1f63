"""Looks at one video and everything that its samples name. Runs in a worker process; answers in plain values."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pave.config import SideChannelConfig
from pave.data.acting import how_much_acts
from pave.data.dataset import PatchDataset
from pave.data.doctor.defects import DEFECTS
from pave.data.doctor.inside import look_inside
from pave.data.doctor.setup import AUDIO, Setup
from pave.data.media import AudioInfo, MediaInfo, VideoClip, VideoInfo, picture_remarks, probe, read_frames, sound_remarks
from pave.data.samples import Sample
from pave.side_channels import build_encoder, encoder_source, modules_named
from pave.side_channels.base import SideFeatures

if TYPE_CHECKING:
    from pave.data.doctor.prompts import PromptCheck

GAP_SECONDS = 5.0
"""Frames that are further apart than this look like damaged time stamps."""
LENGTH_SECONDS, LENGTH_SHARE = 0.5, 0.1
"""Sound may differ from its video by the greater of these seconds and this share of the video."""

_FROM_VIDEO = ("audio", "video", "own")
"""Sources that a video can give without a file of the channel's own."""
Raw = dict[str, Any]
"""A finding before it is known which samples have it: code, message, file, channel, and places in the list of samples."""


class Inspector:
    """Looks at videos one by one.

    Args:
        setup: what to look for.

    Raises:
        ValueError: if an encoder or the base cannot be had, or an encoder's width is not the patch's.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        with modules_named(setup.encoders):
            self.sources = {name: encoder_source(channel.encoder) for name, channel in setup.channels.items()}
        self.dataset: PatchDataset | None = None
        self.prompts: PromptCheck | None = None
        if setup.quick:
            return
        encoders = {name: build_encoder(channel.encoder, setup.encoders) for name, channel in setup.channels.items()}
        self.dataset = PatchDataset([], setup.frames, encoders, setup.channels)
        if setup.base is not None:
            from pave.data.doctor.prompts import PromptCheck  # loads transformers

            self.prompts = PromptCheck(setup)

    def inspect(self, samples: Sequence[Sample], announce: Callable[[str], None], skip: Collection[str] = ()) -> list[Raw]:
        """Everything wrong with the files of samples that share a video.

        Args:
            samples: of one video.
            announce: called with its path before a file is read, by which a watcher knows what hangs.
            skip: files that are not read.
        """
        return _Visit(self, samples, announce, skip).findings()


class _Visit:
    """One call of ``inspect``."""

    def __init__(
        self,
        inspector: Inspector,
        samples: Sequence[Sample],
        announce: Callable[[str], None],
        skip: Collection[str],
    ) -> None:
        self.inspector, self.setup = inspector, inspector.setup
        self.samples, self.announce, self.skip = samples, announce, skip
        self.video = samples[0].video
        self.everyone = list(range(len(samples)))
        self.info: MediaInfo | None = None
        self.clip: VideoClip | None = None
        self.found: list[Raw] = []

    def findings(self) -> list[Raw]:
        if self.video not in self.skip:
            self.announce(self.video)
            self.clip = self._video()
        features: dict[tuple[str, str | None], SideFeatures | None] = {}
        for (name, path, stated), places in self._uses().items():
            if path is None:
                self._from_video(name, stated, places)
            elif path not in self.skip and not self._file(name, path, places):
                continue
            own = path if path is not None else self.video
            decodes = name in self.setup.channels and not self.setup.quick and own not in self.skip
            own_files = path is None and self.inspector.sources.get(name) not in _FROM_VIDEO
            if not decodes or own_files or (path is None and (stated or self.info is None)):
                continue
            self.announce(own)
            features[name, path] = self._features(name, path, places)
        if self.clip is not None and self.inspector.prompts is not None:
            for place, sample in enumerate(self.samples):
                side = {name: features.get((name, sample.side_channels.get(name))) for name in self.setup.channels}
                side = {name: None if _is_null(sample, name) else found for name, found in side.items()}
                for code, message in self.inspector.prompts.check(sample, self.clip, side):
                    self._add(code, message, [place], None)
        return self.found

    def _add(self, code: str, message: str, places: Sequence[int], file: str | None, channel: str | None = None) -> None:
        if file is not None:
            message = message.removeprefix(f"{file}: ")
        self.found.append({"code": code, "message": message, "file": file, "channel": channel, "places": list(places)})

    def _error(self, error: ValueError, fallback: str, places: Sequence[int], file: str, channel: str | None = None) -> None:
        code = getattr(error, "code", "")
        self._add(code if code in DEFECTS else fallback, " ".join(str(error).split()), places, file, channel)

    def _uses(self) -> dict[tuple[str, str | None, bool], list[int]]:
        """Places of the samples by (channel, its file or None, whether the sample says null)."""
        uses: dict[tuple[str, str | None, bool], list[int]] = {}
        for place, sample in enumerate(self.samples):
            known = [*self.setup.channels, *([] if self.setup.channels else [AUDIO]), *self.setup.required]
            others = [name for name, path in sample.side_channels.items() if path is not None]
            for name in dict.fromkeys([*known, *others]):
                path = sample.side_channels.get(name)
                stated = path is None and name in sample.side_channels
                uses.setdefault((name, path, stated), []).append(place)
        return uses

    # --- the video

    def _video(self) -> VideoClip | None:
        """Probe and decode; None where that is not wanted or fails."""
        try:
            info = probe(self.video)
        except ValueError as error:
            self._error(error, "media-unreadable", self.everyone, self.video)
            return None
        if info.video is None:
            self._add("video-none", "the file has no video stream", self.everyone, self.video)
            return None
        self.info = info
        self._times(info.video)
        self._remarks(picture_remarks(info.video), self.everyone, self.video)
        if info.problem is not None:
            self._add("media-truncated", info.problem, self.everyone, self.video)
            return None
        if self.setup.quick:
            wanted = self.setup.frames.num_frames
            self._count(
                info.video.num_frames, wanted if self.setup.frames.end is None and not self.setup.frames.start else None
            )
            return None
        try:
            clip = read_frames(self.video, self.setup.frames)
        except ValueError as error:
            self._error(error, "media-unreadable", self.everyone, self.video)
            return None
        self._count(len(clip.times_F), None if self.setup.frames.num_frames is None else clip.num_frames_requested)
        return clip

    def _count(self, there: int, wanted: int | None) -> None:
        if wanted is not None and there < wanted:
            self._add("frames-few", f"{wanted} frames are asked for, {there} are there", self.everyone, self.video)

    def _remarks(
        self, remarks: Iterable[tuple[str, str]], places: Sequence[int], file: str, channel: str | None = None
    ) -> None:
        for code, message in remarks:
            self._add(code, message, places, file, channel)

    def _times(self, video: VideoInfo) -> None:
        if not video.stamped:
            message = "the file does not say when its frames are shown; their times are counted"
            self._add("times-counted", message, self.everyone, self.video)
        elif video.longest_gap > GAP_SECONDS:
            message = f"for {video.longest_gap:.4g} s no new frame is shown; the time stamps may be damaged"
            self._add("times-gap", message, self.everyone, self.video)
        elif video.variable_rate:
            message = f"the frame rate varies around {video.average_rate:.4g} a second"
            self._add("rate-variable", message, self.everyone, self.video)

    # --- channels

    def _from_video(self, name: str, stated: bool, places: list[int]) -> None:
        """A channel for which a sample names no file."""
        if stated:
            self._add("channel-missing", f"the sample says that it has no {name}", places, None, name)
            return
        source = self.inspector.sources.get(name, "audio" if name == AUDIO else None)
        if source == "audio":
            if self.info is None:
                return
            if self.info.audio is None:
                self._no_sound(self.info, "the video has no audio track", places, self.video, name)
            else:
                self._sound(self.info.audio, places, self.video, name)
        elif source not in _FROM_VIDEO:
            self._add("channel-missing", f"the sample names no file for the channel {name}", places, None, name)

    def _file(self, name: str, path: str, places: list[int]) -> bool:
        """Look at a channel's own file without decoding it; False where nothing more can be done with it."""
        if not os.path.exists(path):
            self._add("channel-file-missing", "there is no such file or folder", places, path, name)
            return False
        source = self.inspector.sources.get(name)
        if source not in ("audio", "video"):
            return True
        self.announce(path)
        try:
            info = probe(path)
        except ValueError as error:
            self._error(error, f"{source}-unreadable", places, path, name)
            return False
        if source == "video":
            if info.video is None:
                self._add("video-none", "the file has no video stream", places, path, name)
                return False
            self._remarks(picture_remarks(info.video), places, path, name)
            return True
        if info.audio is None:
            self._no_sound(info, "the file has no audio track", places, path, name)
            return False
        self._sound(info.audio, places, path, name)
        return True

    def _no_sound(self, info: MediaInfo, message: str, places: list[int], file: str, channel: str) -> None:
        if info.audio_error is None:
            self._add("audio-none", message, places, file, channel)
        else:
            self._add("codec-unknown", info.audio_error, places, file, channel)

    def _sound(self, audio: AudioInfo, places: list[int], file: str, channel: str) -> None:
        if audio.duration == 0:
            self._add("media-empty", "its audio track holds no sound", places, file, channel)
            return
        self._remarks(sound_remarks(audio), places, file, channel)
        if abs(audio.start_time) > self.setup.max_offset:
            side = "after" if audio.start_time > 0 else "before"
            message = f"the sound begins {abs(audio.start_time):.3g} s {side} the picture"
            self._add("audio-offset", message, places, file, channel)
        if self.info is None or self.info.video is None:
            return
        seconds = self.info.video.duration
        if abs(audio.duration - seconds) > max(LENGTH_SECONDS, LENGTH_SHARE * seconds):
            code = "audio-short" if audio.duration < seconds else "audio-long"
            self._add(code, f"the sound lasts {audio.duration:.4g} s, the video {seconds:.4g} s", places, file, channel)

    def _features(self, name: str, path: str | None, places: list[int]) -> SideFeatures | None:
        """The channel's features, made as in training."""
        assert self.inspector.dataset is not None
        file = self.video if path is None else path
        try:
            features = self.inspector.dataset.features(name, self.samples[places[0]])
        except ValueError as error:
            self._error(error, f"{self.inspector.sources[name]}-unreadable", places, file, name)
            return None
        if features is None:
            if self.inspector.sources[name] != "audio":
                self._add("channel-missing", f"nothing was read for the channel {name}", places, file, name)
            return None
        self._values(features, self.setup.channels[name], places, file, name)
        for code, message in look_inside(self.inspector.dataset.encoders[name], self.video, path):
            self._add(code, message, places, file, name)
        return features

    def _values(self, features: SideFeatures, channel: SideChannelConfig, places: list[int], file: str, name: str) -> None:
        values_KMC, times_K = features.features_KMC.float(), features.times_K
        if values_KMC.shape[-1] != channel.width:
            message = f"the features are {values_KMC.shape[-1]} wide, the patch takes {channel.width}"
            self._add("features-width", message, places, file, name)
        if not len(features):
            self._add("channel-empty", "it gives not a single step", places, file, name)
            return
        finite_K = values_KMC.isfinite().all(dim=2).all(dim=1)
        if not bool(finite_K.all()):
            message = f"{int((~finite_K).sum())} of {len(features)} steps hold NaN or infinity"
            self._add("features-not-finite", message, places, file, name)
        elif len(features) > 1 and bool((values_KMC == values_KMC[:1]).all()):
            self._add("features-constant", f"all {len(features)} steps are the same", places, file, name)
        if self.info is None or self.info.video is None:
            return
        seconds, first, last = self.info.video.duration, float(times_K.min()), float(times_K.max())
        apart = not bool(((times_K >= 0) & (times_K <= seconds)).any())
        if apart:
            message = f"its steps lie from {first:.4g} s to {last:.4g} s, the video lasts {seconds:.4g} s"
            self._add("channel-apart", message, places, file, name)
        if self.clip is None or values_KMC.shape[-1] != channel.width:
            return
        assert self.inspector.dataset is not None
        encoder = self.inspector.dataset.encoders[name]
        acting = how_much_acts(features, self.clip.times_F, channel.fusion, encoder, self.setup.frames)
        if acting.share == 0 and not apart:
            self._add("channel-idle", str(acting), places, file, name)
        elif acting.is_little and not apart:
            self._add("channel-little", str(acting), places, file, name)


def _is_null(sample: Sample, name: str) -> bool:
    return name in sample.side_channels and sample.side_channels[name] is None
