"""Frames through torchcodec, where it is asked for: faster, with PyAV still saying which frames there are and when.

``PAVE_DECODER=torchcodec`` turns it on (extra ``torchcodec``; it needs FFmpeg's shared libraries on the system). The packets are
indexed by PyAV as always, so the choice of frames and their times do not depend on the decoder; torchcodec, in its exact mode,
decodes the chosen frames. What it decodes is used only if the frames are those wanted: as many frames in the video as the index
has, each at its time to half a tick, and the first one equal to PyAV's, pixel by pixel (two libraries may turn YUV into RGB
differently). Otherwise PyAV decodes all of them, and a message says why.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pave.data.media.container import PacketIndex
from pave.utils.optional import require

logger = logging.getLogger(__name__)

VARIABLE = "PAVE_DECODER"
DECODERS = ("pyav", "torchcodec")


def wants_torchcodec() -> bool:
    """Whether the environment asks for torchcodec.

    Raises:
        ValueError: if it asks for a decoder that does not exist.
    """
    chosen = os.environ.get(VARIABLE) or "pyav"
    if chosen not in DECODERS:
        raise ValueError(f"{VARIABLE} is {chosen!r}; known decoders: {', '.join(DECODERS)}")
    return chosen == "torchcodec"


def decode_with_torchcodec(
    name: str, index: PacketIndex, chosen: list[int], first_HWC: NDArray[np.uint8], num_threads: int
) -> NDArray[np.uint8] | None:
    """The chosen frames, (F, height, width, 3); None where PyAV has to decode them.

    Args:
        name: of the file.
        index: of its packets.
        chosen: indices of the frames in presentation order, ascending.
        first_HWC: what PyAV decodes of the first of them.
        num_threads: of the decoder.

    Raises:
        ValueError: if torchcodec is not installed or does not load.
    """
    decoders = _load()
    try:
        decoder = decoders.VideoDecoder(name, seek_mode="exact", num_ffmpeg_threads=num_threads)
        if decoder.metadata.num_frames != len(index.ticks):
            _say(name, f"torchcodec counts {decoder.metadata.num_frames} frames, the container {len(index.ticks)}")
            return None
        batch = decoder.get_frames_at(chosen)
    except (RuntimeError, ValueError, IndexError) as error:
        _say(name, " ".join(str(error).split())[:200])
        return None
    start = float(decoder.metadata.begin_stream_seconds or 0.0)
    expected_F = np.array([(index.ticks[i] - index.ticks[0]) * index.tick for i in chosen], dtype=np.float64)
    late = np.abs(batch.pts_seconds.double().numpy() - start - expected_F).max()
    if late > float(index.tick) / 2:
        _say(name, f"torchcodec shows a frame {late:g} s from its time")
        return None
    frames_FHWC: NDArray[np.uint8] = batch.data.permute(0, 2, 3, 1).contiguous().numpy()
    if not np.array_equal(frames_FHWC[0], first_HWC):
        _say(name, "torchcodec's pixels are not those of PyAV")
        return None
    return frames_FHWC


def _load() -> Any:
    try:
        return require("torchcodec.decoders", extra="torchcodec", purpose=f"{VARIABLE}=torchcodec")
    except (RuntimeError, OSError):
        raise ValueError(
            f"{VARIABLE}=torchcodec: torchcodec is installed but does not load; it needs FFmpeg's shared libraries (on Debian: "
            "apt install ffmpeg) and a version that fits torch"
        ) from None


def _say(name: str, why: str) -> None:
    logger.info("%s: %s; decoding with PyAV", name, why)
