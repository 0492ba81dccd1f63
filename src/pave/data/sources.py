"""From the files of a sample to what a side encoder takes: one reader for each kind of source.

An encoder says in ``source`` what its ``encode`` takes. Files are opened here, never in ``pave.side_channels``, so that an
encoder can be tried on arrays. A reader gets the video, the file that the sample names for the channel (or None) and the
encoder, whose settings may say how to read; it returns None where the video simply lacks the channel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pave.data.footage import Footage
from pave.data.media import FrameSampling, read_audio
from pave.data.scenes3d import read_scene
from pave.data.views import read_views
from pave.side_channels import SideEncoder

Reader = Callable[[str, str | None, SideEncoder[Any]], Any]


def _read_sound(video: str, path: str | None, encoder: SideEncoder[Any]) -> Any:
    """The sound of the channel's own file, else that of the video; None if there is no track."""
    assert encoder.sample_rate is not None
    return read_audio(video if path is None else path, encoder.sample_rate)


def _stored(video: str, path: str | None, encoder: SideEncoder[Any]) -> Any:
    """Features are read by their encoder; without a file the channel is missing."""
    return path


def _sampling(encoder: Any) -> FrameSampling:
    return FrameSampling(fps=encoder.fps, max_frames=encoder.max_frames)


def _read_video(video: str, path: str | None, encoder: Any) -> Any:
    """The frames of the channel's own video, else of the sample's, at the encoder's rate."""
    return Footage(video if path is None else path, _sampling(encoder))


def _read_views(video: str, path: str | None, encoder: Any) -> Any:
    """Further cameras; None if the sample names none, or none of those it names is there."""
    views = {} if path is None else read_views(path, encoder.views, _sampling(encoder))
    return views if any(view is not None for view in views.values()) else None


def _read_scene(video: str, path: str | None, encoder: Any) -> Any:
    """Pictures with depth and poses; without a file the channel is missing."""
    return None if path is None else read_scene(path, max_frames=encoder.max_frames, frame_rate=encoder.frame_rate)


READERS: dict[str, Reader] = {
    "audio": _read_sound,
    "features": _stored,
    "video": _read_video,
    "views": _read_views,
    "scene3d": _read_scene,
}
"""By ``SideEncoder.source``."""


def read_source(encoder: SideEncoder[Any], video: str, path: str | None) -> Any:
    """What ``encoder.encode`` takes, or None if the video lacks the channel.

    Args:
        encoder: of the channel.
        video: path of the sample's video.
        path: the file or folder that the sample names for the channel; None if it names none.

    Raises:
        ValueError: if a file is missing, damaged or of another kind than the encoder takes.
    """
    if encoder.source not in READERS:
        raise ValueError(
            f"the encoder takes {encoder.source!r}, but there is no reader of that name; known: {', '.join(READERS)}"
        )
    return READERS[encoder.source](video, path, encoder)
