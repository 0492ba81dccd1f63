"""Checkpoints in an output folder: whole or not there, found again, deleted in order.

A checkpoint is written into a hidden folder beside its place. When every process has written its part and all of it is on the
disk, one rename gives it its name: ``checkpoint-STEP``. A process that dies at any moment leaves hidden files, never a
checkpoint that looks whole and is not. A manifest inside says how many processes wrote it, what a step was, how long each
file is and what its content hashes to, so that a copy that was cut short, damaged or mixed with another is told apart as well.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import filelock
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from pave.config import Strict, read_strict
from pave.patching.record import CONFIG_FILE, FUSION_FILE, LORA_FOLDER
from pave.utils.files import flush_folder
from pave.utils.json_files import MAX_JSON_BYTES, parse_json
from pave.utils.reading import read_bytes
from pave.utils.signed import DIGEST, is_signed, sha256_of_file, write_signed

logger = logging.getLogger(__name__)

MANIFEST = "checkpoint.json"
LOCK = ".lock"
PATCH_ENTRIES = (CONFIG_FILE, FUSION_FILE, LORA_FOLDER, "README.md")
"""What a patch has in its folder."""
PATIENCE = 10.0
"""Seconds to wait for a folder: the decoding processes of a killed run hold it until they notice, up to 5 s later."""
_HIDDEN = f".{PREFIX_CHECKPOINT_DIR}-"
_PARTS = ("optimizer", "scheduler", "rng_state", "trainer_state")


class CheckpointError(OSError):
    """A checkpoint could not be written. Every earlier one is as it was."""


@dataclass(frozen=True, kw_only=True)
class Manifest(Strict):
    """``checkpoint.json``: what must agree for a run to go on from here exactly."""

    step: int
    """Optimizer steps taken."""
    steps: int
    """Optimizer steps of the whole run; the learning rates follow from it."""
    processes: int
    """Processes that wrote it. Each has a random state of its own."""
    samples_per_step: int
    """Samples in an optimizer step, over accumulation and processes."""
    parameters: list[list[str]]
    """Names of the trained parameters in the order of the optimizer, whose state knows them by number alone."""
    files: dict[str, int] = field(default_factory=dict)
    """Bytes of every other file."""
    hashes: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every other file."""
    digest: str = ""
    """SHA-256 of the manifest itself, with zeros in place of these digits."""


def checkpoint_path(output_dir: str | Path, step: int) -> Path:
    """Where the checkpoint of a step stands."""
    return Path(output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def staging_path(target: Path) -> Path:
    """The folder that a checkpoint is written into, inside a hidden one, where whatever is written beside it is hidden too."""
    return target.parent / f".{target.name}.writing" / target.name


def make_way(staging: Path) -> None:
    """Nothing stands where a checkpoint is about to be written, but the folder above does."""
    abandon(staging)
    staging.parent.mkdir(parents=True)


def abandon(staging: Path) -> None:
    """Delete what was written of a checkpoint that failed."""
    shutil.rmtree(staging.parent, ignore_errors=True)


def reason(error: Exception) -> str:
    """Why writing failed, in one line: the operating system's words where there are some."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def publish(staging: Path, target: Path, manifest: Manifest) -> None:
    """Give a written checkpoint its manifest and its name, once all of it is on the disk.

    Raises:
        OSError: if a file was not written to its end, or the disk refuses.
    """
    sizes, hashes = {}, {}
    for path in sorted(p for p in staging.rglob("*") if p.is_file()):
        if path.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(path):  # torch does not always notice a full disk
            raise OSError(f"{path.name} was not written to its end")
        name = path.relative_to(staging).as_posix()
        sizes[name], hashes[name] = path.stat().st_size, sha256_of_file(path)
    record = replace(manifest, files=sizes, hashes=hashes).to_dict()
    del record[DIGEST]
    write_signed(staging / MANIFEST, record)
    flush_folder(staging)
    older = _hide(target)
    os.replace(staging, target)
    flush_folder(target.parent, inside=False)
    abandon(staging)
    if older is not None:
        shutil.rmtree(older, ignore_errors=True)


def check_replaceable(folder: Path) -> None:
    """Refuse to write a patch where it would replace anything but a patch: a folder is replaced as a whole.

    Raises:
        ValueError: naming what would be lost.
    """
    others = sorted(path.name for path in folder.iterdir() if path.name not in PATCH_ENTRIES) if folder.is_dir() else []
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise ValueError(
            f"{folder}: saving a patch replaces the folder, which holds {others[0]}{more}; name a folder of its own "
            "(save_model() without one writes OUTPUT/patch)"
        )


def discard(path: Path) -> None:
    """Delete a checkpoint: its name goes first, so that a half-deleted one is never taken for a whole one."""
    hidden = _hide(path)
    if hidden is not None:
        shutil.rmtree(hidden, ignore_errors=True)


def _hide(path: Path) -> Path | None:
    """Take a checkpoint's name away. Where it is a link, that is all there is to delete."""
    if path.is_symlink() or not path.exists():
        path.unlink(missing_ok=True)
        return None
    hidden = path.parent / f".{path.name}.deleted"
    shutil.rmtree(hidden, ignore_errors=True)
    os.replace(path, hidden)
    return hidden


def read_manifest(checkpoint: str | Path, *, content: bool = False) -> Manifest:
    """What a checkpoint says of itself, if it is complete.

    Args:
        checkpoint: its folder.
        content: read every file and compare it with what was written, not its length alone. To be done before a run goes on from it.

    Raises:
        ValueError: naming what is missing, or which file is of another length or content.
    """
    folder = Path(checkpoint)
    try:
        text = read_bytes(folder / MANIFEST, MAX_JSON_BYTES)
        values = parse_json(text)
    except ValueError:
        raise ValueError(f"{folder} is no complete checkpoint: it has no readable {MANIFEST}") from None
    if not is_signed(text, values):
        raise ValueError(f"{folder} cannot be resumed from: {MANIFEST} is not as it was written, it is damaged or was edited")
    manifest = read_strict(Manifest, values, str(folder / MANIFEST))
    for name, size in manifest.files.items():
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise ValueError(f"{folder} is no complete checkpoint: {name} {state}")
    lacking = [part for part in _PARTS if not any(name.startswith(part) for name in manifest.files)]
    if lacking:
        raise ValueError(
            f"{folder} cannot be resumed from: it was written without {', '.join(lacking)} (save_only_model); "
            "load_patch reads the patch in it"
        )
    if content:
        for name, digest in manifest.hashes.items():
            if sha256_of_file(folder / name) != digest:
                raise ValueError(
                    f"{folder} cannot be resumed from: {name} is not as it was written, it is damaged or another one"
                )
    return manifest


def check_same_run(checkpoint: str | Path, now: Manifest) -> None:
    """Refuse to go on where the result could not be that of an uninterrupted run.

    Raises:
        ValueError: naming what differs.
    """
    was = read_manifest(checkpoint)
    if was.parameters != now.parameters:
        raise ValueError(
            f"{checkpoint}: the optimizer there knows the parameters of the patch in another order or by other names; name the "
            "side channels in the order of the run that wrote it"
        )
    for key, what in (("processes", "another number of processes"), ("samples_per_step", "another number of samples per step")):
        before, after = getattr(was, key), getattr(now, key)
        if before != after:
            raise ValueError(
                f"{checkpoint}: it was written by a run with {what} ({key} was {before}, now it is {after}), so the run cannot go "
                "on as if it had not been interrupted; restore it, or start a new run in another output folder"
            )
    if was.steps != now.steps:
        logger.warning(
            "%s: that run was planned for %d steps, this one for %d: from here on the learning rates follow another schedule",
            checkpoint,
            was.steps,
            now.steps,
        )


def checkpoints(output_dir: str | Path) -> dict[int, Path]:
    """Folders with the name of a checkpoint by step, ascending."""
    pattern = re.compile(re.escape(PREFIX_CHECKPOINT_DIR) + r"-(\d+)$")
    found = {int(m[1]): path for path in Path(output_dir).glob("*") if (m := pattern.match(path.name)) and path.is_dir()}
    return dict(sorted(found.items()))


def last_checkpoint(output_dir: str | Path, *, content: bool = False) -> Path | None:
    """The newest complete checkpoint in a folder, or None; with ``content`` the newest whose files are as they were written."""
    for _, path in sorted(checkpoints(output_dir).items(), reverse=True):
        try:
            read_manifest(path, content=content)
        except ValueError as error:
            logger.warning("%s; it is passed over", error)
            continue
        return path
    return None


def resumable(output_dir: str | Path) -> str:
    """What a run in a folder can be resumed from, in words."""
    last = last_checkpoint(output_dir)
    return "there is no checkpoint" if last is None else f"{last} is whole, and the run can be resumed from it"


def rotate(output_dir: str | Path, keep: int | None, protected: Iterable[str | Path | None] = ()) -> None:
    """Delete the oldest checkpoints until ``keep`` are left; never the newest complete one, never a protected one."""
    if not keep:
        return
    safe = {Path(p).resolve() for p in (*protected, last_checkpoint(output_dir)) if p is not None}
    found = list(checkpoints(output_dir).values())
    surplus = len(found) - max(keep, len(safe))
    for path in [p for p in found if p.resolve() not in safe][: max(surplus, 0)]:
        discard(path)


def sweep(output_dir: str | Path) -> None:
    """Delete what killed runs left half-written or half-deleted. Only for who holds the folder."""
    for path in Path(output_dir).glob(f"{_HIDDEN}*"):
        logger.info("deleting %s, which an interrupted run left", path)
        shutil.rmtree(path, ignore_errors=True)


def check_room(output_dir: str | Path, parameters: Iterable[Tensor], keep: int | None) -> None:
    """Refuse a run for whose checkpoints there is no room: better now than after days.

    Args:
        output_dir: where they go.
        parameters: what is trained; a checkpoint holds it and AdamW's two averages, in float32.
        keep: how many checkpoints are kept; one more is there while it is written. None: at least one is; 0: none.

    Raises:
        ValueError: naming what is needed and what is free.
    """
    one = 12 * sum(p.numel() for p in parameters)
    needed = one if keep == 0 else one * (2 if keep is None else keep + 1)
    free = shutil.disk_usage(output_dir).free + sum(size_of(path) for path in checkpoints(output_dir).values())
    if free < needed:
        raise ValueError(
            f"{output_dir}: the patch and its checkpoints will take {needed / 1e6:.1f} MB, but {free / 1e6:.1f} MB are free; make "
            "room, keep fewer checkpoints (training.keep_checkpoints) or choose another output"
        )


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def held(output_dir: str | Path) -> Iterator[None]:
    """Hold an output folder, made if need be: nobody else writes into it meanwhile. Let go when the process ends, however it does.

    Raises:
        ValueError: if another run holds it, or it cannot be written to.
    """
    folder = Path(output_dir)
    lock = filelock.FileLock(folder / LOCK, timeout=PATIENCE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        raise ValueError(f"{folder}: another run is writing into this folder; wait for it, or choose another output") from None
    except (NotImplementedError, OSError) as error:
        number = getattr(error, "errno", errno.ENOSYS)
        if number not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise ValueError(
                f"{folder}: the output folder cannot be written to ({reason(error)}); choose another output"
            ) from None
        logger.warning("%s: this file system has no locks; see to it that no other run writes into the folder", folder)
    try:
        yield
    finally:
        lock.release()
