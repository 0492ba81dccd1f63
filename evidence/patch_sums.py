"""Several trained patches added up: one folder that computes the sum of what each does to the base.

Residuals of several channels add in a patch as they are, so the fusion modules are put side by side. The updates of a
linear layer add as ``s1 B1 A1 + s2 B2 A2 = s [B1, (s2/s) B2] [A1; A2]`` with ``s = s1``: one update whose rank is the
sum of the ranks. With equal scales no factor changes. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pave.config import LoraSettings
from pave.patching import PatchRecord, lora, read_record
from pave.patching.checkpoint import PatchTensors, read_files, write_files
from pave.patching.fingerprint import differences
from pave.patching.record import ADAPTER_CONFIG, LORA_FOLDER
from pave.utils.files import atomic_write_json
from pave.utils.json_files import read_json_object


def add_patches(parts: Sequence[Path], out: Path) -> Path:
    """Write the sum of saved patches of one base as an ordinary patch, in float32.

    A video that has the channel of one part only gets that part's residual and the LoRA updates of all parts: an
    update belongs to the language model, not to a channel.

    Args:
        parts: folders of patches with different channels; each has LoRA on the same kinds of layers.
        out: where to; an older folder there is replaced whole.

    Returns:
        ``out``.

    Raises:
        ValueError: naming the folder that does not go with the first one.
    """
    records = [read_record(part) for part in parts]
    for part, record in zip(parts[1:], records[1:], strict=True):
        _check_adds(parts[0], records[0], part, record)
    tensors = [read_files(part, record) for part, record in zip(parts, records, strict=True)]
    channels = {name: channel for record in records for name, channel in record.patch.side_channels.items()}
    if len(channels) < sum(len(record.patch.side_channels) for record in records):
        names = ", ".join(map(str, parts))
        raise ValueError(f"{names}: two of the patches have a channel of one name; rename one of them")
    settings = summed_settings([_lora(record) for record in records])
    first = records[0]
    record = replace(
        first,
        fusion_storage="plain",
        patch=replace(first.patch, side_channels=channels, lora=settings, storage_dtype="float32"),
        provenance={"added": [record.provenance for record in records]},
    )

    def save_adapter_config(folder: Path) -> None:
        values = read_json_object(parts[0] / LORA_FOLDER / ADAPTER_CONFIG)
        atomic_write_json(folder / ADAPTER_CONFIG, values | lora.adapter_settings(settings))

    fusion = {key: value.float().contiguous() for part in tensors for key, value in part.fusion.items()}
    return write_files(out, record, fusion, _summed_factors(records, tensors), save_adapter_config)


def _lora(record: PatchRecord) -> LoraSettings:
    assert record.patch.lora is not None
    return record.patch.lora


def _check_adds(first: Path, one: PatchRecord, part: Path, other: PatchRecord) -> None:
    unlike = differences(one.base, other.base)
    if unlike:
        raise ValueError(
            f"{part} was trained on another base than {first}: {'; '.join(unlike)}; add patches of one base"
        )
    settings = [record.patch.lora for record in (one, other)]
    plain = [lora_ for lora_ in settings if lora_ is not None and not lora_.use_dora]
    if len(plain) < 2 or plain[0].targets != plain[1].targets:
        raise ValueError(
            f"{part} and {first} need plain LoRA on the same layers to be added; train them with equal lora.targets"
        )
    mine, theirs = ((p.missing_channel, p.newline, p.vocabulary) for p in (one.patch, other.patch))
    if mine != theirs:
        raise ValueError(
            f"{part} has missing_channel, newline, vocabulary {theirs}, {first} has {mine}; they must agree"
        )


def summed_settings(parts: Sequence[LoraSettings]) -> LoraSettings:
    """LoRA whose ranks are the sums of those of the parts, with the scales of the first."""
    first = parts[0]
    ranks = {kind: sum(part.rank_of(kind) for part in parts) for kind in first.targets}
    alphas = {kind: first.scale_of(kind) * rank for kind, rank in ranks.items()}
    rank, alpha = ranks[first.targets[0]], alphas[first.targets[0]]
    return LoraSettings(
        rank=rank,
        ranks={kind: value for kind, value in ranks.items() if value != rank},
        alpha=alpha,
        alphas={kind: value for kind, value in alphas.items() if value != alpha},
        targets=first.targets,
    )


def _summed_factors(records: Sequence[PatchRecord], tensors: Sequence[PatchTensors]) -> dict[str, Tensor]:
    adapters = [part.adapter or {} for part in tensors]
    out: dict[str, Tensor] = {}
    for key in adapters[0]:
        kind = lora.module_of(key).rsplit(".", 1)[-1]
        scales = [_lora(record).scale_of(kind) for record in records]
        if key.endswith("lora_A.weight"):
            out[key] = torch.cat([adapter[key].float() for adapter in adapters])
        else:
            pairs = zip(adapters, scales, strict=True)
            out[key] = torch.cat([adapter[key].float() * (scale / scales[0]) for adapter, scale in pairs], dim=1)
    return out
