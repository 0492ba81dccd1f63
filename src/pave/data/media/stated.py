"""How much sound a file states to hold, where that tells that it was cut off.

Uncompressed sound decodes however much of it is missing, so only its header can tell. A file that was written to a pipe has none
of use: its length was not known when the header was written.
"""

from __future__ import annotations

import os

import av
import av.container

from pave.data.media.container import missing_packets

_OPEN = (0, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
"""Sizes that say that the length was not known."""
_MAX_CHUNKS = 10_000


def missing_sound(
    container: av.container.InputContainer, stream: av.AudioStream, name: str, packets: int, samples: int
) -> str | None:
    """What is missing from a track that was read to its end, or None.

    Args:
        container: the opened file.
        stream: the track.
        name: of the file.
        packets: how many were read.
        samples: that came out of them.
    """
    kind = container.format.name
    if kind in ("wav", "w64"):
        return _missing_bytes(name, samples)
    if kind in ("aiff", "au", "caf") and stream.codec_context.name.startswith("pcm_"):
        timed = (stream.duration or 0) * (stream.time_base or 0) * stream.codec_context.sample_rate
        stated = max(stream.frames, round(timed))
        return f"it states {stated} samples but holds {samples}" if samples < stated else None
    return missing_packets(container, stream, name, packets)


def _missing_bytes(name: str, samples: int) -> str | None:
    """Of a WAV file: RIFF, its 64-bit forms RF64 and BW64 (a chunk ``ds64`` holds the sizes), or Sony's Wave64 (chunks are named by
    16 bytes, their sizes have 8 and count the chunk's head, and they begin at multiples of 8)."""
    with open(name, "rb") as file:
        wave64 = file.read(4) == b"riff"
        key, width, head, align = (16, 8, 24, 8) if wave64 else (4, 4, 0, 2)
        file.seek(40 if wave64 else 12)
        long_size = 0
        for _ in range(_MAX_CHUNKS):
            chunk, size = file.read(key)[:4], int.from_bytes(file.read(width), "little")
            begin = file.tell()
            if chunk == b"ds64":
                long_size = int.from_bytes(file.read(16)[8:], "little")
            if chunk == b"data":
                size = long_size if size in _OPEN else size - head
                held = os.path.getsize(name) - begin
                if size in _OPEN and held and not samples:  # RF64 through a pipe
                    return f"its header does not say how long it is, and FFmpeg reads none of its {held} bytes of sound"
                # Some writers count the file's head as sound; so little cannot be told from a cut.
                cut = size not in _OPEN and size > held + begin
                return f"it states {size} bytes of sound but holds {held}" if cut else None
            if not chunk:
                return None
            size = max(0, size - head)
            file.seek(begin + size + -size % align)
    return None
