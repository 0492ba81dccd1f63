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
    find_audio,
    find_video,
    first_frame_tick,
    index_packets,
    iterate_packets,
    nominal_rate,
    open_media,
    require_video,
    video_tracks,
)
from pave.data.media.display import display_of

_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
"""How brightness is stored (ITU-T H.273, transfer characteristics) in video of a high dynamic range."""


@dataclass(frozen=True)
class VideoInfo:
    """A video stream."""

    codec: str
    width: int
    """Pixels, as the picture is shown: square, after the rotation."""
    height: int
    rotation: int
    """Degrees counter-clockwise by which the stored picture is turned to be shown: 0, 90, 180 or 270."""
    mirrored: bool
    """True if left and right change places after that."""
    pixel_aspect: float
    """Width of a stored pixel over its height; 1 for square ones."""
    interlaced: bool
    """True if its first picture holds two half pictures of different moments, line by line. They are not taken apart."""
    hdr: str | None
    """PQ or HLG where brightness is stored for a high dynamic range, which is not mapped to the usual one; else None."""
    track: int
    """Which of the file's video tracks it is, from 1."""
    tracks: int
    """How many there are, cover pictures aside."""
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
    flagged: int
    """Packets that FFmpeg marks as damaged. All may decode: marked too is what follows a counter that begins anew."""
    stamped: bool
    """False where the container does not say when frames are shown, or says it twice for one time: then they are counted."""


@dataclass(frozen=True)
class AudioInfo:
    """An audio stream."""

    codec: str
    sample_rate: int
    channels: int
    track: int
    """Which of the file's audio tracks it is, from 1."""
    tracks: int
    """How many there are."""
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
    audio_error: str | None
    """Why ``audio`` is None although there is a track; else None."""
    problem: str | None
    """Why the file looks damaged, as far as can be told without decoding it; else None."""


def probe(path: str | os.PathLike[str], *, timeout: float | None = None) -> MediaInfo:
    """Look into a media file. Reads all of its packets but decodes only the first frame.

    Args:
        path: a local file.
        timeout: seconds; reads in a child process that is ended when they are over.

    Raises:
        MediaError: if the file is missing, cannot be read, has neither video nor audio, or is a video without a decoder.
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
    problems: list[str] = []
    audio, audio_error = None, None
    try:
        audio = _audio_info(name, problems)
    except MediaError as error:
        if video is None:
            raise
        audio_error = str(error).removeprefix(f"{name}: ")
    problem = (index.problem if index else None) or next(iter(problems), None)
    return MediaInfo(container=kind, video=video, audio=audio, audio_error=audio_error, problem=problem)


def _video_info(name: str, index: PacketIndex) -> VideoInfo:
    with open_media(name) as container:
        stream = require_video(container, name)
        decoded = decode_packets(container, stream, name, lambda what: None)
        frame = next((frame for _, frames in decoded for frame in frames), None)
        if frame is None:
            raise MediaError(f"{name}: none of the video's {index.num_packets} packets decodes to a frame", "media-empty")
        rate = nominal_rate(stream)
        display = display_of(frame, index.pixel_aspect, name)
        if index.ticks:
            num_frames, seconds = len(index.ticks), float((index.end_tick - index.ticks[0]) * index.tick)
        else:
            num_frames, seconds = index.num_packets, float(index.num_packets / rate)
        steps = [b - a for a, b in zip(index.ticks, index.ticks[1:])]
        usual = median(steps) if steps else 0
        tracks = video_tracks(container)
        return VideoInfo(
            codec=stream.codec_context.name,
            width=display.size[1],
            height=display.size[0],
            rotation=90 * display.quarter_turns,
            mirrored=display.mirrored,
            pixel_aspect=float(index.pixel_aspect),
            interlaced=bool(frame.interlaced_frame),
            hdr=_HDR_TRANSFERS.get(int(stream.codec_context.color_trc)),
            track=1 + [track.index for track in tracks].index(stream.index),
            tracks=len(tracks),
            num_frames=num_frames,
            duration=seconds,
            average_rate=num_frames / seconds,
            variable_rate=any(abs(step - usual) > max(1.5, 0.1 * usual) for step in steps),
            longest_gap=float(max(steps, default=0) * index.tick),
            flagged=index.flagged,
            stamped=index.trusted,
        )


def _audio_info(name: str, problems: list[str]) -> AudioInfo | None:
    with open_media(name) as container:
        stream = find_audio(container, name)
        if stream is None:
            return None
        video = find_video(container)
        zero = None
        if video is not None and video.time_base is not None:
            zero = first_frame_tick(container, video) * video.time_base
    with open_media(name) as container:
        # The first packets may only hold the encoder's priming, so the start is that of the first frame that comes out.
        stream = find_audio(container, name)
        assert stream is not None
        decoded = decode_packets(container, stream, name, problems.append)
        begin = next(
            (frame.pts * frame.time_base for _, frames in decoded for frame in frames if frame.pts is not None), Fraction(0)
        )
    with open_media(name) as container:
        stream = find_audio(container, name)
        assert stream is not None
        tick = stream.time_base or Fraction(0)
        packets = iterate_packets(container, stream, problems.append)
        end = max(((p.pts + (p.duration or 0)) * tick for p in packets if p.pts is not None), default=begin)
        tracks = container.streams.audio
        return AudioInfo(
            codec=stream.codec_context.name,
            sample_rate=stream.codec_context.sample_rate,
            channels=stream.codec_context.channels,
            track=1 + [track.index for track in tracks].index(stream.index),
            tracks=len(tracks),
            start_time=0.0 if zero is None else float(begin - zero),
            duration=float(max(Fraction(0), end - begin)),
        )
