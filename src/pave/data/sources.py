"""From the files of a sample to what a side encoder takes: one reader for each kind of source.

An encoder says in ``source`` what its ``encode`` takes. Files are opened here, never in ``pave.side_channels``, so that an
encoder can be tried on arrays. A reader gets the video, the file that the sample names for the channel (or None) and the
encoder, whose settings may say how to read; it returns None where the video simply lacks the channel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pave.data.media import read_audio
from pave.side_channels import OwnEncoder, SideEncoder
from pave.side_channels.arranged import ArrangedAudioEncoder

Reader = Callable[[str, str | None, SideEncoder[Any]], Any]


def _read_sound(video: str, path: str | None, encoder: SideEncoder[Any]) -> Any:
    """The sound of the channel's own file, else that of the video; None if there is no track."""
    assert encoder.sample_rate is not None
    arranged = isinstance(encoder, ArrangedAudioEncoder) and encoder.channel != "mix"
    return read_audio(video if path is None else path, encoder.sample_rate, channels="all" if arranged else "mix")


def _stored(video: str, path: str | None, encoder: SideEncoder[Any]) -> Any:
    """Features are read by their encoder; without a file the channel is missing."""
    return path


def _own(video: str, path: str | None, encoder: SideEncoder[Any]) -> Any:
    """A user's own encoder reads for itself."""
    if not isinstance(encoder, OwnEncoder):
        raise ValueError(f"an encoder with the source 'own' is derived from pave.side_channels.OwnEncoder, got {encoder!r}")
    return encoder.read(video, path)


READERS: dict[str, Reader] = {"audio": _read_sound, "features": _stored, "own": _own}
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
