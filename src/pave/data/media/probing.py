"""What a media file holds, from its packets and its first frame only."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from statistics import median

from pave.data.media.child import run_in_child
from pave.data.media.container import (
    MediaError,
    PacketIndex,
    decode_packets,
    find_video,
    first_frame_tick,
    index_packets,
    iterate_packets,
    nominal_rate,
    open_media,
    require_video,
)


@dataclass(frozen=True)
class VideoInfo:
    """A video stream."""

    codec: str
    width: int
    """Pixels, as the picture is shown: after the rotation."""
    height: int
    rotation: int
    """Degrees counter-clockwise by which the stored picture is turned to be shown."""
    num_frames: int
    """Frames that the container announces."""
    duration: float
    """Seconds from the first frame's appearance to the last one's disappearance."""
    average_rate: float
    """num_frames / duration."""
    variable_rate: bool
    """True if the time between some two frames is over 10 % longer or shorter than the median."""
    longest_gap: float
    """Seconds of the longest time between two frames that follow each other; 0 for a single frame."""
    stamped: bool
    """False where the container does not say when frames are shown, or says it twice for one time: then they are counted."""


@dataclass(frozen=True)
class AudioInfo:
    """An audio stream."""

    codec: str
    sample_rate: int
    channels: int
    start_time: float
    """Seconds after the first video frame (negative: sound comes first); 0 in a file without video."""
    duration: float
    """Seconds."""


@dataclass(frozen=True)
class MediaInfo:
    """A media file: its container and the streams that ``read_frames`` and ``read_audio`` would read."""

    container: str
    video: VideoInfo | None
    audio: AudioInfo | None
    problem: str | None
    """Why the file looks damaged, as far as can be told without decoding it; else None."""


def probe(path: str | os.PathLike[str], *, timeout: float | None = None) -> MediaInfo:
    """Look into a media file. Reads all of its packets but decodes only the first frame.

    Args:
        path: a local file.
        timeout: seconds; reads in a child process that is ended when they are over.

    Raises:
        MediaError: if the file is missing, cannot be read, or has neither video nor audio.
    """
    if timeout is not None:
        fields = run_in_child("probe", path, {}, timeout)
        video, audio = fields.pop("video"), fields.pop("audio")
        return MediaInfo(video=video and VideoInfo(**video), audio=audio and AudioInfo(**audio), **fields)
    name = os.fspath(path)
    with open_media(name) as container:
        kind = container.format.name.split(",")[0]
        stream = find_video(container)
        if stream is None and not container.streams.audio:
            require_video(container, name)
        index = None if stream is None else index_packets(container, require_video(container, name), name)
    video = None if index is None else _video_info(name, index)
    audio, problem = _audio_info(name)
    return MediaInfo(container=kind, video=video, audio=audio, problem=(index.problem if index else None) or problem)


def _video_info(name: str, index: PacketIndex) -> VideoInfo:
    with open_media(name) as container:
        stream = require_video(container, name)
        frame = next((frame for _, frames in decode_packets(container, stream, lambda what: None) for frame in frames), None)
        if frame is None:
            raise MediaError(f"{name}: none of the video's {index.num_packets} packets decodes to a frame", "media-empty")
        rate = nominal_rate(stream)
        turned = frame.rotation % 180 != 0
        if index.ticks:
            num_frames, seconds = len(index.ticks), float((index.end_tick - index.ticks[0]) * index.tick)
        else:
            num_frames, seconds = index.num_packets, float(index.num_packets / rate)
        steps = [b - a for a, b in zip(index.ticks, index.ticks[1:])]
        usual = median(steps) if steps else 0
        return VideoInfo(
            codec=stream.codec_context.name,
            width=frame.height if turned else frame.width,
            height=frame.width if turned else frame.height,
            rotation=frame.rotation,
            num_frames=num_frames,
            duration=seconds,
            average_rate=num_frames / seconds,
            variable_rate=any(abs(step - usual) > max(1.5, 0.1 * usual) for step in steps),
            longest_gap=float(max(steps, default=0) * index.tick),
            stamped=index.trusted,
        )


def _audio_info(name: str) -> tuple[AudioInfo | None, str | None]:
    problems: list[str] = []
    with open_media(name) as container:
        if not container.streams.audio:
            return None, None
        if container.streams.audio[0].codec_context is None:
            return None, "no decoder for its audio stream"
        video = find_video(container)
        zero = None
        if video is not None and video.time_base is not None:
            zero = first_frame_tick(container, video) * video.time_base
    with open_media(name) as container:
        # The first packets may only hold the encoder's priming, so the start is that of the first frame that comes out.
        decoded = decode_packets(container, container.streams.audio[0], problems.append)
        begin = next(
            (frame.pts * frame.time_base for _, frames in decoded for frame in frames if frame.pts is not None), Fraction(0)
        )
    with open_media(name) as container:
        stream = container.streams.audio[0]
        tick = stream.time_base or Fraction(0)
        packets = iterate_packets(container, stream, problems.append)
        end = max(((p.pts + (p.duration or 0)) * tick for p in packets if p.pts is not None), default=begin)
        info = AudioInfo(
            codec=stream.codec_context.name,
            sample_rate=stream.codec_context.sample_rate,
            channels=stream.codec_context.channels,
            start_time=0.0 if zero is None else float(begin - zero),
            duration=float(max(Fraction(0), end - begin)),
        )
    return info, next(iter(problems), None)
