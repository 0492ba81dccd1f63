"""A patch as plain files for other engines: a PEFT adapter, the fusion weights, and a JSON file that says how they act."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch

from pave.patching import lora
from pave.patching.checkpoint import read_files, resolve_patch
from pave.patching.record import LORA_FILE, LORA_FOLDER, PatchRecord, read_record
from pave.utils.files import atomic_folder
from pave.utils.json_files import read_json_object
from pave.version import __version__

EXPORT_VERSION = 1
SETTINGS_FILE = "pave_export.json"
EXPORTED_FUSION = "fusion.safetensors"


@dataclass(frozen=True)
class ExportedPatch:
    """What ``export_patch`` wrote."""

    folder: Path
    files: tuple[str, ...]
    duties: tuple[str, ...]
    """What an engine must do besides loading the adapter."""


def export_patch(patch: str | Path, out: str | Path) -> ExportedPatch:
    """Write a patch as files that other programs read without this library.

    ``adapter_config.json`` and ``adapter_model.safetensors`` are PEFT's own and load with ``PeftModel.from_pretrained`` on the
    base; the target modules are written as full names, which every reader of PEFT folders understands. ``fusion.safetensors``
    holds the fusion modules, ``pave_export.json`` the patch's config, its base, and what the prompt and the head must look like.

    Args:
        patch: a folder or a hub id.
        out: where to; an older folder there is replaced whole.

    Raises:
        ValueError: if there is no such patch, or it is damaged.
    """
    source = resolve_patch(patch)
    record = read_record(source)
    tensors = read_files(source, record)
    fusion, adapter = tensors.fusion, tensors.adapter
    must = _duties(record)
    with atomic_folder(out) as work:
        safetensors.torch.save_file(fusion, work / EXPORTED_FUSION, metadata={"format": "pt"})
        if adapter is not None:
            config = read_json_object(source / LORA_FOLDER / "adapter_config.json")
            config["target_modules"] = sorted({lora.module_of(key) for key in adapter})
            _write_json(work / "adapter_config.json", config)
            safetensors.torch.save_file(adapter, work / LORA_FILE, metadata={"format": "pt"})
        _write_json(work / SETTINGS_FILE, _settings(record, must))
        files = tuple(sorted(path.name for path in work.iterdir()))
    return ExportedPatch(Path(out), files, must)


def _duties(record: PatchRecord) -> tuple[str, ...]:
    """In words: what the adapter alone does not do."""
    patch = record.patch
    out = [
        f"fuse side channel {name!r} ({channel.fusion.kind}, {channel.fusion.alignment} alignment) into the video tokens before the "
        "language model"
        for name, channel in patch.side_channels.items()
    ]
    if patch.newline == "grid":
        out.append("put the base's image_newline embedding behind every row of every frame, after the fusion")
    if patch.vocabulary is not None:
        out.append(f"leave out token ids from {patch.vocabulary} on when choosing the next token")
    if patch.side_channels and patch.missing_channel == "base":
        out.append("switch LoRA off for videos without a side channel")
    return tuple(out)


def _settings(record: PatchRecord, must: tuple[str, ...]) -> dict[str, Any]:
    values = record.to_dict()
    return {
        "export_version": EXPORT_VERSION,
        "pave_version": __version__,
        "base": values["base"],
        "patch": values["patch"],
        "files": {"fusion": EXPORTED_FUSION, "lora": LORA_FILE if record.patch.lora is not None else None},
        "engine_must": list(must),
        "provenance": values["provenance"],
    }


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
