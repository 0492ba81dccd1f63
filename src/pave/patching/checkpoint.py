"""A patch on disk: save, load, share. docs/patch_format.md describes the files.

```
patch_config.json                what the patch is, on which base, where it came from, and hashes of the other files
patch.safetensors                the fusion modules
lora/adapter_config.json         the LoRA part in PEFT's own format
lora/adapter_model.safetensors
README.md                        a generated card, free to be edited
```

The hashes bind the files together: what was damaged, or belongs to another patch, is refused. ``sign_patch`` makes them anew.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pave.config import PatchConfig
from pave.patching import lora
from pave.patching.card import patch_card
from pave.patching.fingerprint import BaseFingerprint, fingerprint
from pave.patching.lookup import patch_name, patch_slot
from pave.patching.record import (
    ADAPTER_CONFIG,
    CONFIG_FILE,
    FUSION_FILE,
    LORA_FILE,
    LORA_FOLDER,
    PatchRecord,
    checked_bytes,
    read_record,
    write_record,
)
from pave.patching.storage import to_storage, unpack
from pave.utils.files import atomic_folder
from pave.version import __version__


def save_patch(
    model: nn.Module,
    folder: str | Path,
    *,
    name: str | None = None,
    processor: Any = None,
    provenance: Mapping[str, Any] | None = None,
    storage_dtype: str | None = None,
    base: BaseFingerprint | None = None,
    write: bool = True,
) -> Path:
    """Write the attached patch to a folder, atomically: an older patch there is replaced whole or not at all.

    Where FSDP2 shards the model, every process must call it, and one of them with ``write``.

    Args:
        model: a patched model.
        folder: where to.
        name: of the patch, where the model carries several.
        processor: the base's processor, so that its tokenizer and chat template enter the fingerprint.
        provenance: JSON values to record.
        storage_dtype: overrides the config's (training checkpoints use "float32", to resume exactly).
        base: the base's fingerprint, if it was taken earlier; the weights of a sharded base cannot be read.
        write: False only gathers the tensors of a sharded model for the process that writes.

    Returns:
        The folder.

    Raises:
        ValueError: if the model carries no patch, or a tensor of the patch is not finite.
    """
    name = patch_name(model, name)
    slot = patch_slot(model, name)
    dtype = getattr(torch, storage_dtype or slot.config.storage_dtype)
    record = PatchRecord(
        pave_version=__version__,
        name=name,
        patch=slot.config,
        base=base or fingerprint(model, processor),
        provenance=dict(provenance or {}),
    )
    fusion = to_storage(slot.fusions.state_dict(), dtype)
    adapter = to_storage(lora.state_dict(model, name), dtype) if slot.config.lora is not None else None
    return write_patch(folder, record, model, fusion, adapter) if write else Path(folder)


def write_patch(
    folder: str | Path,
    record: PatchRecord,
    model: nn.Module,
    fusion: Mapping[str, Tensor],
    adapter: Mapping[str, Tensor] | None,
) -> Path:
    """Write the files of a patch, atomically, from tensors as they are stored; ``model`` carries a patch of the same config."""
    return write_files(
        folder, record, fusion, adapter, lambda inner: lora.save_config(model, record.name, str(inner), record.base.model_id)
    )


def write_files(
    folder: str | Path,
    record: PatchRecord,
    fusion: Mapping[str, Tensor],
    adapter: Mapping[str, Tensor] | None,
    save_adapter_config: Callable[[Path], None],
) -> Path:
    """Write the files of a patch, atomically, from tensors as they are stored; PEFT's config is written into the folder given."""
    target = Path(folder)
    with atomic_folder(target) as work:
        safetensors.torch.save_file(dict(fusion), work / FUSION_FILE, metadata={"format": "pt"})
        if adapter is not None:
            (work / LORA_FOLDER).mkdir()
            safetensors.torch.save_file(dict(adapter), work / LORA_FOLDER / LORA_FILE, metadata={"format": "pt"})
            save_adapter_config(work / LORA_FOLDER)
        write_record(work, work / CONFIG_FILE, record)
        (work / "README.md").write_text(patch_card(record, fusion, adapter or {}), encoding="utf-8")
    return target


def load_tensors(model: nn.Module, folder: str | Path, *, name: str | None = None) -> None:
    """Copy a saved patch's tensors into the attached patch of the same config, strictly.

    Raises:
        ValueError: if the folder holds another config, or a tensor is missing, unexpected, wrongly shaped or not finite.
    """
    record = read_record(folder)
    slot = patch_slot(model, name)
    if record.patch != slot.config:
        raise ValueError(
            f"{folder} holds a patch of another config than the attached one: {first_difference(record.patch, slot.config)}"
        )
    copy_into(model, Path(folder), read_files(Path(folder), record), name=name)


@dataclass(frozen=True)
class PatchTensors:
    """What the files of a patch hold."""

    fusion: dict[str, Tensor]
    """Unpacked: by the names of the modules."""
    adapter: dict[str, Tensor] | None
    stored_fusion: dict[str, Tensor]
    """As they lie in the file."""


def read_files(folder: Path, record: PatchRecord) -> PatchTensors:
    """Read and check the tensors of a patch as far as that goes without its base.

    Raises:
        ValueError: naming the file, and the tensor if it is one, that is missing, damaged, or does not go with ``record``.
    """
    patch = record.patch
    adapter_file = folder / LORA_FOLDER / LORA_FILE
    if patch.lora is None and adapter_file.exists():
        raise ValueError(f"{adapter_file} exists, but {CONFIG_FILE} says the patch has no LoRA")
    stored = _read_file(folder, FUSION_FILE, record)
    fusion = unpack(stored, record.fusion_storage, str(folder / FUSION_FILE))
    if patch.lora is None:
        return PatchTensors(fusion, None, stored)
    checked_bytes(folder, f"{LORA_FOLDER}/{ADAPTER_CONFIG}", record)
    lora.check_config(folder / LORA_FOLDER, patch.lora)
    adapter = unpack(_read_file(folder, f"{LORA_FOLDER}/{LORA_FILE}", record), "plain", str(adapter_file))
    lora.check_ranks(adapter, patch.lora, str(adapter_file))
    return PatchTensors(fusion, adapter, stored)


def copy_into(
    model: nn.Module, folder: Path, tensors: PatchTensors, channels: Iterable[str] | None = None, *, name: str | None = None
) -> None:
    """Copy tensors into the attached patch, strictly: all of them, or those of some channels (and LoRA where there are tensors of it).

    Raises:
        ValueError: naming a tensor that is missing, unexpected or of another shape.
    """
    own = patch_slot(model, name).fusions.state_dict()
    if channels is not None:
        chosen = set(channels)
        own = {key: value for key, value in own.items() if key.split(".", 1)[0] in chosen}
    lora.check_same_tensors(own, tensors.fusion, str(folder / FUSION_FILE))
    if tensors.adapter is not None:
        lora.load_state_dict(model, patch_name(model, name), tensors.adapter, str(folder / LORA_FOLDER / LORA_FILE))
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(lora.like(value, tensors.fusion[key]))


def _read_file(folder: Path, name: str, record: PatchRecord) -> dict[str, Tensor]:
    content = checked_bytes(folder, name, record)
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{folder / name} is not a complete safetensors file ({error}); copy or download it again") from None


def first_difference(was: PatchConfig, is_: PatchConfig) -> str:
    """In words: where two configs differ first."""
    flat_was, flat_is = _flatten(was.to_dict()), _flatten(is_.to_dict())
    for key in sorted(set(flat_was) | set(flat_is)):
        if flat_was.get(key) != flat_is.get(key):
            return f"{key} is {flat_was.get(key)!r} there and {flat_is.get(key)!r} here"
    return "no difference"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out


def resolve_patch(patch: str | Path, revision: str | None = None) -> Path:
    """The local folder of a patch, downloaded from the hub if ``patch`` is no folder.

    Raises:
        ValueError: if there is no such folder and no such repository can be had.
    """
    folder = Path(patch)
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision {revision!r} was given, but {patch} is a local folder")
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = [CONFIG_FILE, FUSION_FILE, f"{LORA_FOLDER}/*", "README.md"]
        return Path(snapshot_download(str(patch), revision=revision, allow_patterns=patterns))
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"no patch at {str(patch)!r}: there is no such folder, and the hub did not give it ({type(error).__name__})"
        ) from error


def push_patch_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    message: str = "Upload patch",
    **saving: Any,
) -> str:
    """Save the attached patch and upload it to a repository on the hub, made if need be.

    Args:
        saving: further arguments of ``save_patch``.

    Returns:
        The address of the commit.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    repo = api.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        folder = save_patch(model, Path(work) / "patch", **saving)
        commit = api.upload_folder(repo_id=repo.repo_id, folder_path=folder, commit_message=message)
    return str(commit.commit_url)
