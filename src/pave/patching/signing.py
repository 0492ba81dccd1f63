"""Bind the files of a patch together anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pave.config import read_strict
from pave.patching.checkpoint import read_files
from pave.patching.record import (
    FORMAT_VERSION,
    UNSIGNED_VERSIONS,
    PatchRecord,
    check_version,
    config_path,
    read_record,
    write_record,
)
from pave.utils.files import atomic_path
from pave.utils.json_files import read_json_object
from pave.utils.signed import DIGEST, sha256_of_file

_KEPT_OF_BASE = ("model_id", "revision", "weights", "unquantised_weights", "chat_template")


def sign_patch(folder: str | Path) -> PatchRecord:
    """Bind the files of a local patch together anew, after some were changed on purpose or by an earlier version of this library.

    Everything else is checked as if the patch was loaded, as far as that goes without its base. Only ``patch_config.json`` is written,
    atomically.

    Returns:
        What it then says.

    Raises:
        ValueError: naming the file, if there is no such folder or the patch is no good for another reason.
    """
    folder = Path(folder)
    path = config_path(folder)
    values = read_json_object(path)
    if values.get("format_version") in UNSIGNED_VERSIONS:
        values = _from_unsigned(values)
    check_version(values, path)
    record = read_strict(PatchRecord, {**values, "files": {}, DIGEST: ""}, str(path))
    for name in record.file_names():
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing; the patch is incomplete")
    record = replace(record, files={name: sha256_of_file(folder / name) for name in record.file_names()})
    read_files(folder, record)
    with atomic_path(path) as work:
        write_record(folder, work, record)
    return read_record(folder)


def _from_unsigned(values: dict[str, Any]) -> dict[str, Any]:
    """What an earlier format said, in this one's words. Of the base only its type and its hashes are known in both."""
    base = values.get("base")
    if isinstance(base, dict):
        architecture = base.get("architecture")
        kept = {key: base[key] for key in _KEPT_OF_BASE if key in base}
        known = {"model_type": architecture.get("model_type")} if isinstance(architecture, dict) else {}
        values = {**values, "base": {**kept, "architecture": known}}
    return {**values, "format_version": FORMAT_VERSION}
