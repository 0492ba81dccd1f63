"""Hashes of what is in files. Those of large files are remembered with the file's size and modification time."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from filelock import FileLock

from pave.utils.files import atomic_write_text
from pave.utils.json_files import read_json

logger = logging.getLogger(__name__)

_PIECE = 4 * 2**20
_SETTLED_SECONDS = 2.0
"""A file modified more recently than this may change again under the same time stamp, so its hash is not remembered."""
_SAVE_EVERY_SECONDS = 20.0
_THREADS = 4

Stamp = tuple[int, int]
"""Size in bytes and modification time in nanoseconds."""


def stamp_of(file: str) -> Stamp:
    """The stamp of a file. Raises OSError if it is not there."""
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns


class ContentHashes:
    """SHA-256 of files, remembered in one JSON file.

    A file that keeps both its size and its modification time while its content changes is taken for unchanged; so does every
    build tool. Several processes may share the memory: the first one hashes, the others wait and find the result.

    Args:
        memory: the JSON file; it is made when there is something to remember. A damaged one is forgotten.
    """

    def __init__(self, memory: Path) -> None:
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
                if time.time_ns() - stamp[1] > _SETTLED_SECONDS * 1e9:
                    self._known[name] = (stamp, str(found[file]))
                if time.monotonic() - saved > _SAVE_EVERY_SECONDS and self._can_save():
                    self._save()
                    saved = time.monotonic()
        return found

    def _hash(self, name: str, shown: str) -> tuple[Stamp, str]:
        digest = hashlib.sha256()
        try:
            before = stamp_of(name)
            with open(name, "rb") as file:
                while piece := file.read(_PIECE):
                    digest.update(piece)
            after = stamp_of(name)
        except OSError as error:
            raise ValueError(f"{shown}: the file cannot be read ({error.strerror})") from None
        if before != after:
            raise ValueError(f"{shown}: the file was changed while it was read; run again when it is complete")
        return before, digest.hexdigest()

    def _lookup(self, name: str) -> str | None:
        known = self._known.get(name)
        if known is None:
            return None
        try:
            return known[1] if stamp_of(name) == known[0] else None
        except OSError:
            return None

    def _can_save(self) -> bool:
        return os.access(self._memory.parent, os.W_OK)

    def _read(self) -> None:
        try:
            lines = read_json(self._memory, limit=2**30) if self._memory.is_file() else {}
            self._known |= {name: ((int(size), int(time_ns)), str(h)) for name, (size, time_ns, h) in lines.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            logger.warning("%s is damaged; the files are hashed again", self._memory)

    def _save(self) -> None:
        atomic_write_text(self._memory, json.dumps({name: [*stamp, h] for name, (stamp, h) in sorted(self._known.items())}))
