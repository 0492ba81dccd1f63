"""``patch_config.json``: what a patch is, on which base, where it came from, and hashes that bind its files together."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pave.config import PatchConfig, Strict, read_strict
from pave.patching.fingerprint import BaseFingerprint
from pave.patching.slot import check_name
from pave.patching.storage import FusionStorage
from pave.utils.json_files import MAX_JSON_BYTES, parse_json
from pave.utils.reading import read_bytes
from pave.utils.signed import DIGEST, is_signed, sha256_of, sha256_of_file, write_signed

FORMAT_VERSION = 3
UNSIGNED_VERSIONS = (1, 2)
"""Earlier ones, whose files were not bound together; 2 had packed matrices."""
CONFIG_FILE = "patch_config.json"
FUSION_FILE = "patch.safetensors"
LORA_FOLDER = "lora"
ADAPTER_CONFIG = "adapter_config.json"
LORA_FILE = "adapter_model.safetensors"
MAX_FILE_BYTES = 64 * 2**30
"""Largest tensor file that is read."""


@dataclass(frozen=True, kw_only=True)
class PatchRecord(Strict):
    """The contents of ``patch_config.json``."""

    format_version: int = FORMAT_VERSION
    """Version of this format."""
    pave_version: str = ""
    """Version of the library that wrote the patch."""
    name: str = "default"
    """Name of the patch."""
    patch: PatchConfig
    """What is needed to rebuild the modules."""
    base: BaseFingerprint
    """The base the patch was trained on."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where the patch came from: recipe, seed, data manifest hash, steps, metrics."""
    fusion_storage: FusionStorage = "plain"
    """How the fusion's matrices are stored: in the patch's storage_dtype, or in blocks of 8-bit or 4-bit integers."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every other file that is read when the patch is loaded; made when it is written."""
    digest: str = ""
    """SHA-256 of this file itself, with zeros in place of these digits; likewise."""

    def __post_init__(self) -> None:
        check_name("name", self.name)

    def file_names(self) -> list[str]:
        """The files beside ``patch_config.json`` that are read when the patch is loaded."""
        adapter = [f"{LORA_FOLDER}/{ADAPTER_CONFIG}", f"{LORA_FOLDER}/{LORA_FILE}"] if self.patch.lora is not None else []
        return [FUSION_FILE, *adapter]


def write_record(folder: Path, path: Path, record: PatchRecord) -> None:
    """Write ``patch_config.json`` to ``path``, with the hashes of the files in a folder; numbers in the provenance that are not finite
    are written as text, as JSON has no word for them."""
    record = replace(record, provenance=_in_json(record.provenance))
    values = replace(record, files={name: sha256_of_file(folder / name) for name in record.file_names()}).to_dict()
    del values[DIGEST]
    write_signed(path, values)


def _in_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _in_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_in_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_record(folder: str | Path) -> PatchRecord:
    """Read and check ``patch_config.json`` without touching tensors.

    Raises:
        ValueError: if the file is missing, is not JSON, has unknown keys, was written by another format, or is not as it was signed.
    """
    path = config_path(Path(folder))
    content = read_bytes(path, MAX_JSON_BYTES)
    try:
        values = parse_json(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    check_version(values, path)
    record = read_strict(PatchRecord, values, str(path))
    if not is_signed(content, values) or sorted(record.files) != sorted(record.file_names()):
        raise ValueError(
            f"{path} is not as it was written: it is damaged or was edited; copy or download it again, or, if it was changed on purpose, "
            f"sign it: pave sign {folder}"
        )
    return record


def config_path(folder: Path) -> Path:
    """Where the record of a patch is.

    Raises:
        ValueError: if the folder has none.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{folder} is no patch: it has no {CONFIG_FILE}")
    return path


def check_version(values: Any, path: Path) -> None:
    """Refuse the content of a ``patch_config.json`` that another version of the format wrote.

    Raises:
        ValueError: naming the file and what to do.
    """
    version = values.get("format_version") if isinstance(values, dict) else None
    if type(version) is int and version in UNSIGNED_VERSIONS:
        raise ValueError(
            f"{path}: format_version {version} does not bind the files of a patch together, so damage could not be noticed; if you know "
            f"where the patch comes from, sign it: pave sign {path.parent}"
        )
    if type(version) is not int or version != FORMAT_VERSION:
        raise ValueError(f"{path}: format_version {version!r} is not {FORMAT_VERSION}, the one this library reads; update pave")


def checked_bytes(folder: Path, name: str, record: PatchRecord) -> bytes:
    """The content of a file of a patch, by its name in the folder, if it is the one that the record was written with.

    Raises:
        ValueError: naming the file, if it is missing or another one.
    """
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{path} is missing; the patch is incomplete")
    content = read_bytes(path, MAX_FILE_BYTES)
    if sha256_of(content) != record.files.get(name):
        raise ValueError(
            f"{path} is not the file that {CONFIG_FILE} was written with: it is damaged or belongs to another patch; copy or download it "
            f"again, or, if it was changed on purpose, sign the patch: pave sign {folder}"
        )
    return content
