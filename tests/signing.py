"""Signing a patch's files as docs/patch_format.md says, written apart from the library."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

ZEROS = "sha256:" + "0" * 64


def hash_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def resign(folder: str | Path) -> None:
    """What somebody does who changed files and computes the hashes anew, whatever is in them."""
    path = Path(folder) / "patch_config.json"
    values = json.loads(path.read_text())
    lora = ["lora/adapter_config.json", "lora/adapter_model.safetensors"] if values["patch"].get("lora") else []
    files = {name: path.parent / name for name in ["patch.safetensors", *lora]}
    values["files"] = {name: hash_of(file.read_bytes()) if file.is_file() else hash_of(b"") for name, file in files.items()}
    text = json.dumps({**values, "digest": ZEROS})
    path.write_text(text.replace(ZEROS, hash_of(text.encode())))


def resign_checkpoint(folder: str | Path) -> None:
    """The same for a checkpoint of a training: its patch, and the manifest that names every file."""
    resign(folder)
    path = Path(folder) / "checkpoint.json"
    values = json.loads(path.read_text())
    for name in values["files"]:
        content = (path.parent / name).read_bytes()
        values["files"][name], values["hashes"][name] = len(content), hash_of(content)
    text = json.dumps({**values, "digest": ZEROS})
    path.write_text(text.replace(ZEROS, hash_of(text.encode())))
