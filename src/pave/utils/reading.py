"""Reading text files that a user names: ordinary files alone, and never more than is meant to be read.

A name may lead to a pipe that never ends, to a device such as /dev/zero, or to a video. Nothing is read before that is known.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

MAX_LINE_BYTES = 16 * 2**20
"""Longest line of a file of JSON lines."""


@contextmanager
def opened(path: str | os.PathLike[str], largest: int | None = None) -> Iterator[BinaryIO]:
    """An ordinary file, open for reading.

    Args:
        path: of the file.
        largest: most bytes that it may have; None for any size, where the caller reads piece by piece.

    Raises:
        ValueError: naming the file, if it is missing, a folder, a pipe or a device, too large, or cannot be read.
    """
    name = os.fspath(path)
    try:
        # a pipe without a writer would be waited for
        handle = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{name}: cannot be read (it is {_kind(status.st_mode)}, not an ordinary file)")
            if largest is not None and status.st_size > largest:
                raise ValueError(
                    f"{name}: the file is too large ({status.st_size / 2**20:.3g} MiB; at most {largest / 2**20:g} MiB are read)"
                )
            yield file
    except FileNotFoundError:
        raise ValueError(f"{name}: there is no such file") from None
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error.strerror})") from None


def read_bytes(path: str | os.PathLike[str], largest: int) -> bytes:
    """The whole of a file.

    Args:
        path: of the file.
        largest: most bytes that it may have.

    Raises:
        ValueError: as ``opened`` does.
    """
    with opened(path, largest) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size + 1)
    if len(data) > size:
        raise ValueError(f"{os.fspath(path)}: the file grew while it was read; try again when it is complete")
    return data


def read_text(path: str | os.PathLike[str], largest: int) -> str:
    """The whole of a small UTF-8 file, without a byte order mark.

    Args:
        path: of the file.
        largest: most bytes that it may have.

    Raises:
        ValueError: as ``opened`` does, and if it is not UTF-8.
    """
    try:
        return read_bytes(path, largest).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{os.fspath(path)}: not UTF-8 (byte {error.start})") from None


def read_lines(path: str | os.PathLike[str], longest: int = MAX_LINE_BYTES) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers from 1, each without its line end. What follows the last line end is left out: a writer
    that was killed had not finished it.

    Args:
        path: of the file.
        longest: most bytes of a line.

    Raises:
        ValueError: as ``opened`` does, and naming a line that is longer.
    """
    with opened(path) as file:
        number = 0
        while line := file.readline(longest + 1):
            number += 1
            if len(line) > longest:
                raise ValueError(f"{os.fspath(path)}, line {number}: longer than {longest / 2**20:g} MiB")
            if line.endswith(b"\n"):
                yield number, line[:-1]


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
