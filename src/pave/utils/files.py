"""Atomic writes: a reader sees the old file or the whole new one, never a half-written one.

Everything is first written beside its destination (the same file system) and then moved over it with one rename. Where the disk is to
blame that something cannot be written, the error is a ``DiskError``, which names it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pave.utils import json_files

_OF_DISK = {
    errno.ENOSPC: "is full",
    errno.EDQUOT: "has no room left for this user (quota)",
    errno.EROFS: "is read-only",
}
"""What an error number says of the disk that is written to; reading has other ones."""
DISK_ERRORS = (*_OF_DISK, errno.EFBIG, errno.EIO)
"""What the operating system says of a disk that is full, read-only or broken, and of a file that may not grow."""
_TORCH_WRITES = re.compile(r"unexpected pos|PytorchStreamWriter|failed writing|write error", re.IGNORECASE)
_NO_ROOM = 2**16
"""Bytes; with less, a writer that does not say why it failed has failed because of the disk."""


class DiskError(OSError):
    """Something cannot be written because of the disk, not because of what is written. One sentence that names path and disk."""


@contextlib.contextmanager
def naming_disk(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an error inside the block for which the disk of ``path`` is to blame into a ``DiskError``; let others pass.

    Raises:
        DiskError: if the disk is full or read-only.
    """
    try:
        yield
    except DiskError:
        raise
    except Exception as error:  # torch, safetensors and PyAV have errors of their own for a full disk
        disk = _mount_of(Path(path))
        fault = _fault_of_disk(error, disk)
        if fault is None:
            raise
        raise DiskError(
            f"{os.fspath(path)}: it cannot be written, because the disk at {disk} {fault}; make room there, or write elsewhere"
        ) from error


def _fault_of_disk(error: Exception, disk: Path) -> str | None:
    """What is wrong with the disk, if the error says so."""
    number = error.errno if isinstance(error, OSError) else None
    text = str(error)
    told = re.search(r"\(os error (\d+)\)", text)  # safetensors
    if number is None and told:
        number = int(told[1])
    if number is None and _TORCH_WRITES.search(text) and shutil.disk_usage(disk).free < _NO_ROOM:
        number = errno.ENOSPC
    return _OF_DISK.get(number or 0)


def _mount_of(path: Path) -> Path:
    """Where the file system of a path, which need not exist yet, is mounted."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    place = place.resolve()
    while not os.path.ismount(place):
        place = place.parent
    return place


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; it replaces ``path`` when the block ends without an error.

    Missing parent folders are made. After an error the temporary file is removed and ``path`` is as it was. The suffix is
    kept, because many writers choose the format by it.

    Args:
        path: the destination.
        durable: wait until the bytes are on the disk. Without it a power cut may leave an empty file; a crash of the program
            alone cannot. For many small files that can be made again, where waiting would take longer than making them.

    Raises:
        ValueError: if ``path`` is a folder.
        DiskError: if the disk is full or read-only.
    """
    target = Path(path)
    if target.is_dir():
        raise ValueError(f"cannot write the file {target}: there is a folder of that name; choose another name")
    with naming_disk(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem[:40]}-", suffix=f".tmp{target.suffix}")
    os.close(handle)
    temporary = Path(name)
    try:
        with naming_disk(target):
            yield temporary
            temporary.chmod(_mode_for(target))
            if durable:
                _flush(temporary)
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path`` in one step."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8, with the line ends it has, to ``path`` in one step."""
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON to ``path`` in one step.

    Raises:
        ValueError: if ``value`` holds a NaN or an infinity, which JSON has no word for.
        TypeError: if ``value`` holds something that is not JSON.
    """
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value in a JSON file that ``atomic_write_json`` wrote.

    Raises:
        ValueError: if it is missing or no valid JSON; the message names the file.
    """
    return json_files.read_json(path, remedy="remove it, so that it is made again")


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty temporary folder beside ``path``; it becomes ``path`` when the block ends without an error.

    An older folder of that name is replaced whole: a file that only the old one had is gone afterwards. If a reader opens
    ``path`` while it is replaced it may find nothing for an instant, but never a mixture of old and new. If the process dies
    in that instant the old folder is still beside ``path`` under the name ``.NAME.old-*``.

    Raises:
        ValueError: if ``path`` is a file.
        DiskError: if the disk is full or read-only.
    """
    target = Path(path)
    if target.is_file():
        raise ValueError(f"cannot write the folder {target}: there is a file of that name; choose another name")
    target = target.resolve()  # through a link: the folder it leads to is replaced, the link stays
    with naming_disk(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name[:40]}.new-"))
    try:
        with naming_disk(target):
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            flush_folder(temporary)
            _swap(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(new: Path, target: Path) -> None:
    """Put folder ``new`` in the place of ``target``; back out if that fails."""
    if not target.exists():
        os.replace(new, target)
        return
    old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name[:40]}.old-"))
    os.replace(target, old)  # an empty folder may be renamed over
    try:
        os.replace(new, target)
    except OSError:
        os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def flush_folder(folder: Path, *, inside: bool = True) -> None:
    """Put a folder's entries on the disk, and the bytes of every file inside too."""
    for path in folder.rglob("*") if inside else ():
        if path.is_file() and not path.is_symlink():
            _flush(path)
        elif path.is_dir():
            _flush_entries(path)
    _flush_entries(folder)


def _flush_entries(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some network file systems refuse; the files themselves are on the disk
        pass
    finally:
        os.close(handle)


def _flush(path: Path) -> None:
    """Put the bytes on the disk before the rename does, so that a power cut cannot leave an empty file under the new name."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _mode_for(target: Path) -> int:
    """The permissions that ``target`` has, or that an ordinary new file gets."""
    return target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
