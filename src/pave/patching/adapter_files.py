"""The LoRA part of a patch on disk, in PEFT's format: checks that need neither PEFT nor a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pave.config import LoraSettings
from pave.patching.record import ADAPTER_CONFIG
from pave.utils.json_files import read_json_object


def check_config(folder: Path, settings: LoraSettings) -> None:
    """Refuse a folder whose ``adapter_config.json`` would make PEFT compute another update than ``settings`` do.

    Raises:
        ValueError: naming the file and what it says.
    """
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        raise ValueError(f"{path} is missing; the patch is incomplete")
    ours = adapter_settings(settings)
    values = read_json_object(path)
    try:
        found = {
            key: values[key] if key in ("r", "lora_alpha") else values.get(key) or type(value)() for key, value in ours.items()
        }
    except (TypeError, KeyError, AttributeError):
        raise ValueError(f"{path} is no config of a LoRA adapter; copy or download it again") from None
    for key, value in ours.items():
        if found[key] != value:
            raise ValueError(
                f"{path}: {key} is {found[key]!r}, but the patch was made with {value!r}; the files belong to two patches"
            )


def adapter_settings(settings: LoraSettings) -> dict[str, Any]:
    """What PEFT's ``adapter_config.json`` says of the update that ``settings`` describe, by PEFT's names."""
    return {
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "rank_pattern": dict(settings.ranks),
        "alpha_pattern": dict(settings.alphas),
        "use_rslora": settings.use_rslora,
        "use_dora": settings.use_dora,
    }


def module_of(key: str) -> str:
    """The base's own name of the linear layer that an adapter tensor is for.

    Raises:
        ValueError: if the tensor is no part of a LoRA update.
    """
    found = re.fullmatch(r"base_model\.model\.(.+)\.lora_(?:[AB]\.weight|magnitude_vector)", key)
    if found is None:
        raise ValueError(f"{key} is no tensor of a LoRA update")
    return found[1]


def check_ranks(tensors: Mapping[str, Tensor], settings: LoraSettings, where: str) -> None:
    """Refuse first factors of other ranks than ``settings`` name, and kinds without any; ``where`` is named."""
    absent = set(settings.targets)
    for key, value in tensors.items():
        if not key.endswith(".lora_A.weight"):
            continue
        kind = key.removesuffix(".lora_A.weight").rsplit(".", 1)[-1]
        absent.discard(kind)
        rank = settings.rank_of(kind)
        if value.shape[:1] != (rank,):
            raise ValueError(f"{where}: {key} has shape {tuple(value.shape)}, patch_config.json says rank {rank}")
    if absent:
        raise ValueError(f"{where}: no tensor is for {sorted(absent)[0]}, which patch_config.json names in lora.targets")


def like(own: Tensor, given: Tensor) -> Tensor:
    """A whole tensor cut as ``own`` is, where FSDP2 shards that; every process must call it with the whole one."""
    sharded: Any = own
    if not hasattr(sharded, "full_tensor"):
        return given
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(given.to(own.device), sharded.device_mesh, sharded.placements)


def check_same_tensors(own: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str) -> None:
    """Both hold the same names and shapes, or one ValueError names the first difference and counts the rest."""
    missing, unexpected = sorted(set(own) - set(given)), sorted(set(given) - set(own))
    if missing:
        raise ValueError(f"{where}: {len(missing)} tensor(s) missing, the first is {missing[0]}")
    if unexpected:
        raise ValueError(f"{where}: {len(unexpected)} unexpected tensor(s), the first is {unexpected[0]}")
    for key, value in own.items():
        if value.shape != given[key].shape:
            raise ValueError(
                f"{where}: {key} has shape {tuple(given[key].shape)}, this base and config need {tuple(value.shape)}"
            )
