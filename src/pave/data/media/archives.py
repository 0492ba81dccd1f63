"""Zip archives of side channels: several pictures, or a descriptor with the files that it names."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path, PurePosixPath

from pave.data.media.child import reads_in_child, run_in_child
from pave.data.media.container import MediaError

_ENDINGS = (".json", ".png", ".jpg", ".jpeg", ".npy", ".txt", ".csv", ".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
_PIECE = 2**20
_MOST_PARTS, _LONGEST_NAME = 8, 255
"""Of the name of a file: folders of a thousand levels could be made, but not removed."""


def unpack(path: str | os.PathLike[str], folder: str | os.PathLike[str], *, max_files: int, max_bytes: int) -> None:
    """Unpack an archive of ordinary files into a folder, which is made.

    Args:
        path: the archive.
        folder: where to.
        max_files: most files.
        max_bytes: most bytes of all files together, counted as they are unpacked: what the archive says of itself is not believed.

    Raises:
        MediaError: naming the archive, if it is damaged, encrypted, too large, or holds a link, a file of a kind that no channel
            reads, or one that would lie elsewhere.
    """
    if reads_in_child():
        run_in_child("unpack", path, {"folder": os.path.abspath(folder), "max_files": max_files, "max_bytes": max_bytes})
        return
    name = os.fspath(path)
    root = Path(folder)
    try:
        with zipfile.ZipFile(name) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if len(members) > max_files:
                raise MediaError(f"{name}: the archive holds {len(members)} files, of at most {max_files}")
            left = max_bytes
            for member in members:
                target = root / _place(name, member)
                target.parent.mkdir(parents=True, exist_ok=True)
                left -= _write(archive, member, target, left, f"{name}: its files are larger than {max_bytes} bytes together")
    except (zipfile.BadZipFile, NotImplementedError, OSError, EOFError, RuntimeError, ValueError) as error:
        if isinstance(error, MediaError):
            raise
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)  # without a path of this disk
        raise MediaError(f"{name}: the archive is damaged ({' '.join(said.split())[:120]})") from error


def _place(name: str, member: zipfile.ZipInfo) -> PurePosixPath:
    """Where a file goes, below the folder."""
    inside = PurePosixPath(member.filename)
    where = f"{name}: the archive's file {member.filename[:80]!r}"
    if inside.is_absolute() or ".." in inside.parts or "\\" in member.filename or ":" in member.filename:
        raise MediaError(f"{where} would lie outside of it")
    if len(inside.parts) > _MOST_PARTS or len(member.filename) > _LONGEST_NAME:
        raise MediaError(
            f"{where} has more than {_MOST_PARTS - 1} folders above it, or a name of more than {_LONGEST_NAME} characters"
        )
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
        raise MediaError(f"{where} is a link or a device")
    if member.flag_bits & 1:
        raise MediaError(f"{where} is encrypted")
    if not member.filename.lower().endswith(_ENDINGS):
        raise MediaError(f"{where} is of a kind that no channel reads; there may be {', '.join(_ENDINGS)}")
    return inside


def _write(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, most: int, complaint: str) -> int:
    """Unpack one file; its bytes."""
    count = 0
    with archive.open(member) as source, open(target, "xb") as file:  # a name that comes twice is an error
        while piece := source.read(_PIECE):
            count += len(piece)
            if count > most:
                raise MediaError(complaint)
            file.write(piece)
    return count
