"""Uploaded files: kept for a while in a folder of the process, each for the key that it came with."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pave.serving.errors import ApiError, bad_request
from pave.serving.limits import Limits

FILE_ID = re.compile(r"file-[0-9a-f]{32}")
_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")
_SHORTEST_SECONDS, _LONGEST_SECONDS = 60, 7 * 24 * 3600


def suffix_of(name: str) -> str:
    """The ending of a name that a client chose, if it is an ordinary one. Nothing else of such a name reaches the disk."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix if _SUFFIX.fullmatch(suffix) else ""


@dataclass
class Upload:
    """A file that was uploaded."""

    id: str
    owner: str
    path: Path
    name: str
    purpose: str
    num_bytes: int
    created: float
    expires: float
    """Both in seconds since 1970."""
    readers: int = 0
    """Requests that read it now."""
    gone: bool = False
    """Deleted or expired, but still read."""

    def to_dict(self) -> dict[str, Any]:
        """As OpenAI's API has it."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.num_bytes,
            "created_at": int(self.created),
            "expires_at": int(self.expires),
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
        }


class Uploads:
    """The files of all keys, in a folder that is removed at the end. Nobody sees a file of another key.

    Args:
        limits: how many, how large and how long.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.folder = Path(tempfile.mkdtemp(prefix="pave-serve-"))
        self._known: dict[str, Upload] = {}
        self._reserved = 0
        self._lock = threading.Lock()

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """An empty folder for the files of one request, removed at its end."""
        folder = Path(tempfile.mkdtemp(prefix="request-", dir=self.folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def room(self, num_bytes: int) -> Iterator[None]:
        """Hold room for an upload that is on its way.

        Raises:
            ApiError: 413 if it is too large, 429 if there is no room at present.
        """
        if num_bytes > self.limits.file_megabytes * 2**20:
            raise ApiError(
                413, f"the file is larger than {self.limits.file_megabytes} MiB", code="file_too_large", param="file"
            )
        self.expire()
        with self._lock:
            taken = self._reserved + sum(upload.num_bytes for upload in self._known.values())
            if taken + num_bytes > self.limits.uploads_megabytes * 2**20 or len(self._known) >= self.limits.uploads:
                wait = max(1, int(min((u.expires for u in self._known.values()), default=time.time() + 60) - time.time()))
                raise ApiError(
                    429,
                    "there is no room for another upload; delete one, or try again when one has expired",
                    code="uploads_full",
                    headers={"Retry-After": str(wait)},
                )
            self._reserved += num_bytes
        try:
            yield
        finally:
            with self._lock:
                self._reserved -= num_bytes

    def add(self, content: Any, name: str, purpose: str, owner: str, seconds: int | None = None) -> Upload:
        """Keep a file.

        Args:
            content: read from, piece by piece.
            name: that the client gave it.
            purpose: likewise.
            owner: whose it is.
            seconds: until it expires; None for the limit's.

        Raises:
            ApiError: 400 if it is empty or ``seconds`` is out of range.
        """
        if seconds is not None and not _SHORTEST_SECONDS <= seconds <= _LONGEST_SECONDS:
            raise bad_request(
                f"expires_after[seconds] is from {_SHORTEST_SECONDS} to {_LONGEST_SECONDS}, got {seconds}",
                "expires_after[seconds]",
            )
        upload_id = f"file-{secrets.token_hex(16)}"
        path = self.folder / f"{upload_id}{suffix_of(name)}"
        with open(path, "xb") as file:
            shutil.copyfileobj(content, file, 2**20)
            size = file.tell()
        if not size:
            path.unlink()
            raise bad_request("the file is empty (0 bytes)", "file")
        now = time.time()
        upload = Upload(
            upload_id, owner, path, name[:200], purpose[:64], size, now, now + (seconds or self.limits.upload_seconds)
        )
        with self._lock:
            self._known[upload_id] = upload
        return upload

    def get(self, upload_id: str, owner: str, param: str | None = None) -> Upload:
        """An upload that is there.

        Raises:
            ApiError: 404 if there is none of that id for this owner, or it has expired.
        """
        self.expire()
        with self._lock:
            upload = self._known.get(upload_id)
        if upload is None or upload.owner != owner:
            raise ApiError(404, f"there is no file {upload_id[:50]!r}; it may have expired", code="file_not_found", param=param)
        return upload

    def of(self, owner: str) -> list[Upload]:
        """The uploads of an owner, the newest first."""
        self.expire()
        with self._lock:
            found = [upload for upload in self._known.values() if upload.owner == owner]
        return sorted(found, key=lambda upload: -upload.created)

    @contextlib.contextmanager
    def reading(self, upload_id: str, owner: str, param: str) -> Iterator[Path]:
        """The path of an upload, which stays until the block ends, whoever deletes it meanwhile."""
        upload = self.get(upload_id, owner, param)
        with self._lock:
            upload.readers += 1
        try:
            yield upload.path
        finally:
            with self._lock:
                upload.readers -= 1
                remove = upload.gone and not upload.readers
            if remove:
                upload.path.unlink(missing_ok=True)

    def delete(self, upload_id: str, owner: str) -> None:
        """Forget an upload.

        Raises:
            ApiError: as ``get`` does.
        """
        self._forget(self.get(upload_id, owner))

    def expire(self) -> None:
        """Forget what is older than it may be."""
        now = time.time()
        with self._lock:
            old = [upload for upload in self._known.values() if upload.expires <= now]
        for upload in old:
            self._forget(upload)

    def _forget(self, upload: Upload) -> None:
        with self._lock:
            self._known.pop(upload.id, None)
            upload.gone = True
            remove = not upload.readers
        if remove:
            upload.path.unlink(missing_ok=True)
