"""Which codecs can be read and written here, and by which libraries."""

from __future__ import annotations

from importlib import metadata
from typing import Any, Literal

import av
from av.codec.codec import UnknownCodecError

DECODERS = ("h264", "hevc", "vp9", "av1", "mpeg4", "aac", "mp3", "opus", "vorbis", "flac", "ac3", "pcm_s16le")
"""Of nearly all videos that benchmarks and telephones give."""
ENCODERS = ("libx264", "aac")
"""Those that ``write_video`` takes."""


def describe_codecs() -> dict[str, Any]:
    """Versions of PyAV and of the FFmpeg inside it, what of ``DECODERS`` and ``ENCODERS`` is there, and the state of torchcodec."""
    return {
        "av": av.__version__,
        "libavcodec": ".".join(map(str, av.library_versions["libavcodec"])),
        "decodes": {name: _there(name, "r") for name in DECODERS},
        "encodes": {name: _there(name, "w") for name in ENCODERS},
        "torchcodec": _torchcodec(),
    }


def _there(name: str, mode: Literal["r", "w"]) -> bool:
    try:
        av.Codec(name, mode)
    except UnknownCodecError:
        return False
    return True


def _torchcodec() -> str:
    try:
        version = metadata.version("torchcodec")
    except metadata.PackageNotFoundError:
        return "not installed"
    from pave.data.media.fast_decoding import load_torchcodec

    try:
        load_torchcodec()
    except ValueError as error:
        return f"{version}, does not load: {error}"
    return version
