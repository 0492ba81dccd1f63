"""``pave show``: what a patch is and what it costs, without loading any weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pave.cli.shared import JsonOption, Result, check_choice

if TYPE_CHECKING:
    from pave.config import LoraSettings, PatchConfig
    from pave.patching.cost import PatchCost
    from pave.patching.storage import FusionStorage

DEFAULT_BASE = "llava-onevision-qwen2-7b"
PRESETS = ("compact", "paper")


def command(
    patch: str | None = typer.Argument(None, help="A saved patch: a folder or a hub id."),
    config: Path | None = typer.Option(
        None, "--config", help="A recipe (YAML) or a patch config (JSON) instead of a saved patch."
    ),
    preset: str | None = typer.Option(
        None, "--preset", help="compact or paper instead of a saved patch: the sizes for one audio channel."
    ),
    base: str | None = typer.Option(
        None, "--base", help=f"The base: a built-in name such as {DEFAULT_BASE}, a folder, a config file or a hub id."
    ),
    frames: int = typer.Option(32, "--frames", min=1, help="Frames of the prompt that operations are counted for."),
    text_tokens: int = typer.Option(64, "--text-tokens", min=0, help="Text tokens of that prompt."),
    side_steps: int = typer.Option(64, "--side-steps", min=1, help="Side steps of every channel."),
    lora_rank: str | None = typer.Option(
        None, "--lora-rank", help="Show it as pave compress would leave it with this option: 8, or q_proj=8,down_proj=4."
    ),
    fusion: str | None = typer.Option(None, "--fusion", help="Likewise: the fusion's matrices in 8bit or 4bit."),
    json_output: bool = JsonOption,
) -> Result:
    """\b
    pave show --preset compact --base llava-onevision-qwen2-7b

    Print what a patch is made of, and its parameters, bytes and operations beside those of its base. Nothing but configs is
    read: no weights are loaded, and a 7B base needs no memory.
    """
    if preset not in (None, *PRESETS):
        raise ValueError(f"--preset: there is no preset {preset!r}; it is {' or '.join(PRESETS)}")
    given = [name for name, value in (("PATCH", patch), ("--config", config), ("--preset", preset)) if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} both say which patch to show; give only one")
    from pave.patching.cost import patch_cost
    from pave.utils.embedded import model_path
    from pave.video_llms.known import load_config

    subject = _compressed(_subject(patch, config, preset), lora_rank, fusion)
    base_name = base or subject.base or DEFAULT_BASE
    try:
        base_config = load_config(model_path(base_name))
    except ValueError as error:
        if base or not subject.base:
            raise
        raise ValueError(f"{subject.name} names the base {subject.base!r}, give another with --base: {error}") from None
    cost = patch_cost(
        base_config,
        subject.patch,
        num_frames=frames,
        text_tokens=text_tokens,
        side_steps=side_steps,
        fusion_storage=subject.fusion_storage,
    )
    data = {
        "name": subject.name,
        "base": base_name,
        "patch": subject.patch.to_dict(),
        "cost": cost.to_dict(),
        "prompt": {"frames": frames, "text_tokens": text_tokens, "side_steps": side_steps, "llm_tokens": cost.llm_tokens},
        "provenance": subject.provenance,
    }
    return Result(_table(subject, base_name, cost, frames, side_steps), data)


@dataclass(frozen=True)
class _Subject:
    """What to show."""

    name: str
    patch: PatchConfig
    base: str | None = None
    provenance: dict[str, Any] | None = None
    fusion_storage: FusionStorage = "plain"


def _compressed(subject: _Subject, lora_rank: str | None, fusion: str | None) -> _Subject:
    """The subject as ``pave compress`` with these options would leave it."""
    storage: Any = check_choice("--fusion", fusion, ("8bit", "4bit"))
    patch, lora = subject.patch, subject.patch.lora
    if lora_rank is not None:
        from pave.cli.compress import parse_ranks
        from pave.patching.compress import reduced_ranks, with_ranks

        if lora is None:
            raise ValueError(f"--lora-rank: {subject.name} has no LoRA")
        ranks = reduced_ranks(lora, parse_ranks(lora_rank), "--lora-rank")
        patch = replace(patch, lora=with_ranks(lora, ranks))
    if storage is not None and subject.fusion_storage in (storage, "4bit"):
        raise ValueError(f"--fusion: the fusion of {subject.name} is stored in {subject.fusion_storage} already")
    return replace(subject, patch=patch, fusion_storage=storage or subject.fusion_storage)


def _subject(patch: str | None, config: Path | None, preset: str | None) -> _Subject:
    if patch is not None:
        from pave.patching import read_record, resolve_patch

        record = read_record(resolve_patch(patch))
        return _Subject(patch, record.patch, record.base.model_id, record.provenance, record.fusion_storage)
    if config is not None:
        return _from_file(config)
    name = preset or "compact"
    made = preset_patch(name)
    channel = made.side_channels["audio"]
    features = "" if name == "paper" else f"{channel.encoder.name} "
    return _Subject(f"preset {name}, one {features}audio channel of width {channel.width}", made)


def preset_patch(preset: str) -> PatchConfig:
    """A preset with one audio channel: the published feature width, or that of the encoder that needs no weights."""
    from pave.config import EncoderConfig, PatchConfig
    from pave.side_channels import build_encoder

    return (
        PatchConfig.paper(audio=1024) if preset == "paper" else PatchConfig.compact(audio=build_encoder(EncoderConfig()).width)
    )


def _from_file(path: Path) -> _Subject:
    """A recipe, or a patch config as JSON."""
    from pave.config import PatchConfig
    from pave.utils.json_files import read_json_object

    if path.suffix == ".json":
        values = read_json_object(path)
        return _Subject(str(path), PatchConfig.from_dict(values.get("patch", values), where=str(path)))
    from pave.training.recipe import read_recipe

    recipe = read_recipe(path)
    local = path.parent / recipe.base.model
    return _Subject(str(path), recipe.patch, str(local) if local.is_dir() else recipe.base.model)


def _lora_line(lora: LoraSettings) -> str:
    kinds = [kind if lora.rank_of(kind) == lora.rank else f"{kind} (rank {lora.rank_of(kind)})" for kind in lora.targets]
    variants = "".join(f", {name}" for name, on in (("DoRA", lora.use_dora), ("rsLoRA", lora.use_rslora)) if on)
    return f"LoRA rank {lora.rank} on {', '.join(kinds)}{variants}"


def _table(subject: _Subject, base: str, cost: PatchCost, frames: int, side_steps: int) -> str:
    from pave.patching.card import prompt_settings

    values = cost.to_dict()
    lines = [subject.name, f"on {base}: {cost.base_parameters:,} parameters", ""]
    for name, channel in subject.patch.side_channels.items():
        encoder = channel.encoder.model or channel.encoder.name
        fusion = channel.fusion
        lines.append(
            f"side channel {name}: {channel.kind}, {encoder}, width {channel.width}; {fusion.kind}, {fusion.num_layers} layers of "
            f"width {fusion.width}, aligned by {fusion.alignment}, queries {fusion.query_source}"
        )
    lora = subject.patch.lora
    lines.append("no LoRA" if lora is None else _lora_line(lora))
    if cost.fusion_storage != "plain":
        lines.append(f"the matrices of the fusion are stored in {cost.fusion_storage}")
    lines += prompt_settings(subject.patch)
    lines += ["", f"{'':<10}{'parameters':>16}{'of base':>10}{'stored':>12}{'prefill':>16}{'of base':>10}"]
    for part in ("fusion", "lora"):
        lines.append(
            f"{part:<10}{values[f'{part}_parameters']:>16,}{values[f'{part}_parameters_percent']:>9.3f}%"
            f"{values[f'{part}_bytes'] / 1e6:>9.2f} MB{values[f'{part}_flops'] / 1e9:>9.2f} GFLOP{values[f'{part}_flops_percent']:>9.3f}%"
        )
    patch_flops = cost.fusion_flops + cost.lora_flops
    lines.append(
        f"{'patch':<10}{cost.patch_parameters:>16,}{values['patch_parameters_percent']:>9.3f}%{cost.patch_bytes / 1e6:>9.2f} MB"
        f"{patch_flops / 1e9:>9.2f} GFLOP{100 * patch_flops / cost.base_prefill_flops:>9.3f}%"
    )
    lines.append(
        f"base prefill: {cost.base_prefill_flops / 1e9:,.1f} GFLOP for {frames} frames and {side_steps} side steps, "
        f"{cost.llm_tokens} tokens in the language model"
    )
    return "\n".join(lines)
