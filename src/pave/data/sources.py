"""From the files of a sample to what a side encoder takes: one reader for each kind of source.

An encoder says in ``source`` what its ``encode`` takes. Files are opened here, never in ``pave.side_channels``, so that an
encoder can be tried on arrays. A reader gets the video, the file that the sample names for the channel (or None) and the
encoder, whose settings may say how to read; it returns None where the video simply lacks the channel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pave.data.descriptors import files_named
from pave.data.footage import Footage
from pave.data.media import FrameSampling, read_audio
from pave.data.scenes3d import read_scene
from pave.data.views import read_views
from pave.side_channels import SideEncoder
from pave.side_channels.frames import FrameEncoder
from pave.side_channels.multiview import MultiViewEncoder
from pave.side_channels.scene3d import Scene3DEncoder

Reader = Callable[[str, str | None, SideEncoder[Any]], Any]


def _read_sound(video: str, path: str | None, encoder: SideEncoder[Any]) -> Any:
    """The sound of the channel's own file, else that of the video; None if there is no track."""
    assert encoder.sample_rate is not None
    return read_audio(video if path is None else path, encoder.sample_rate)


def _stored(video: str, path: str | None, encoder: SideEncoder[Any]) -> Any:
    """Features are read by their encoder; without a file the channel is missing."""
    return path


def _sampling(encoder: FrameEncoder | MultiViewEncoder) -> FrameSampling:
    return FrameSampling(fps=encoder.fps, max_frames=encoder.max_frames)


def _read_video(video: str, path: str | None, encoder: SideEncoder[Any]) -> Any:
    """The frames of the channel's own video, else of the sample's, at the encoder's rate."""
    if not isinstance(encoder, FrameEncoder):
        raise _not_suited(encoder, FrameEncoder)
    return Footage(video if path is None else path, _sampling(encoder))


def _read_views(video: str, path: str | None, encoder: SideEncoder[Any]) -> Any:
    """Further cameras; None if the sample names none, or none of those it names is there."""
    if not isinstance(encoder, MultiViewEncoder):
        raise _not_suited(encoder, MultiViewEncoder)
    views = {} if path is None else read_views(path, encoder.views, _sampling(encoder))
    return views if any(view is not None for view in views.values()) else None


def _read_scene(video: str, path: str | None, encoder: SideEncoder[Any]) -> Any:
    """Pictures with depth and poses; without a file the channel is missing."""
    if not isinstance(encoder, Scene3DEncoder):
        raise _not_suited(encoder, Scene3DEncoder)
    return None if path is None else read_scene(path, max_frames=encoder.max_frames, frame_rate=encoder.frame_rate)


def _not_suited(encoder: SideEncoder[Any], needed: type) -> ValueError:
    return ValueError(
        f"an encoder of the source {encoder.source!r} must be like {needed.__module__}.{needed.__name__}, got {encoder!r}"
    )


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


def files_behind(encoder: SideEncoder[Any], path: str) -> list[str]:
    """The files that decide what a channel's file says: itself, what lies in it if it is a folder, and what it points to."""
    return files_named(path) if encoder.source in ("views", "scene3d") else [path]
