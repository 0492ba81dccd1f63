"""Several trained patches as one: the sum of what each does to the base, exactly or approximated.

Residuals of several channels add in a patch as they are, so the fusion modules are put side by side. The updates of a linear layer
add as ``s1 B1 A1 + s2 B2 A2 = s1 [B1, (s2 / s1) B2] [A1; A2]``: one update whose rank is the sum of the ranks. With equal scales no
number changes. Nothing is trained, and no base is needed.

What one patch cannot do is to tell whose row it is. Where only one of the channels is there, the merged patch adds the LoRA updates of
all parts; the parts on one base (``patches={"a": 1.0, "b": 1.0}``) add those of the patches whose channel is there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pave.config import LoraSettings, PatchConfig, SideChannelConfig
from pave.patching import adapter_files
from pave.patching.checkpoint import write_files
from pave.patching.compose_parts import Part, check_adds, read_parts, weighed_parts
from pave.patching.compress import (
    UpdateChange,
    check_out,
    cut_adapter,
    factor_names,
    factors,
    reduced_ranks,
    update_changes,
    updated_layers,
    with_ranks,
)
from pave.patching.knots import knots
from pave.patching.record import ADAPTER_CONFIG, FUSION_FILE, LORA_FOLDER, PatchRecord
from pave.patching.rows import Strength
from pave.utils.files import atomic_write_json
from pave.utils.json_files import read_json_object
from pave.version import __version__

Method = Literal["sum", "knots"]
DENSITY = 0.5
"""Share of every update that ``knots`` keeps."""


@dataclass(frozen=True)
class ComposedPatch:
    """Patches added up, in memory; ``write_composed`` writes the sum."""

    parts: tuple[Part, ...]
    record: PatchRecord
    fusion: dict[str, Tensor]
    """As it is stored."""
    adapter: dict[str, Tensor]
    """As it is stored; empty without LoRA."""
    changes: dict[str, UpdateChange]
    """How far the update of a layer is from the sum, by layer where it is cut or merged; empty for a sum."""

    @property
    def lost(self) -> float:
        """Squared norm of the difference to the sum over that of the sum, over all updates; 0 for a sum."""
        whole = sum(change.whole**2 for change in self.changes.values())
        return sum(change.norm**2 for change in self.changes.values()) / whole if whole else 0.0


def compose_patches(
    patches: Mapping[str, str | Path] | Sequence[str | Path],
    *,
    weights: Mapping[str, Strength] | None = None,
    method: Method = "sum",
    density: float = DENSITY,
    rank: int | None = None,
) -> ComposedPatch:
    """Add trained patches of one base up, in memory.

    Args:
        patches: folders or hub ids, by name or in a row (``read_parts``).
        weights: by name, as ``patches=`` takes strengths in a call: one number, or a pair (of the residual, of the LoRA update). Default
            1.
        method: sum adds the LoRA updates. knots merges those of a layer that several patches update in the subspace that they span
            (``pave.patching.knots``). The fusion modules stand side by side in both.
        density: share of every update that knots keeps.
        rank: cut every LoRA update of a higher rank to this one, by its largest singular values.

    Raises:
        ValueError: naming the patch and what a single patch cannot hold: another base, DoRA, prompts laid out otherwise, another rule for
            missing channels, a weight on a fusion whose output cannot be scaled.
    """
    if method not in get_args(Method):
        raise ValueError(f"method is {' or '.join(get_args(Method))}, got {method!r}")
    parts = weighed_parts(read_parts(patches), weights or {})
    for part in parts[1:]:
        check_adds(parts[0], part)
    fusion, settings = _side_by_side(parts), _summed_settings(parts)
    adapter: dict[str, Tensor] = {}
    changes: dict[str, UpdateChange] = {}
    if settings is not None:
        adapter = _summed(parts, settings)
    elif rank is not None:
        raise ValueError("rank: none of the patches adds a LoRA update that could be cut")
    dtype = _storage_dtype(parts, [*fusion.values(), *adapter.values()])
    if settings is not None:
        made = _merged(parts, settings, adapter, density) if method == "knots" else adapter
        smaller = settings if rank is None else with_ranks(settings, reduced_ranks(settings, rank, "rank"))
        made = cut_adapter(made, settings, smaller, torch.float32)
        changes = update_changes(adapter, settings, made, smaller)
        settings, adapter = smaller, made
    record = dataclasses.replace(
        parts[0].record,
        pave_version=__version__,
        name="_".join(part.name for part in parts),
        patch=_summed_config(parts, settings, dtype),
        fusion_storage="plain",
    )
    stored = [{key: value.to(dtype) for key, value in tensors.items()} for tensors in (fusion, adapter)]
    composed = ComposedPatch(parts, record, stored[0], stored[1], changes)
    made_by = {"method": method, **({"density": density} if method == "knots" else {}), "rank": rank}
    return dataclasses.replace(composed, record=dataclasses.replace(record, provenance=_provenance(composed, made_by)))


def write_composed(composed: ComposedPatch, out: str | Path, *, measured: Mapping[str, Any] | None = None) -> Path:
    """Write a composed patch, atomically; it loads as any other.

    Args:
        composed: what ``compose_patches`` gave.
        out: where to; an older folder there is replaced whole.
        measured: JSON values on its quality to record.

    Raises:
        ValueError: if ``out`` is one of the parts, or one of the folders is inside the other.
    """
    for part in composed.parts:
        check_out(part.folder, out)
    record = composed.record
    if measured is not None:
        made = {**record.provenance["composed"], "measured": dict(measured)}
        record = dataclasses.replace(record, provenance={**record.provenance, "composed": made})

    def save_adapter_config(folder: Path) -> None:
        assert record.patch.lora is not None
        first = next(part for part in composed.parts if part.lora is not None)
        values = read_json_object(first.folder / LORA_FOLDER / ADAPTER_CONFIG)
        layers = sorted(updated_layers(composed.adapter))  # by their full names, as every reader of PEFT's folders knows them
        values |= {**adapter_files.adapter_settings(record.patch.lora), "target_modules": layers}
        atomic_write_json(folder / ADAPTER_CONFIG, values)

    return write_files(out, record, composed.fusion, composed.adapter or None, save_adapter_config)


# --- what it says of itself


def _summed_config(parts: Sequence[Part], settings: LoraSettings | None, dtype: torch.dtype) -> PatchConfig:
    channels: dict[str, SideChannelConfig] = {}
    for part in parts:
        channels |= {name: part.record.patch.side_channels[own] for own, name in part.channels.items()}
    try:
        return dataclasses.replace(
            parts[0].record.patch,
            side_channels=channels,
            lora=settings,
            missing_channel="base" if parts[0].missing_channel == "base" else "lora_only",
            storage_dtype=str(dtype).removeprefix("torch."),  # type: ignore[arg-type]
        )
    except ValueError as error:
        raise ValueError(f"the patches {', '.join(str(part.folder) for part in parts)} cannot be one: {error}") from None


def _provenance(composed: ComposedPatch, made_by: Mapping[str, Any]) -> dict[str, Any]:
    """What the sum was made of. Frames are sampled as for its parts where these agree, else as a caller says."""
    recipes = [part.record.provenance.get("recipe") for part in composed.parts]
    frames = [recipe["data"].get("frames") for recipe in recipes if isinstance(recipe, dict) and "data" in recipe]
    alike = len(frames) == len(recipes) and all(each == frames[0] for each in frames)
    parts = [
        {
            "name": part.name,
            "patch": str(part.folder),
            "files": dict(part.record.files),
            "weight": part.weight,
            "lora_weight": part.lora_weight,
            "channels": dict(part.channels),
            "provenance": part.record.provenance,
        }
        for part in composed.parts
    ]
    return {
        **({"recipe": {"data": {"frames": frames[0]}}} if alike and frames[0] is not None else {}),
        "composed": {**made_by, "lost": composed.lost, "parts": parts},
    }


def _storage_dtype(parts: Sequence[Part], tensors: Sequence[Tensor]) -> torch.dtype:
    """That of the parts where it holds their sum exactly, else float32."""
    stored = {part.record.patch.storage_dtype for part in parts}
    dtype: torch.dtype = getattr(torch, stored.pop()) if len(stored) == 1 else torch.float32
    return dtype if all(torch.equal(value.to(dtype).to(value.dtype), value) for value in tensors) else torch.float32


# --- the fusion


def _side_by_side(parts: Sequence[Part]) -> dict[str, Tensor]:
    """The tensors of all fusion modules under the channels' names in the sum, in float32."""
    out: dict[str, Tensor] = {}
    for part in parts:
        tensors = {key: value.float() for key, value in part.tensors.fusion.items()}
        for channel in part.channels if part.weight != 1.0 else ():
            for key in _last_tensors(part, channel, tensors):
                tensors[key] = tensors[key] * part.weight
        for key, value in tensors.items():
            channel, _, rest = key.partition(".")
            if channel not in part.channels:
                raise ValueError(f"{part.folder / FUSION_FILE}: {key} is of no side channel of the patch")
            out[f"{part.channels[channel]}.{rest}"] = value.contiguous()
    return out


def _last_tensors(part: Part, channel: str, tensors: Mapping[str, Tensor]) -> list[str]:
    """The tensors that a residual is proportional to."""
    fusion = part.record.patch.side_channels[channel].fusion
    if fusion.adds_llm_tokens:
        raise ValueError(
            f"weights: channel {channel!r} of {part.name} lengthens the prompt ({fusion.kind}); its tokens are there or not, so its "
            f"residual has weight 1, got {part.weight:g}"
        )
    if fusion.output_norm:
        last = f"{channel}.output_norm"
    elif fusion.output_mlp:
        last = f"{channel}.output_mlp.2"
    else:
        raise ValueError(
            f"weights: the fusion of channel {channel!r} of {part.name} has neither output_norm nor output_mlp, so no tensor of it "
            "scales the residual; leave its weight at 1"
        )
    return [f"{last}.{name}" for name in ("weight", "bias") if f"{last}.{name}" in tensors]


# --- LoRA


def _kinds(parts: Sequence[Part]) -> dict[str, list[Part]]:
    """By kind of layer, the patches that update it."""
    kinds: dict[str, list[Part]] = {}
    for part in parts:
        for kind in () if part.lora is None else part.lora.targets:
            kinds.setdefault(kind, []).append(part)
    return kinds


def _summed_settings(parts: Sequence[Part]) -> LoraSettings | None:
    """LoRA whose ranks are the sums of those of the parts; each kind has the scale of the first patch that updates it."""
    kinds = _kinds(parts)
    if not kinds:
        return None
    dora = [part for part in parts if part.lora is not None and part.lora.use_dora]
    if dora:
        raise ValueError(f"{dora[0].folder} uses DoRA, which turns the base's weights and is no sum; only plain LoRA is added")
    ranks = {kind: sum(_lora(part).rank_of(kind) for part in having) for kind, having in kinds.items()}
    alphas = {kind: _lora(having[0]).scale_of(kind) * ranks[kind] for kind, having in kinds.items()}
    first = next(iter(kinds))
    return LoraSettings(
        rank=ranks[first],
        ranks={kind: value for kind, value in ranks.items() if value != ranks[first]},
        alpha=alphas[first],
        alphas={kind: value for kind, value in alphas.items() if value != alphas[first]},
        targets=tuple(kinds),
    )


def _lora(part: Part) -> LoraSettings:
    assert part.lora is not None
    return part.lora


def _updates(parts: Sequence[Part]) -> dict[str, list[Part]]:
    """By layer, the patches that update it."""
    layers: dict[str, list[Part]] = {}
    for kind, having in _kinds(parts).items():
        found = [{layer for layer in updated_layers(p.tensors.adapter or {}) if layer.endswith(f".{kind}")} for p in having]
        for part, mine in zip(having, found, strict=True):
            if mine != found[0]:
                raise ValueError(
                    f"{part.folder} and {having[0].folder} update other layers of the kind {kind}, such as "
                    f"{min(mine ^ found[0])}; one of them is incomplete"
                )
        layers |= dict.fromkeys(sorted(found[0]), having)
    return layers


def _summed(parts: Sequence[Part], settings: LoraSettings) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for layer, having in _updates(parts).items():
        kind = layer.rsplit(".", 1)[-1]
        down_key, up_key = factor_names(layer, None, None)
        adapters = [part.tensors.adapter or {} for part in having]
        down = torch.cat([adapter[down_key].float() for adapter in adapters])
        ratios = [part.scale_of(kind) / settings.scale_of(kind) for part in having]
        up = torch.cat([adapter[up_key].float() * ratio for adapter, ratio in zip(adapters, ratios, strict=True)], dim=1)
        out |= factor_names(layer, down, up)
    return out


def _merged(parts: Sequence[Part], settings: LoraSettings, summed: Mapping[str, Tensor], density: float) -> dict[str, Tensor]:
    """As ``summed``, but the layers that several patches update are merged by ``knots``."""
    out = dict(summed)
    for layer, having in _updates(parts).items():
        if len(having) == 1:
            continue
        kind = layer.rsplit(".", 1)[-1]
        found = [
            (down, up * part.scale_of(kind)) for part in having for down, up in [factors(part.tensors.adapter or {}, layer)]
        ]
        down, up = knots(found, density)
        out |= {
            key: value.float().contiguous() for key, value in factor_names(layer, down, up / settings.scale_of(kind)).items()
        }
    return out
