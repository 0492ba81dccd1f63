"""Opening media files safely, and the time stamps of their frames as the container states them."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import av
import av.container
import av.error
import av.stream

from pave.utils.errors import CodedError

MAX_PACKETS = 2_000_000
"""Longest stream that is read: 18 hours at 30 frames a second."""
MAX_PIXELS = 128_000_000
"""Largest picture that is decoded (8K has 33 million pixels)."""
_MAX_PIXEL_ASPECT = 16
"""Pixels are at most this many times as wide as high, or as high as wide (2 is the most that standards use)."""
_REORDER_DEPTH = 32
"""A frame is decoded at most this many frames before one that is shown earlier (H.264 and HEVC allow 16)."""
_REFUSED_FORMATS = {"hls", "dash", "concat", "image2", "imf", "sdp", "rtsp", "tty", "bin", "xbin", "adf", "idf"}
"""Formats that are lists of other files, or text that FFmpeg would draw as a picture."""

# PyAV's containers and frames lie in reference cycles, so they stay until the garbage collector runs. A process that forks, as the
# workers of a DataLoader do, inherits those of its parent; were they collected there, FFmpeg would wait for decoder threads that
# exist in the parent alone, for ever. Frozen objects are never collected.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=gc.freeze)


class MediaError(CodedError):
    """A media file is missing, damaged, or not what it was used as. The message is one sentence that names the file."""

    code = "media-unreadable"


@contextmanager
def open_media(path: str | os.PathLike[str], **options: str) -> Iterator[av.container.InputContainer]:
    """Open a local file for reading, with ``options`` for FFmpeg's demuxer. Errors of FFmpeg inside the block become
    MediaError too.

    Raises:
        MediaError: if the file is missing, empty, not a regular file, or holds nothing that FFmpeg can read.
    """
    name = os.fspath(path)
    if not os.path.exists(name):
        raise MediaError(f"{name}: there is no such file", "media-missing")
    if not os.path.isfile(name):
        raise MediaError(f"{name}: this is not a regular file")
    if os.path.getsize(name) == 0:
        raise MediaError(f"{name}: the file is empty (0 bytes)", "media-empty")
    url = f"file:{Path(name).absolute()}"
    try:
        # Only local files: a playlist under the name of a video must not reach the network.
        with av.open(url, metadata_errors="ignore", options={**options, "protocol_whitelist": "file"}) as container:
            refused = _REFUSED_FORMATS.intersection(container.format.name.split(","))
            if refused:
                raise MediaError(f"{name}: the file is not video or audio (it reads as {refused.pop()!r})")
            yield container
    except av.error.FFmpegError as error:
        raise MediaError(f"{name}: the file cannot be read as video or audio ({_reason(error)})") from error


def _reason(error: av.error.FFmpegError) -> str:
    text = error.strerror or type(error).__name__
    return "no reason given" if text.startswith("Error number") else text


StreamT = TypeVar("StreamT", av.VideoStream, av.AudioStream)


def video_tracks(container: av.container.InputContainer) -> list[av.VideoStream]:
    """The video streams that are no cover pictures."""
    cover = av.stream.Disposition.attached_pic
    return [stream for stream in container.streams.video if cover not in stream.disposition]


def chosen(tracks: Sequence[StreamT]) -> StreamT | None:
    """The track of a kind that is read: the first that the file flags as default, else the first; None where there is none."""
    flagged = (track for track in tracks if av.stream.Disposition.default in track.disposition)
    return next(flagged, next(iter(tracks), None))


def find_video(container: av.container.InputContainer) -> av.VideoStream | None:
    """The video stream that is read, or None."""
    return chosen(video_tracks(container))


def find_audio(container: av.container.InputContainer, name: str) -> av.AudioStream | None:
    """The audio stream that is read, or None.

    Raises:
        MediaError: if there is no decoder for it.
    """
    stream = chosen(container.streams.audio)
    if stream is not None and stream.codec_context is None:
        raise _no_decoder(name, "audio")
    return stream


def require_video(container: av.container.InputContainer, name: str) -> av.VideoStream:
    """The video stream that is read, checked.

    Raises:
        MediaError: if there is none, no decoder for it, or its pictures are absurdly large.
    """
    stream = find_video(container)
    if stream is None:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "no stream at all"
        raise MediaError(f"{name}: the file has no video stream (it holds {kinds})", "video-none")
    if stream.codec_context is None:
        raise _no_decoder(name, "video")
    check_size(stream.codec_context.width, stream.codec_context.height, name)
    return stream


def _no_decoder(name: str, kind: str) -> MediaError:
    return MediaError(
        f"{name}: the FFmpeg inside PyAV has no decoder for the codec of its {kind} track; the file may be sound, so convert it to "
        "one that is common, such as H.264 with AAC",
        "codec-unknown",
    )


def check_size(width: int, height: int, name: str) -> None:
    """Refuse pictures without pixels or with absurdly many."""
    if not 0 < width * height <= MAX_PIXELS:
        raise MediaError(f"{name}: the file states a picture size of {width}x{height}, which cannot be right")


@dataclass(frozen=True)
class PacketIndex:
    """What the container says about the frames of a video stream, before anything is decoded.

    ``ticks`` are the presentation times of all frames in ascending order, counted in ``tick`` seconds; ``end_tick`` is when
    the last frame leaves the screen. ``order`` is the position of each frame in decoding order. ``keys`` are the keyframes
    as (presentation tick, decoding tick, position in decoding order), in presentation order.
    """

    ticks: list[int]
    end_tick: int
    tick: Fraction
    order: list[int]
    keys: list[tuple[int, int, int]]
    num_packets: int
    pixel_aspect: Fraction
    """Width of a stored pixel over its height."""
    flagged: int
    """Packets that are marked as damaged. That is a guess of FFmpeg's; what is wrong, if anything, only decoding tells."""
    trusted: bool
    """False where packets do not tell when frames are shown; then only decoding does."""
    problem: str | None
    """Why the file looks damaged, or None."""


def index_packets(container: av.container.InputContainer, stream: av.VideoStream, name: str) -> PacketIndex:
    """Read the whole file once without decoding. Leaves the container at its end.

    Frames before the first keyframe, frames that an edit list cuts out and empty packets (which repeat the last picture) are
    not frames here: a decoder gives no picture for them.

    Raises:
        MediaError: if the stream has no packet, or more than MAX_PACKETS.
    """
    shown: dict[int, tuple[int, int]] = {}  # presentation tick -> (position in decoding order, duration)
    keys: list[tuple[int, int, int]] = []
    count = 0
    flagged = 0
    unstamped = repeated = False
    last_end = Fraction(0)
    problems: list[str] = []
    for packet in iterate_packets(container, None, problems.append):
        if packet.pts is not None and packet.time_base is not None:
            last_end = max(last_end, (packet.pts + (packet.duration or 0)) * packet.time_base)
        if packet.stream_index != stream.index:
            continue
        count += 1
        if count > MAX_PACKETS:
            raise MediaError(f"{name}: the video has more than {MAX_PACKETS} frames; cut it into shorter files")
        flagged += packet.is_corrupt
        if packet.pts is None:
            unstamped = True
            continue
        if packet.is_keyframe:
            unstamped |= packet.dts is None and bool(keys)
            keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts, count - 1))
        if keys and packet.pts >= keys[0][0] and not packet.is_discard:
            repeated |= packet.pts in shown
            shown[packet.pts] = (count - 1, packet.duration or 0)
    if not count:
        raise MediaError(f"{name}: the video stream holds no frames", "media-empty")
    ticks = sorted(shown)
    tick = stream.time_base or Fraction(1, 90_000)
    last = _last_duration(shown, ticks, round(1 / (nominal_rate(stream) * tick)))
    return PacketIndex(
        ticks=ticks,
        end_tick=ticks[-1] + last if ticks else 0,
        tick=tick,
        order=[shown[t][0] for t in ticks],
        keys=sorted(keys),
        num_packets=count,
        pixel_aspect=_pixel_aspect(stream, name),
        flagged=flagged,
        # AVI stores no presentation times; FFmpeg guesses them, in the wrong order where there are B-frames.
        trusted=bool(ticks) and not unstamped and not repeated and container.format.name != "avi",
        problem=next(iter(problems), None) or _problem(container, stream, name, count, last_end),
    )


def iterate_packets(
    container: av.container.InputContainer, stream: av.stream.Stream | None, damaged: Callable[[str], None]
) -> Iterator[av.Packet]:
    """The packets of a stream (None: of all). Empty ones are left out: a decoder would refuse them, or take them for the end
    (in Theora they repeat the last picture). Where reading fails midway, ``damaged`` is told what happened, and unless it
    raises the packets end there."""
    packets = container.demux() if stream is None else container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.FFmpegError as error:
            damaged(f"reading stops midway ({_reason(error)})")
            return
        except IndexError:  # PyAV knows the streams that the file began with
            damaged("reading stops midway (a stream begins that the file did not announce)")
            return
        if packet.size:
            yield packet


def decode_packets(
    container: av.container.InputContainer, stream: StreamT, name: str, damaged: Callable[[str], None]
) -> Iterator[tuple[av.Packet | None, list[Any]]]:
    """Every packet of a stream with the frames that come out after it; at the end None with the frames still inside.

    A packet that does not decode is left out after ``damaged`` is told so, unless that raises. Packets before the first keyframe,
    or shown before it, need pictures that are not there, as in a recording that begins in the middle of a broadcast: no loss.
    """
    shown = 0
    first_key: int | None = None
    unled: list[str] = []
    for packet in chain(iterate_packets(container, stream, damaged), [None]):
        if first_key is None and packet is not None and packet.is_keyframe:
            first_key = packet.pts
        frames: list[Any] = []
        try:
            frames = stream.decode(packet)
        except av.error.PatchWelcomeError as error:
            if not shown:
                raise _no_decoder(name, stream.type) from error
            damaged(_undecoded(packet, error, shown))
        except av.error.FFmpegError as error:
            leads = packet is not None and (first_key is None or (packet.pts is not None and packet.pts < first_key))
            (unled.append if leads else damaged)(_undecoded(packet, error, shown))
        shown += len(frames)
        yield packet, frames
    if first_key is None and unled:
        damaged(unled[0])


def _undecoded(packet: av.Packet | None, error: av.error.FFmpegError, shown: int) -> str:
    at = "" if packet is None or packet.pts is None else f" at {float(packet.pts * (packet.time_base or 0)):.6g} s"
    return f"the packet{at} does not decode ({_reason(error)}), after {shown} frames that did"


def _last_duration(shown: dict[int, tuple[int, int]], ticks: list[int], usual: int) -> int:
    """How long the last frame stays: as its packet says; as long as the frame before it where that is not usable; else the
    usual time. MP4 only stores the distance to the next packet, which with B-frames and a variable rate is another thing."""
    if not ticks:
        return 0
    order = [shown[tick][0] for tick in ticks]
    steady = len({duration for _, duration in shown.values()}) == 1
    stated = shown[ticks[-1]][1] if steady or order == sorted(order) else 0
    return stated or (ticks[-1] - ticks[-2] if len(ticks) > 1 else usual)


def _pixel_aspect(stream: av.VideoStream, name: str) -> Fraction:
    """As the container states it, else the codec; 1 where neither does."""
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or Fraction(1)
    if not 1 / _MAX_PIXEL_ASPECT <= aspect <= _MAX_PIXEL_ASPECT:
        raise MediaError(
            f"{name}: the file states pixels {aspect} times as wide as high, which cannot be right; correct that ratio"
        )
    return aspect


def nominal_rate(stream: av.VideoStream) -> Fraction:
    """Frames per second as the file states or FFmpeg guesses, else 25."""
    return stream.guessed_rate or stream.average_rate or Fraction(25)


def _problem(
    container: av.container.InputContainer, stream: av.VideoStream, name: str, count: int, last_end: Fraction
) -> str | None:
    """Signs of a file that was cut off: fewer packets, or less time, than its header states."""
    missing = missing_packets(container, stream, name, count)
    if missing is not None:
        return missing
    if "matroska" in container.format.name and container.duration:
        stated = Fraction(container.duration, av.time_base)
        if last_end < stated - max(Fraction(1, 2), stated / 50):
            return f"it states a length of {float(stated):.6g} s but ends after {float(last_end):.6g} s"
    return None


def missing_packets(
    container: av.container.InputContainer, stream: av.VideoStream | av.AudioStream, name: str, count: int
) -> str | None:
    """What is missing from an MP4 stream of which ``count`` packets were read, or None. An edit list may hide packets, so
    where some seem to be missing they are counted again without it. Of PCM the file states samples, and packets hold many."""
    if "mov" not in container.format.name.split(",") or count >= stream.frames:
        return None
    unit = "packets"
    with open_media(name, ignore_editlist="1") as plain:
        packets = iterate_packets(plain, plain.streams[stream.index], lambda what: None)
        if isinstance(stream, av.AudioStream) and stream.codec_context.name.startswith("pcm_"):
            unit, tick = "samples", (stream.time_base or 0) * stream.codec_context.sample_rate
            count = round(sum((packet.duration or 0) * tick for packet in packets))
        else:
            count = sum(1 for _ in packets)
    return f"it states {stream.frames} {stream.type} {unit} but holds {count}" if count < stream.frames else None


def first_frame_tick(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    """Presentation tick of the first frame, zero of the video's clock: ``index_packets(...).ticks[0]``, but reading only the
    file's first packets. 0 where packets carry no presentation times."""
    key: int | None = None
    first: list[int] = []
    for position, packet in enumerate(iterate_packets(container, stream, lambda what: None)):
        if packet.pts is not None:
            if key is None and packet.is_keyframe:
                key = packet.pts
            if key is not None and packet.pts >= key and not packet.is_discard:
                first.append(packet.pts)
        if len(first) > _REORDER_DEPTH or position > MAX_PACKETS:
            break
    return min(first, default=0)
