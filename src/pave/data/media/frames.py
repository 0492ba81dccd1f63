"""Frames of a video with their exact presentation times."""

from __future__ import annotations

import logging
import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias

import av
import av.container
import numpy as np
from numpy.typing import NDArray

from pave.data.media.child import run_in_child
from pave.data.media.container import (
    MediaError,
    PacketIndex,
    decode_packets,
    index_packets,
    nominal_rate,
    open_media,
    require_video,
)
from pave.data.media.display import Projector, display_of
from pave.data.media.fast_decoding import decode_with_torchcodec, wants_torchcodec
from pave.data.media.sampling import FrameSampling, choose_frames

logger = logging.getLogger(__name__)

MAX_BYTES = 8 * 2**30
"""Most memory that one clip's frames may take."""
_SEEK_COST = 12
"""A seek counts as much as decoding this many frames."""
_Plan: TypeAlias = "list[tuple[tuple[int, int, int] | None, list[int]]]"
"""Runs of frames to decode one after the other: the keyframe to seek to first (None: go on), and the frames' indices."""


@dataclass(frozen=True)
class VideoClip:
    """Some frames of one video."""

    frames_FHWC: NDArray[np.uint8]
    """RGB as the file says that it is shown: turned and mirrored by its display matrix, and where its pixels are not square
    (sample aspect ratio), made wider or narrower so that they are."""
    times_F: NDArray[np.float64]
    """Presentation time of each frame in seconds after the video's first frame; strictly ascending."""
    indices_F: NDArray[np.int64]
    """Which frame of the video each one is, counted from 0 in presentation order."""
    duration: float
    """Seconds from the first frame's appearance to the last frame's disappearance, of the whole video."""
    num_frames_total: int
    """Frames in the whole video."""
    num_frames_requested: int
    """Frames that the sampling asked for. The clip has fewer where the video (or the window) has no more."""
    problem: str | None = None
    """How the file is damaged, where it was read with ``on_corrupt="keep"``; else None."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.frames_FHWC.shape[1], self.frames_FHWC.shape[2]

    @property
    def average_rate(self) -> float:
        """Frames per second over the whole video."""
        return self.num_frames_total / self.duration


def read_frames(
    path: str | os.PathLike[str],
    sampling: FrameSampling | None = None,
    *,
    on_corrupt: Literal["error", "keep"] = "error",
    num_threads: int = 1,
    timeout: float | None = None,
) -> VideoClip:
    """Decode the sampled frames of a video.

    Times come from the file's own time stamps, so variable frame rates, B-frames, late starts and edit lists are right.
    A stream without usable stamps (AVI, raw H.264) is decoded as a whole, its frames stamped in the order they come out.

    Args:
        path: a local file.
        sampling: which frames; None takes every one.
        on_corrupt: "error": a file that is cut off, or a damaged packet on the way to a sampled frame, raises. "keep": samples
            from the frames that do decode and says so in ``problem``.
        num_threads: threads of the decoder.
        timeout: seconds; decodes in a child process that is ended when they are over (or that may crash without harm).

    Raises:
        MediaError: if the file is missing, damaged, has no video, would need more than MAX_BYTES, or the time is over.
        ValueError: if an argument is wrong.
    """
    if on_corrupt not in ("error", "keep"):
        raise ValueError(f"read_frames: on_corrupt must be 'error' or 'keep', got {on_corrupt!r}")
    sampling = sampling or FrameSampling()
    if timeout is not None:
        options = {"sampling": sampling.to_dict(), "on_corrupt": on_corrupt, "num_threads": num_threads}
        return VideoClip(**run_in_child("read_frames", path, options, timeout))
    return _Reader(os.fspath(path), sampling, on_corrupt == "keep", num_threads).read()


class _Reader:
    """Reads one clip: by seeking where that saves work, in one go otherwise, and by decoding the whole video where the
    container's time stamps turn out not to be the decoder's."""

    def __init__(self, name: str, sampling: FrameSampling, keep: bool, num_threads: int) -> None:
        self.name = name
        self.sampling = sampling
        self.keep = keep
        self.num_threads = num_threads
        self.problem: str | None = None

    def read(self) -> VideoClip:
        with open_media(self.name) as container:
            index = index_packets(container, require_video(container, self.name), self.name)
        if index.problem is not None:
            self._damaged(index.problem)
        if index.trusted:
            chosen, asked = self._choose(index.ticks, index.end_tick, index.tick)
            fast = self._fast(index, chosen)
            if fast is not None:
                return self._clip(fast, index.ticks, index.end_tick, index.tick, chosen, asked)
            plans: list[_Plan] = [_plan(index, chosen), [(None, chosen)]]
            for plan in plans:
                frames_FHWC = self._by_time(index, plan, len(chosen))
                if frames_FHWC is not None:
                    return self._clip(frames_FHWC, index.ticks, index.end_tick, index.tick, chosen, asked)
            logger.info("%s: its time stamps are not those of its frames; decoding the whole video", self.name)
        return self._by_order(index)

    def _damaged(self, what: str) -> None:
        if not self.keep:
            raise MediaError(
                f"{self.name}: the video is damaged: {what}; replace the file, or read it with on_corrupt='keep'",
                "media-truncated",
            )
        self.problem = self.problem or what

    def _choose(self, ticks: list[int], end_tick: int, tick: Fraction) -> tuple[list[int], int]:
        try:
            return choose_frames(ticks, end_tick, tick, self.sampling)
        except ValueError as error:
            raise MediaError(f"{self.name}: {error}") from None

    def _fast(self, index: PacketIndex, chosen: list[int]) -> NDArray[np.uint8] | None:
        """The chosen frames by torchcodec, where that is asked for and gives the same."""
        if self.keep or index.flagged or not chosen or not wants_torchcodec():
            return None
        first_FHWC = self._by_time(index, _plan(index, chosen[:1]), 1)
        if first_FHWC is None:
            return None
        check_memory(self.name, len(chosen), first_FHWC[0])
        return decode_with_torchcodec(self.name, index, chosen, first_FHWC[0], self.num_threads)

    def _by_time(self, index: PacketIndex, plan: _Plan, count: int) -> NDArray[np.uint8] | None:
        """The planned frames; None if the decoder never shows one of them."""
        pixels = _Pixels(self.name, count, index.pixel_aspect)
        for frame in self.planned(index, plan):
            if frame is None:
                return None
            pixels.add(frame)
        return pixels.frames_FHWC

    def planned(self, index: PacketIndex, plan: _Plan) -> Iterator[av.VideoFrame | None]:
        """The planned frames one after the other; a last None if the decoder never shows one of them."""
        with self._decoder(index.flagged > 0) as (container, stream):
            for key, chosen in plan:
                wanted = [index.ticks[i] for i in chosen]
                if key is not None:
                    # Transport streams are searched by decoding time, formats with an index by presentation time.
                    target = key[1] if container.format.name in ("mpegts", "mpeg") else key[0]
                    container.seek(target, stream=stream, backward=True)
                for frame in self._decode(container, stream, start_by=None if key is None else key[0]):
                    if frame.pts is None or frame.pts > wanted[0]:
                        break
                    if frame.pts == wanted[0]:
                        yield frame
                        del wanted[0]
                        if not wanted:
                            break
                if wanted:
                    yield None
                    return

    def _by_order(self, index: PacketIndex) -> VideoClip:
        """Decode everything to learn which frames there are, choose, and decode again to take them."""
        with self._decoder(index.flagged > 0) as (container, stream):
            stamps = [frame.pts for frame in self._decode(container, stream)]
            rate = nominal_rate(stream)
        if not stamps:
            raise MediaError(f"{self.name}: none of the video's {index.num_packets} packets decodes to a frame", "media-empty")
        tick = index.tick
        ticks = sorted({stamp for stamp in stamps if stamp is not None})
        if len(ticks) == len(stamps):
            last = index.end_tick - index.ticks[-1] if index.ticks else max(1, round(1 / (rate * tick)))
        else:
            ticks, tick, last = list(range(len(stamps))), 1 / rate, 1
        end_tick = ticks[-1] + last
        chosen, asked = self._choose(ticks, end_tick, tick)
        wanted = set(chosen)
        pixels = _Pixels(self.name, len(chosen), index.pixel_aspect)
        with self._decoder(index.flagged > 0) as (container, stream):
            for position, frame in enumerate(self._decode(container, stream)):
                if position in wanted:
                    pixels.add(frame)
        return self._clip(pixels.frames_FHWC, ticks, end_tick, tick, chosen, asked)

    @contextmanager
    def _decoder(self, strict: bool) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
        """The opened file; ``strict``: a decoder that would conceal what is missing from a picture fails instead."""
        with open_media(self.name) as container:
            stream = require_video(container, self.name)
            if strict:
                stream.codec_context.options = {"err_detect": "explode"}
            stream.codec_context.thread_count = self.num_threads
            stream.codec_context.thread_type = "AUTO" if self.num_threads > 1 else "SLICE"
            yield container, stream

    def _decode(
        self, container: av.container.InputContainer, stream: av.VideoStream, start_by: int | None = None
    ) -> Iterator[av.VideoFrame]:
        """Frames as they are shown. Ends at once if a seek did not land on a keyframe at or before tick ``start_by``."""
        for packet, frames in decode_packets(container, stream, self.name, self._damaged):
            if start_by is not None:
                if packet is None or not packet.is_keyframe or packet.pts is None or packet.pts > start_by:
                    return
                start_by = None
            yield from frames

    def _clip(
        self,
        frames_FHWC: NDArray[np.uint8] | None,
        ticks: list[int],
        end_tick: int,
        tick: Fraction,
        chosen: list[int],
        asked: int,
    ) -> VideoClip:
        assert frames_FHWC is not None and len(frames_FHWC) == len(chosen)
        offsets_F = np.array([ticks[i] - ticks[0] for i in chosen], dtype=np.int64)
        if len(chosen) < asked:
            logger.info("%s: %d frames asked for, %d there", self.name, asked, len(chosen))
        return VideoClip(
            frames_FHWC=frames_FHWC,
            times_F=offsets_F * tick.numerator / tick.denominator,
            indices_F=np.array(chosen, dtype=np.int64),
            duration=float((end_tick - ticks[0]) * tick),
            num_frames_total=len(ticks),
            num_frames_requested=asked,
            problem=self.problem,
        )


def check_memory(name: str, count: int, pixels_HWC: NDArray) -> None:
    """Refuse frames that would take more than ``MAX_BYTES``."""
    needed, (height, width) = count * pixels_HWC.nbytes, pixels_HWC.shape[:2]
    if needed > MAX_BYTES:
        raise MediaError(
            f"{name}: {count} frames of {width}x{height} need {needed / 2**30:.1f} GiB of memory "
            f"(the limit is {MAX_BYTES / 2**30:.1f}); sample fewer frames"
        )


class _Pixels:
    """Collects frames into one array, as they are shown."""

    def __init__(self, name: str, count: int, pixel_aspect: Fraction) -> None:
        self.name = name
        self.count = count
        self.pixel_aspect = pixel_aspect
        self.filled = 0
        self.frames_FHWC: NDArray[np.uint8] | None = None
        self._facts: tuple[int, int, int, str] | None = None
        self._projector: Projector | None = None

    def add(self, frame: av.VideoFrame) -> None:
        facts = (frame.width, frame.height, frame.rotation, frame.format.name)
        if self._projector is None or facts != self._facts:
            self._facts = facts
            self._projector = Projector(display_of(frame, self.pixel_aspect, self.name), frame)
        pixels_HWC = self._projector.show(frame)
        if self.frames_FHWC is None:
            check_memory(self.name, self.count, pixels_HWC)
            self.frames_FHWC = np.empty((self.count, *pixels_HWC.shape), dtype=np.uint8)
        if pixels_HWC.shape != self.frames_FHWC.shape[1:]:
            (height, width), (new_height, new_width) = self.frames_FHWC.shape[1:3], pixels_HWC.shape[:2]
            raise MediaError(
                f"{self.name}: the picture size changes from {width}x{height} to {new_width}x{new_height} within the video; "
                "re-encode it to one size"
            )
        self.frames_FHWC[self.filled] = pixels_HWC
        self.filled += 1


def _plan(index: PacketIndex, chosen: list[int]) -> _Plan:
    """Which keyframe to seek to for which frames, where decoding on from the frame before would take longer.

    Where packets are marked as damaged there is no seek: after one, pictures may refer to earlier ones, which a decoder that is
    to find out what is damaged takes for damage.
    """
    if index.flagged:
        return [(None, chosen)]
    plan: _Plan = []
    key_ticks = [key[0] for key in index.keys]
    reached = 0  # position in decoding order up to which the decoder has gone
    for i in chosen:
        key = index.keys[max(0, bisect_right(key_ticks, index.ticks[i]) - 1)]
        if key[2] > reached + _SEEK_COST:
            plan.append((key, [i]))
        elif plan:
            plan[-1][1].append(i)
        else:
            plan.append((None, [i]))
        reached = max(reached, index.order[i])
    return plan
