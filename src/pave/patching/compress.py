"""Make a trained patch smaller: LoRA updates of lower rank, and the fusion's matrices in 8-bit or 4-bit integers.

The update of a layer is ``scale * B @ A``. Its best approximation of a lower rank, in the Frobenius norm and in the spectral norm,
keeps the largest singular values (Eckart and Young 1936). They are computed exactly without ever multiplying the factors out:
``B = Q_b R_b`` and ``A^T = Q_a R_a``, and the singular value decomposition of the small matrix ``R_b R_a^T``.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pave.config import LoraSettings
from pave.patching import lora
from pave.patching.checkpoint import PatchTensors, read_files, resolve_patch, write_files
from pave.patching.record import ADAPTER_CONFIG, LORA_FOLDER, PatchRecord, read_record
from pave.patching.storage import FusionStorage, pack, tensor_bytes, to_storage, unpack
from pave.utils.json_files import read_json_object
from pave.version import __version__


@dataclass(frozen=True)
class CompressedPatch:
    """A patch made smaller, in memory; ``write_compressed`` writes it."""

    source: Path
    record: PatchRecord
    fusion: dict[str, Tensor]
    """As it is stored."""
    adapter: dict[str, Tensor] | None
    """As it is stored."""
    bytes_before: dict[str, int]
    """Of the tensors of "fusion" and "lora"."""
    bytes_after: dict[str, int]
    ranks: dict[str, tuple[int, int]]
    """Rank of the LoRA update before and after, of every kind of layer whose rank changed."""
    errors: dict[str, float]
    """Norm of the difference over norm of what it was (Frobenius), for every tensor of the fusion that was packed and every LoRA
    update that was cut, by its layer. Of a DoRA layer: of the update before its rows are brought to length."""

    def summary(self) -> dict[str, Any]:
        """What is recorded in the patch: JSON values."""
        worst = {
            part: max((error for key, error in self.errors.items() if key.startswith("lora ") == is_lora), default=0.0)
            for part, is_lora in (("fusion", False), ("lora", True))
        }
        return {
            "pave_version": __version__,
            "lora_ranks": {kind: list(pair) for kind, pair in self.ranks.items()},
            "fusion_storage": self.record.fusion_storage,
            "bytes_before": sum(self.bytes_before.values()),
            "bytes_after": sum(self.bytes_after.values()),
            "largest_error": worst,
        }


def compress_patch(
    patch: str | Path,
    *,
    lora_rank: int | Mapping[str, int] | None = None,
    lora_energy: float | None = None,
    fusion: FusionStorage | None = None,
) -> CompressedPatch:
    """Make a patch smaller, in memory. Its base is not needed.

    Args:
        patch: a folder or a hub id.
        lora_rank: rank that every LoRA update is cut to, or ranks by kind of layer; kinds of lower rank, and kinds not named, stay.
        lora_energy: share of the squared norm of all updates of a kind to keep; each kind gets the smallest rank that does.
        fusion: how to store the fusion's matrices: 8bit or 4bit. None leaves them as they are.

    Raises:
        ValueError: if nothing is asked for or would change, the patch is damaged, or a rank is not lower than the one there is.
    """
    source = resolve_patch(patch)
    record = read_record(source)
    if lora_rank is None and lora_energy is None and fusion is None:
        raise ValueError(f"{patch}: say what to compress: the LoRA by rank or energy, the fusion's storage, or both")
    tensors = read_files(source, record)
    dtype = getattr(torch, record.patch.storage_dtype)
    errors: dict[str, float] = {}
    stored, storage = _pack_fusion(source, record, tensors, fusion, errors)
    settings, adapter = record.patch.lora, tensors.adapter
    ranks: dict[str, tuple[int, int]] = {}
    if lora_rank is not None or lora_energy is not None:
        if settings is None or adapter is None:
            raise ValueError(f"{patch} has no LoRA to compress")
        wanted = _wanted_ranks(str(patch), settings, adapter, lora_rank, lora_energy)
        smaller = with_ranks(settings, wanted)
        ranks = {k: (settings.rank_of(k), rank) for k, rank in wanted.items() if rank < settings.rank_of(k)}
        adapter = _cut_adapter(adapter, settings, smaller, dtype, errors)
        settings = smaller
    before = {"fusion": tensor_bytes(tensors.stored_fusion), "lora": tensor_bytes(tensors.adapter or {})}
    after = {"fusion": tensor_bytes(stored), "lora": tensor_bytes(adapter or {})}
    made = dataclasses.replace(
        record,
        fusion_storage=storage,
        pave_version=__version__,
        patch=dataclasses.replace(record.patch, lora=settings),
    )
    return CompressedPatch(source, made, stored, adapter, before, after, ranks, errors)


def write_compressed(compressed: CompressedPatch, out: str | Path, *, measured: Mapping[str, Any] | None = None) -> Path:
    """Write a compressed patch, atomically; it loads as any other.

    Args:
        compressed: what ``compress_patch`` gave.
        out: where to; an older folder there is replaced whole.
        measured: JSON values on its quality to record, with a ``sentence`` for the card.

    Raises:
        ValueError: if ``out`` is the patch itself, or one of the two folders is inside the other.
    """
    source, record = compressed.source, compressed.record
    check_out(source, out)
    done = compressed.summary() | ({} if measured is None else {"measured": dict(measured)})
    record = dataclasses.replace(record, provenance={**record.provenance, "compressed": done})

    def save_adapter_config(folder: Path) -> None:
        assert record.patch.lora is not None
        values = read_json_object(source / LORA_FOLDER / ADAPTER_CONFIG)
        values |= lora.adapter_settings(record.patch.lora)
        (folder / ADAPTER_CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True), encoding="utf-8")

    return write_files(out, record, compressed.fusion, compressed.adapter, save_adapter_config)


def check_out(source: str | Path, out: str | Path) -> None:
    """Refuse to write a patch over the one it is made from.

    Raises:
        ValueError: if ``out`` is ``source``, or one of the two folders is inside the other.
    """
    given, target = Path(source).resolve(), Path(out).resolve()
    if target == given or target in given.parents or given in target.parents:
        raise ValueError(f"{out} and the patch {source} are one folder or inside each other; write to another folder")


# --- the fusion


def _pack_fusion(
    source: Path, record: PatchRecord, tensors: PatchTensors, fusion: FusionStorage | None, errors: dict[str, float]
) -> tuple[dict[str, Tensor], FusionStorage]:
    """The fusion as it will be stored; without a wish, exactly as it is."""
    if fusion is None:
        return tensors.stored_fusion, record.fusion_storage
    if fusion == "plain":
        raise ValueError("fusion: to compress is to store in 8bit or 4bit; load and save the patch to store it plainly")
    if record.fusion_storage in (fusion, "4bit"):
        raise ValueError(
            f"{source}: the fusion is stored in {record.fusion_storage} already, {fusion} would not make it smaller"
        )
    if not tensors.fusion:
        raise ValueError(f"{source} has no fusion to compress: it has no side channel")
    stored = pack(tensors.fusion, fusion, getattr(torch, record.patch.storage_dtype))
    for key, value in unpack(stored, fusion, "packed").items():
        if key not in stored:
            errors[key] = _relative(value - tensors.fusion[key].float(), tensors.fusion[key].float())
    return stored, fusion


def _relative(difference: Tensor, whole: Tensor) -> float:
    norm = float(whole.double().norm())
    return float(difference.double().norm()) / norm if norm else 0.0


# --- LoRA


def with_ranks(settings: LoraSettings, ranks: Mapping[str, int]) -> LoraSettings:
    """Other ranks for the same updates: every kind of layer keeps its scale, so its alpha changes with its rank.

    Args:
        settings: of the updates.
        ranks: by kind of layer, for every one in ``settings.targets``.
    """
    alphas = {
        kind: settings.alpha_of(kind)
        if rank == settings.rank_of(kind)
        else settings.scale_of(kind) * (math.sqrt(rank) if settings.use_rslora else rank)
        for kind, rank in ranks.items()
    }
    rank, alpha = ranks[settings.targets[0]], alphas[settings.targets[0]]
    return dataclasses.replace(
        settings,
        rank=rank,
        ranks={kind: value for kind, value in ranks.items() if value != rank},
        alpha=alpha,
        alphas={kind: value for kind, value in alphas.items() if value != alpha},
    )


def reduced_ranks(settings: LoraSettings, wanted: int | Mapping[str, int], where: str) -> dict[str, int]:
    """The rank of every kind of layer when it is cut to ``wanted``; kinds of lower rank and kinds not named stay.

    Raises:
        ValueError: naming ``where``, if a rank is not positive, nothing changes, or a named kind is not there or has a lower rank.
    """
    if isinstance(wanted, int):
        ranks = {kind: min(wanted, settings.rank_of(kind)) for kind in settings.targets}
    else:
        for kind, rank in wanted.items():
            if kind not in settings.targets:
                raise ValueError(f"{where}: there is no LoRA on {kind!r}; it is on {', '.join(settings.targets)}")
            if rank > settings.rank_of(kind):
                raise ValueError(f"{where}: {kind} has rank {settings.rank_of(kind)}, which cannot be cut to {rank}")
        ranks = {kind: wanted.get(kind, settings.rank_of(kind)) for kind in settings.targets}
    if min(ranks.values()) < 1:
        raise ValueError(f"{where}: a LoRA rank is at least 1, got {min(ranks.values())}")
    if all(rank == settings.rank_of(kind) for kind, rank in ranks.items()):
        raise ValueError(f"{where}: no LoRA update has a higher rank than asked for; ask for a lower one")
    return ranks


def _wanted_ranks(
    where: str,
    settings: LoraSettings,
    adapter: Mapping[str, Tensor],
    rank: int | Mapping[str, int] | None,
    energy: float | None,
) -> dict[str, int]:
    if energy is None:
        assert rank is not None
        return reduced_ranks(settings, rank, where)
    if rank is not None:
        raise ValueError(f"{where}: the LoRA is cut by rank or by energy; give one of the two")
    if not 0 < energy <= 1:
        raise ValueError(f"{where}: energy is a share, above 0 and at most 1, got {energy}")
    squares = {kind: torch.zeros(settings.rank_of(kind), dtype=torch.float64) for kind in settings.targets}
    for module in _modules(adapter):
        kind = module.rsplit(".", 1)[-1]
        found = torch.linalg.svdvals(_core(*_factors(adapter, module))[0]).square()
        squares[kind][: len(found)] += found[: len(squares[kind])]
    return {kind: _enough(values, energy) for kind, values in squares.items()}


def _enough(squares: Tensor, energy: float) -> int:
    """How many of the largest values it takes to have this share of the sum; what is exactly zero is never kept beyond one."""
    kept = squares.cumsum(0)
    if not float(kept[-1]):
        return 1
    return min(int((kept < energy * kept[-1]).sum()) + 1, int((squares > 1e-12 * kept[-1]).sum()))


def _cut_adapter(
    adapter: Mapping[str, Tensor], before: LoraSettings, after: LoraSettings, dtype: torch.dtype, errors: dict[str, float]
) -> dict[str, Tensor]:
    out = dict(adapter)
    for module in _modules(adapter):
        kind = module.rsplit(".", 1)[-1]
        rank = after.rank_of(kind)
        if rank == before.rank_of(kind):
            continue
        down, up = _factors(adapter, module)
        down_cut, up_cut = _truncate(down, up, rank)
        ratio = math.sqrt(before.scale_of(kind) / after.scale_of(kind))  # 1 but for rounding
        prefix = f"base_model.model.{module}"
        out |= to_storage({f"{prefix}.lora_A.weight": down_cut * ratio, f"{prefix}.lora_B.weight": up_cut * ratio}, dtype)
        stored_down, stored_up = _factors(out, module)
        scaled_up, stored_up = before.scale_of(kind) * up, after.scale_of(kind) * stored_up
        difference = _core(torch.cat([down, stored_down]), torch.cat([scaled_up, -stored_up], dim=1))[0]
        errors[f"lora {module}"] = _relative(difference, _core(down, scaled_up)[0])
    return out


def _modules(adapter: Mapping[str, Tensor]) -> list[str]:
    """The layers that the adapter updates; both factors of each must be there and fit.

    Raises:
        ValueError: naming the tensor that is missing or does not fit.
    """
    modules = list(dict.fromkeys(lora.module_of(key) for key in adapter))
    for module in modules:
        parts = [f"base_model.model.{module}.lora_{part}.weight" for part in "AB"]
        for key in parts:
            if key not in adapter:
                raise ValueError(f"the adapter is incomplete: {key} is missing")
        down, up = (adapter[key] for key in parts)
        if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
            raise ValueError(f"the adapter is damaged: {parts[0]} and {parts[1]} do not fit each other")
    return modules


def _factors(adapter: Mapping[str, Tensor], module: str) -> tuple[Tensor, Tensor]:
    """A (rank, inputs) and B (outputs, rank) of a layer, in float64."""
    prefix = f"base_model.model.{module}"
    return adapter[f"{prefix}.lora_A.weight"].double(), adapter[f"{prefix}.lora_B.weight"].double()


def _core(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A small matrix with the singular values of ``up @ down``, and the orthonormal columns on either side of it."""
    left, r_left = torch.linalg.qr(up)
    right, r_right = torch.linalg.qr(down.T)
    return r_left @ r_right.T, left, right


def _truncate(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The factors of the best approximation of ``up @ down`` of this rank, with equal singular values."""
    core, left, right = _core(down, up)
    u, s, vh = torch.linalg.svd(core, full_matrices=False)
    root = s[:rank].sqrt()
    up_cut, down_cut = (left @ u[:, :rank]) * root, (right @ vh[:rank].T).T * root[:, None]
    missing = rank - len(root)
    pad = torch.nn.functional.pad
    return pad(down_cut, (0, 0, 0, missing)), pad(up_cut, (0, missing))
