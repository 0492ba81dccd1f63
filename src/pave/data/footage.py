"""A video file as the stream of frames that encoders take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pave.data.media import FrameSampling, FramesInPieces
from pave.side_channels.frames import Frames


@dataclass(frozen=True)
class Footage:
    """The sampled frames of a video, decoded in pieces as they are asked for, with their exact presentation times."""

    video: str
    sampling: FrameSampling

    def __iter__(self) -> Iterator[Frames]:
        for clip in FramesInPieces(self.video, self.sampling):
            yield Frames(clip.frames_FHWC, clip.times_F)
