"""Sound of a media file, on the clock of its video."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from math import ceil
from typing import Any, Literal

import av
import av.container
import numpy as np
from numpy.typing import NDArray

from pave.data.media.child import run_in_child
from pave.data.media.container import MediaError, decode_packets, find_audio, find_video, first_frame_tick, open_media
from pave.data.media.mixing import mix_to_mono
from pave.data.media.stated import missing_sound
from pave.side_channels.base import AudioClip

logger = logging.getLogger(__name__)

MAX_SECONDS = 12 * 3600
"""Longest sound that is decoded."""
MAX_BYTES = 8 * 2**30
"""Most memory that the samples of a track may take, before resampling or after."""
RATES = (100, 768_000)
"""Sample rates of a file, in Hz, that can be right."""
_SAFE_PLANES = 7
"""From 8 channels on that lie one behind the other, PyAV counts them by reading beyond FFmpeg's list of 8, and may crash."""
_JITTER = 0.010
"""Time stamps that are off by less than this (or two ticks of the container's clock) are taken for rounding, not for a gap."""
_MAX_OVERLAP = 0.1
"""Sound that states to begin this many seconds before the sound in front of it ends is taken for damage."""
_FULL_SCALE = {"u8": 128.0, "s16": 32768.0, "s32": 2147483648.0, "s64": 9223372036854775808.0, "flt": 1.0, "dbl": 1.0}


def read_audio(
    path: str | os.PathLike[str],
    sample_rate: int,
    *,
    channels: Literal["mix", "all"] = "mix",
    start: float | None = None,
    end: float | None = None,
    offset: float = 0.0,
    on_corrupt: Literal["error", "keep"] = "error",
    timeout: float | None = None,
) -> AudioClip | None:
    """Decode the audio track of a video or sound file, mixed to mono if not told otherwise, and resampled.

    Of several tracks it is the first that the file flags as default, else the first; ``probe`` tells how many there are.

    Sample i of the result is what was heard at ``start_time + i / sample_rate``: gaps in the track are filled with silence,
    overlaps dropped. Zero of the clock is the first video frame, or in a file without video the first sample. The track may
    begin before or after the video.

    Args:
        path: a local file: mp4, mkv, avi, wav, flac, mp3, ogg, ...
        sample_rate: Hz of the result. Equal to the file's own rate: samples are not resampled at all.
        channels: "mix": mono; the mean of stereo, and of more channels FFmpeg's mix (:func:`mix_to_mono`). "all": samples are (n, channels), in the file's order.
        start: seconds on the video's clock; earlier samples are cut off. The samples are those of the whole track.
        end: seconds on the video's clock; samples at or after it are cut off.
        offset: seconds added to the start time, for a track known to be out of step. ``start`` and ``end`` apply after it.
        on_corrupt: "error": a damaged packet raises. "keep": it is silence, and a warning is logged.
        timeout: seconds; decodes in a child process that is ended when they are over.

    Returns:
        The clip, or None if the file has no audio track, the track holds no sample, or none lies between start and end.

    Raises:
        MediaError: if the file is missing, damaged, longer than MAX_SECONDS, of a sample rate out of RATES, in a codec without a
            decoder, would need more than MAX_BYTES, or the time is over.
        ValueError: if an argument is wrong.
    """
    if sample_rate < 1:
        raise ValueError(f"read_audio: sample_rate must be at least 1 Hz, got {sample_rate}")
    if on_corrupt not in ("error", "keep"):
        raise ValueError(f"read_audio: on_corrupt must be 'error' or 'keep', got {on_corrupt!r}")
    if channels not in ("mix", "all"):
        raise ValueError(f"read_audio: channels must be 'mix' or 'all', got {channels!r}")
    if start is not None and end is not None and not start < end:
        raise ValueError(f"read_audio: end ({end}) must come after start ({start})")
    if timeout is not None:
        options: dict[str, Any] = {
            "sample_rate": sample_rate,
            "channels": channels,
            "start": start,
            "end": end,
            "offset": offset,
        }
        fields = run_in_child("read_audio", path, {**options, "on_corrupt": on_corrupt}, timeout)
        return AudioClip(**fields) if fields else None
    name = os.fspath(path)
    problems: list[str] = []

    def damaged(what: str) -> None:
        if on_corrupt == "error":
            raise MediaError(
                f"{name}: the sound is damaged: {what}; replace the file, or read it with on_corrupt='keep'", "media-truncated"
            )
        problems.append(what)

    with open_media(name) as container:
        if find_audio(container, name) is None:
            return None
        video = find_video(container)
        zero = None
        if video is not None and video.time_base is not None:
            zero = first_frame_tick(container, video) * video.time_base
    with open_media(name) as container:
        until = None if end is None else Fraction(end - offset) + (zero or 0)
        track = _Track(name, mix=channels == "mix")
        stream = find_audio(container, name)
        assert stream is not None
        track.fill(container, stream, damaged, until)
    if problems:
        logger.warning(
            "%s: the sound is damaged in %d places, first: %s; going on without those", name, len(problems), problems[0]
        )
    if not track.pieces:
        return None
    check_bytes(round(track.length * sample_rate / track.rate), track.pieces[0].shape[1:], name)
    samples = _resample(np.concatenate(track.pieces), track.rate, sample_rate)
    begin = float(track.begin - (track.begin if zero is None else zero)) + offset
    first = 0 if start is None else max(0, ceil((start - begin) * sample_rate - 1e-6))
    stop = len(samples) if end is None else min(len(samples), ceil((end - begin) * sample_rate - 1e-6))
    if first >= stop:
        return None
    return AudioClip(samples[first:stop], sample_rate, begin + first / sample_rate)


def check_rate(rate: int, name: str) -> None:
    """Refuse a sample rate that cannot be right, before memory is laid out for it."""
    if not RATES[0] <= rate <= RATES[1]:
        raise MediaError(
            f"{name}: the file states a sample rate of {rate} Hz, which cannot be right for sound ({RATES[0]} to {RATES[1]} are read); "
            "correct its header, or read it as a sensor"
        )


def check_bytes(samples: int, channels: tuple[int, ...], name: str) -> None:
    """Refuse samples that would take more than ``MAX_BYTES``."""
    needed = 4 * samples * (channels[0] if channels else 1)
    if needed > MAX_BYTES:
        raise MediaError(
            f"{name}: the sound needs {needed / 2**30:.1f} GiB of memory (the limit is {MAX_BYTES / 2**30:.1f}); cut it into shorter "
            "files"
        )


class _Track:
    """Puts decoded frames where their time stamps say, at the track's own rate."""

    def __init__(self, name: str, mix: bool) -> None:
        self.name = name
        self.mix = mix
        self.pieces: list[NDArray[np.float32]] = []
        self.rate = 0
        self.begin = Fraction(0)
        """Time of the first sample on the container's clock."""
        self.length = 0

    def fill(
        self,
        container: av.container.InputContainer,
        stream: av.AudioStream,
        damaged: Callable[[str], None],
        until: Fraction | None,
    ) -> None:
        """Decode a stream as far as ``until`` on the container's clock (and a little further, for the resampler)."""
        for frame in self._decode(container, stream, damaged):
            self._place(frame, stream, damaged)
            if until is not None and self.begin + Fraction(self.length, self.rate) > until + 1:
                return

    def _decode(
        self, container: av.container.InputContainer, stream: av.AudioStream, damaged: Callable[[str], None]
    ) -> Iterator[av.AudioFrame]:
        packets = samples = 0
        for packet, frames in decode_packets(container, stream, self.name, damaged):
            packets += packet is not None
            samples += sum(frame.samples for frame in frames)
            yield from frames
        missing = missing_sound(container, stream, self.name, packets, samples)
        if missing is not None:
            damaged(missing)

    def _place(self, frame: av.AudioFrame, stream: av.AudioStream, damaged: Callable[[str], None]) -> None:
        heard = _samples(frame)
        if self.mix:
            heard = mix_to_mono(heard, [channel.name for channel in frame.layout.channels])
        tick = frame.time_base or stream.time_base or Fraction(1, frame.sample_rate)
        if not self.pieces:
            check_rate(frame.sample_rate, self.name)
            self.rate = frame.sample_rate
            self.begin = Fraction(frame.pts or 0) * tick
        if frame.sample_rate != self.rate:
            raise MediaError(
                f"{self.name}: the sample rate changes from {self.rate} to {frame.sample_rate} Hz within the track; re-encode it"
            )
        if self.pieces and heard.shape[1:] != self.pieces[0].shape[1:]:
            raise MediaError(
                f"{self.name}: the number of channels changes from {self.pieces[0].shape[1]} to {heard.shape[1]} within the "
                "track; re-encode it, or mix the channels"
            )
        samples = heard[: _stated_length(frame, tick, len(heard))].astype(np.float32)
        if frame.pts is not None:
            gap = round((frame.pts * tick - self.begin) * self.rate) - self.length
            if abs(gap) > max(_JITTER, float(2 * tick)) * self.rate:
                if gap < -_MAX_OVERLAP * self.rate:
                    damaged(f"its time stamps run back by {-gap / self.rate:.3g} s after {self.length / self.rate:.6g} s")
                if gap > 0:
                    self._check_length(gap, samples)
                    self._append(np.zeros((gap, *samples.shape[1:]), dtype=np.float32))
                samples = samples[max(0, -gap) :]
        self._append(samples)

    def _check_length(self, more: int, samples: NDArray[np.float32]) -> None:
        check_bytes(self.length + more, samples.shape[1:], self.name)
        if self.length + more > MAX_SECONDS * self.rate:
            raise MediaError(f"{self.name}: the sound is longer than {MAX_SECONDS / 3600:g} hours; cut it into shorter files")

    def _append(self, samples: NDArray[np.float32]) -> None:
        self._check_length(len(samples), samples)
        self.pieces.append(samples)
        self.length += len(samples)


def _stated_length(frame: av.AudioFrame, tick: Fraction, count: int) -> int:
    """How many of a frame's samples are meant to be heard. A container may say that the last frame of a codec with a fixed
    frame size is shorter than that; differences within the rounding of its clock say nothing."""
    if not frame.duration:
        return count
    stated = round(frame.duration * tick * frame.sample_rate)
    return stated if count - stated > 2 * tick * frame.sample_rate else count


def _samples(frame: av.AudioFrame) -> NDArray[np.float64]:
    """(samples, channels) in [-1, 1]."""
    frame = _interleaved(frame)
    kind = frame.format.name.removesuffix("p")
    samples = frame.to_ndarray().astype(np.float64)
    samples_nC: NDArray[np.float64] = samples.T if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels)
    if kind == "u8":
        samples_nC = samples_nC - 128.0
    return samples_nC / _FULL_SCALE[kind]


def _interleaved(frame: av.AudioFrame) -> av.AudioFrame:
    """The same samples, with those of one moment side by side where that is needed to read them."""
    if not frame.format.is_planar or frame.layout.nb_channels <= _SAFE_PLANES:
        return frame
    (interleaved,) = av.AudioResampler(frame.format.packed, frame.layout, frame.sample_rate).resample(frame)
    assert interleaved.samples == frame.samples
    return interleaved


def _resample(samples: NDArray[np.float32], rate: int, new_rate: int) -> NDArray[np.float32]:
    """Change the sample rate (FFmpeg's swresample); n samples become round(n * new_rate / rate), and time does not shift."""
    if rate == new_rate:
        return samples
    if samples.ndim == 2:
        return np.stack([_resample(channel, rate, new_rate) for channel in samples.T], axis=1)
    length = max(1, round(len(samples) * new_rate / rate))
    resampler = av.AudioResampler(format="flt", layout="mono", rate=new_rate)
    pieces = []
    for start in [*range(0, len(samples), rate), None]:
        frame = None
        if start is not None:
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(samples[None, start : start + rate]), format="flt", layout="mono"
            )
            frame.sample_rate = rate
        pieces += [out.to_ndarray().reshape(-1) for out in resampler.resample(frame)]
    resampled = np.concatenate(pieces).astype(np.float32, copy=False)[:length]
    return np.pad(resampled, (0, length - len(resampled)))
