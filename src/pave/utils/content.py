"""Whether a file still holds what it held: the one notion of "same content" for everything that remembers a file.

On one machine a file is untouched while its ``Stamp`` is the same; that costs no reading. What has to hold on other machines, or for
copies, goes by content: ``ContentHashes`` reads files whole, ``content_digest``
reads pieces of large ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from pave.utils.files import atomic_write_text

logger = logging.getLogger(__name__)

_PIECE = 4 * 2**20
_SETTLED_SECONDS = 2.0
"""A file changed more recently than this may change again under the same stamp, so its hash is not remembered."""
_SAVE_EVERY_SECONDS = 20.0
_THREADS = 4
_DIGEST_BYTES = 16 * 2**20
_MOST_PIECES, _SHORTEST_PIECE = 256, 4096


class Stamp(NamedTuple):
    """What the file system says of a file. A program can set the first two as it likes, but not the others: whatever writes to a file
    changes ``ctime_ns``, and whatever puts another file in its place changes ``inode``."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @property
    def settled(self) -> bool:
        """Whether the last change is so long ago that another one would have another time."""
        return time.time_ns() - max(self.mtime_ns, self.ctime_ns) > _SETTLED_SECONDS * 1e9


def stamp_of(file: str | os.PathLike[str]) -> Stamp:
    """The stamp of a file. Raises OSError if it is not there."""
    status = os.stat(file)
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def stamp_or_none(file: str | os.PathLike[str]) -> Stamp | None:
    """The stamp of a file, None if it is not there: whoever reads it says so."""
    try:
        return stamp_of(file)
    except OSError:
        return None


def changed_file(file: str) -> ValueError:
    """The error that a file did not stay as it was."""
    return ValueError(f"{file}: the file was changed during the run; run again when it is complete")


@contextlib.contextmanager
def unchanged(files: Iterable[str]) -> Iterator[None]:
    """What is read inside is of one content.

    Raises:
        ValueError: at the end, naming the first of ``files`` that was changed or replaced since the beginning.
    """
    before = {file: stamp_or_none(file) for file in files}
    yield
    for file, stamp in before.items():
        if stamp_or_none(file) != stamp:
            raise changed_file(file)


def content_digest(files: Sequence[str]) -> str:
    """A short hash of what is in files, the same on every machine; their names count only from the folder that all share.

    About 16 MiB are read, each file for its share: a file that is no larger as a whole; of a larger one its size and up to 256 pieces at
    equal distances, the first and the last bytes among them. Enough to tell videos apart, not to notice a damaged bit.

    Raises:
        ValueError: naming a file that is missing, no regular file, or cannot be read.
    """
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files]) if len(files) > 1 else None
    share = _DIGEST_BYTES // max(1, len(files))
    length = max(_SHORTEST_PIECE, share // _MOST_PIECES)
    count = max(2, share // length)
    digest = hashlib.sha256()
    for file in files:
        size = _regular_size(file)
        name = "" if folder is None else os.path.relpath(os.path.abspath(file), folder).replace(os.sep, "/")
        digest.update(json.dumps([name, size]).encode())
        starts = [0] if size <= count * length else [number * (size - length) // (count - 1) for number in range(count)]
        try:
            with open(file, "rb") as opened:
                for start in starts:
                    opened.seek(start)
                    digest.update(opened.read(size if len(starts) == 1 else length))
        except OSError as error:
            raise _unreadable(file, error) from None
    return digest.hexdigest()[:24]


def _regular_size(file: str) -> int:
    try:
        status = os.stat(file)
    except OSError as error:
        raise _unreadable(file, error) from None
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{file}: it is no regular file, so it is not read")
    return status.st_size


def _unreadable(file: str, error: OSError) -> ValueError:
    return ValueError(f"{file}: the file cannot be read ({error.strerror})")


class ContentHashes:
    """SHA-256 of files, remembered in one JSON file for as long as their stamps stay.

    Several processes may share the memory: the first one hashes, the others wait and find the result.

    Args:
        memory: the JSON file; it is made when there is something to remember. A damaged one is forgotten. None remembers only as
            long as the process.
    """

    def __init__(self, memory: Path | None = None) -> None:
        self._memory = memory
        self._known: dict[str, tuple[Stamp, str]] = {}
        self._read()

    def of(self, file: str) -> str:
        """The hash of one file, 64 hexadecimal digits.

        Raises:
            ValueError: if it cannot be read, or changes while it is.
        """
        name = os.path.abspath(file)
        found = self._lookup(name)
        return self._hash(name, file)[1] if found is None else found

    def of_all(self, files: Iterable[str]) -> dict[str, str | ValueError]:
        """The hash of every file, or the error that kept it from being read."""
        names = {file: os.path.abspath(file) for file in dict.fromkeys(files)}
        found: dict[str, str | ValueError] = {f: h for f, name in names.items() if (h := self._lookup(name)) is not None}
        if len(found) == len(names):
            return found
        if not self._can_save():
            return found | self._hash_all({f: name for f, name in names.items() if f not in found})
        with FileLock(f"{self._memory}.lock"):
            self._read()  # another process may have done it while this one waited
            found |= {f: h for f, name in names.items() if f not in found and (h := self._lookup(name)) is not None}
            found |= self._hash_all({f: name for f, name in names.items() if f not in found})
            self._save()
        return found

    def _hash_all(self, names: dict[str, str]) -> dict[str, str | ValueError]:
        found: dict[str, str | ValueError] = {}
        saved = time.monotonic()
        with ThreadPoolExecutor(_THREADS) as pool:
            jobs = {pool.submit(self._hash, name, file): (file, name) for file, name in names.items()}
            for job in as_completed(jobs):
                file, name = jobs[job]
                try:
                    stamp, found[file] = job.result()
                except ValueError as error:
                    found[file] = error
                    continue
                if stamp.settled:
                    self._known[name] = (stamp, str(found[file]))
                if time.monotonic() - saved > _SAVE_EVERY_SECONDS and self._can_save():
                    self._save()
                    saved = time.monotonic()
        return found

    def _hash(self, name: str, shown: str) -> tuple[Stamp, str]:
        _regular_size(shown)
        digest = hashlib.sha256()
        try:
            before = stamp_of(name)
            with open(name, "rb") as file:
                while piece := file.read(_PIECE):
                    digest.update(piece)
            after = stamp_of(name)
        except OSError as error:
            raise _unreadable(shown, error) from None
        if before != after:
            raise changed_file(shown)
        return before, digest.hexdigest()

    def _lookup(self, name: str) -> str | None:
        known = self._known.get(name)
        return known[1] if known is not None and stamp_or_none(name) == known[0] else None

    def _can_save(self) -> bool:
        return self._memory is not None and os.access(self._memory.parent, os.W_OK)

    def _read(self) -> None:
        try:
            lines = json.loads(self._memory.read_text(encoding="utf-8")) if self._memory and self._memory.is_file() else {}
            for name, (*stamp, digest) in lines.items():
                if len(stamp) == len(Stamp._fields):  # earlier versions kept less, which says too little
                    self._known[name] = (Stamp(*map(int, stamp)), str(digest))
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            logger.warning("%s is damaged; the files are hashed again", self._memory)

    def _save(self) -> None:
        assert self._memory is not None
        atomic_write_text(self._memory, json.dumps({name: [*stamp, h] for name, (stamp, h) in sorted(self._known.items())}))
