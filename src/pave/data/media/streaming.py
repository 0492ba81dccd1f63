"""The sampled frames of a long video in pieces, so that never all of them are in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from pave.data.media.container import MediaError, index_packets, open_media, require_video
from pave.data.media.frames import VideoClip, _Pixels, _Plan, _plan, _Reader
from pave.data.media.sampling import FrameSampling


@dataclass(frozen=True)
class FramesInPieces:
    """The frames that ``read_frames`` gives for the same sampling, decoded ``piece`` at a time as they are asked for.

    May be gone through again; every time the file is opened anew. A stream without usable time stamps (AVI, raw H.264) has
    to be read as a whole, under the limit of ``read_frames``.

    Raises:
        MediaError: while it is gone through, as ``read_frames`` does.
    """

    path: str | os.PathLike[str]
    sampling: FrameSampling
    piece: int = 32
    """Frames at a time."""

    def __iter__(self) -> Iterator[VideoClip]:
        name = os.fspath(self.path)
        reader = _Reader(name, self.sampling, keep=False, num_threads=1)
        with open_media(name) as container:
            index = index_packets(container, require_video(container, name), name)
        if index.problem is not None or not index.trusted:
            yield from self._whole(reader)
            return
        chosen, _ = reader._choose(index.ticks, index.end_tick, index.tick)
        plans: list[_Plan] = [_plan(index, chosen), [(None, chosen)]]  # by seeking, else in one go
        done = 0
        for plan in plans:
            pixels = _Pixels(name, min(self.piece, len(chosen) - done), index.pixel_aspect)
            for position, frame in enumerate(reader.planned(index, plan)):
                if frame is None:
                    break
                if position < done:
                    continue
                pixels.add(frame)
                if pixels.filled == pixels.count:
                    part = chosen[done : done + pixels.count]
                    yield reader._clip(pixels.frames_FHWC, index.ticks, index.end_tick, index.tick, part, len(part))
                    done += pixels.count
                    pixels = _Pixels(name, min(self.piece, len(chosen) - done), index.pixel_aspect)
            if done == len(chosen):
                return
        if done:
            raise MediaError(f"{name}: sampled frame {done} is not where its time stamp says; re-encode the video")
        yield from self._whole(reader)

    def _whole(self, reader: _Reader) -> Iterator[VideoClip]:
        clip = reader.read()
        for first in range(0, len(clip.times_F), self.piece):
            part = slice(first, first + self.piece)
            yield VideoClip(
                clip.frames_FHWC[part],
                clip.times_F[part],
                clip.indices_F[part],
                clip.duration,
                clip.num_frames_total,
                clip.num_frames_requested,
            )
