"""From the files of a sample to what a side encoder takes: one reader for each kind of source.

An encoder says in ``source`` what its ``encode`` takes. Files are opened here, never in ``pave.side_channels``, so that an
encoder can be tried on arrays. A reader gets the video, the file that the sample names for the channel (or None) and the
encoder, whose settings may say how to read; it returns None where the video simply lacks the channel.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from pave.data.descriptors import files_named
from pave.data.footage import Footage
from pave.data.media import FrameSampling, VideoClip, probe, read_audio, read_frames
from pave.data.scenes3d import read_scene
from pave.data.sensor_files import read_sensor
from pave.data.text_files import read_timed_text
from pave.data.views import read_views
from pave.data.vision import BaseVision, Encoder
from pave.side_channels import OwnEncoder, SideEncoder
from pave.side_channels.arranged import ArrangedAudioEncoder
from pave.side_channels.features import StoredFeatures, TimedFile
from pave.side_channels.frames import FrameEncoder
from pave.side_channels.multiview import MultiViewEncoder
from pave.side_channels.scene3d import Scene3DEncoder
from pave.side_channels.sensor import SensorWindows
from pave.side_channels.text import TextEncoder

Reader = Callable[[str, str | None, Any], Any]


def _read_sound(video: str, path: str | None, encoder: SideEncoder[Any]) -> Any:
    """The sound of the channel's own file, else that of the video; None if there is no track."""
    assert encoder.sample_rate is not None
    arranged = isinstance(encoder, ArrangedAudioEncoder) and encoder.channel != "mix"
    return read_audio(video if path is None else path, encoder.sample_rate, channels="all" if arranged else "mix")


def _stored(video: str, path: str | None, encoder: SideEncoder[Any]) -> Any:
    """Features are read by their encoder, which may have to know how long the video is; without a file the channel is missing."""
    if path is None or not isinstance(encoder, StoredFeatures) or encoder.times != "spread":
        return path
    info = probe(video).video
    if info is None:
        raise ValueError(f"{video}: there is no video stream to spread the features over")
    return TimedFile(path, info.duration)


def _read_sensor(video: str, path: str | None, encoder: SideEncoder[Any]) -> Any:
    """The columns that the encoder wants of the channel's file; without one the channel is missing."""
    if not isinstance(encoder, SensorWindows):
        raise _wrong_class(encoder, SensorWindows)
    if path is None:
        return None
    return read_sensor(
        path,
        columns=encoder.columns,
        time_column=encoder.time_column,
        time_unit=encoder.time_unit,
        rate=encoder.rate,
        start=encoder.start,
        zero=encoder.zero,
        unsorted=encoder.unsorted,
    )


def _read_text(video: str, path: str | None, encoder: SideEncoder[Any]) -> Any:
    """The captions or transcript of the channel's file; without one the channel is missing."""
    if not isinstance(encoder, TextEncoder):
        raise _wrong_class(encoder, TextEncoder)
    return None if path is None else read_timed_text(path, encoding=encoder.encoding)


def _sampling(encoder: FrameEncoder | MultiViewEncoder) -> FrameSampling:
    return FrameSampling(fps=encoder.fps, max_frames=encoder.max_frames)


def _read_video(video: str, path: str | None, encoder: SideEncoder[Any]) -> Any:
    """The frames of the channel's own video, else of the sample's, at the encoder's rate."""
    if not isinstance(encoder, FrameEncoder):
        raise _wrong_class(encoder, FrameEncoder)
    return Footage(video if path is None else path, _sampling(encoder))


def _read_views(video: str, path: str | None, encoder: SideEncoder[Any]) -> Any:
    """Further cameras; None if the sample names none, or none of those it names is there."""
    if not isinstance(encoder, MultiViewEncoder):
        raise _wrong_class(encoder, MultiViewEncoder)
    views = {} if path is None else read_views(path, encoder.views, _sampling(encoder))
    return views if any(view is not None for view in views.values()) else None


def _read_scene(video: str, path: str | None, encoder: SideEncoder[Any]) -> Any:
    """Pictures with depth and poses; without a file the channel is missing."""
    if not isinstance(encoder, Scene3DEncoder):
        raise _wrong_class(encoder, Scene3DEncoder)
    return None if path is None else read_scene(path, max_frames=encoder.max_frames, frame_rate=encoder.frame_rate)


def _own(video: str, path: str | None, encoder: SideEncoder[Any]) -> Any:
    """A user's own encoder reads for itself."""
    if not isinstance(encoder, OwnEncoder):
        raise _wrong_class(encoder, OwnEncoder)
    return encoder.read(video, path)


def _wrong_class(encoder: SideEncoder[Any], expected: type) -> ValueError:
    return ValueError(
        f"an encoder with the source {encoder.source!r} is a {expected.__module__}.{expected.__name__}, got {encoder!r}; give a "
        "class of your own the source 'own'"
    )


def _read_base_frames(video: str, path: str | None, encoder: BaseVision) -> VideoClip:
    """The frames that the base itself sees."""
    return read_frames(video, encoder.sampling)


READERS: dict[str, Reader] = {
    "audio": _read_sound,
    "base": _read_base_frames,
    "features": _stored,
    "own": _own,
    "scene3d": _read_scene,
    "sensor": _read_sensor,
    "text": _read_text,
    "video": _read_video,
    "views": _read_views,
}
"""By ``SideEncoder.source``."""


def read_source(encoder: Encoder, video: str, path: str | None) -> Any:
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


def files_behind(encoder: Encoder, path: str) -> list[str]:
    """The files that decide what a channel's file says: itself, what lies in it if it is a folder, and what it points to."""
    return files_named(path) if encoder.source in ("scene3d", "sensor", "views") or os.path.isdir(path) else [path]


def files_read(encoder: Encoder, video: str, path: str | None) -> list[str] | None:
    """The files that decide what ``read_source`` gives; None where it gives nothing because no file is named.

    An encoder of one's own is taken to read the video and what the sample names.
    """
    if encoder.source in ("audio", "base", "video"):
        return [video if path is None else path]
    if encoder.source == "own":
        return [video, *([] if path is None else files_named(path))]
    if path is None:
        return None
    spread = isinstance(encoder, StoredFeatures) and encoder.times == "spread"
    return [*files_behind(encoder, path), *([video] if spread else [])]
