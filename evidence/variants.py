"""Rows that a reader adds to a comparison: ``python -m evidence --variant "NAME: KEY=VALUE ..."``."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evidence.runs import FRAMES, Run, recipe_of
from evidence.tables import anchor
from pave.config import PatchConfig, read_strict
from pave.side_channels import build_encoder, encoder_source
from pave.training.arguments import TrainingConfig
from pave.training.recipe import Recipe
from pave.training.recipe_files import set_value
from pave.training.resuming import MAY_CHANGE, plain

_FORM = 'expected "NAME: KEY=VALUE ...", such as "one layer: patch.side_channels.audio.fusion.num_layers=1"'
_LONGEST = 40
"""Characters of a name, which stands beside a chart."""
_NOT_IN_NAMES = "|<>[]\\*"
"""What would be read as Markdown in a table."""
_KEYS = ("patch.", "training.")
_SAME_STEPS = "every row is trained for the same number of steps"
_FIXED = {
    "training.steps": _SAME_STEPS,
    "training.epochs": _SAME_STEPS,
    "training.seed": "every row is trained with the same seeds, which --size says",
    "training.trainer": "it holds settings of the Trainer's own, which only a training would check",
    **{key: "no weight depends on it" for key in MAY_CHANGE if key.startswith("training.")},
}
"""Keys that are no difference between rows, and why."""


@dataclass(frozen=True)
class OwnVariant:
    """A reference patch with what a reader wants changed."""

    text: str
    """As it was asked for: ``NAME: KEY=VALUE KEY=VALUE``."""
    name: str
    changes: tuple[str, ...]
    """``KEY=VALUE``, each."""
    patch: PatchConfig
    training: dict[str, Any]
    """The training settings that are not the reference's."""


def read_variants(texts: Iterable[str], reference: Run, taken: Iterable[str]) -> tuple[OwnVariant, ...]:
    """Read variants, and look at everything that can be known before a training.

    Args:
        texts: ``NAME: KEY=VALUE KEY=VALUE ...``; the keys are those of a recipe, under ``patch.`` and ``training.``.
            Values with spaces stand in quotes, as in a shell.
        reference: what is changed.
        taken: names of other rows.

    Raises:
        ValueError: naming the variant and what is wrong with it: its form, its name, a key or a value, or that it
            changes nothing.
    """
    known = {anchor(name) for name in taken}
    variants = []
    for text in texts:
        name, changes = _parts(text.strip())
        if anchor(name) in known:
            raise ValueError(
                f"--variant {name!r}: there is a row of that name already, but for signs; choose another name"
            )
        known.add(anchor(name))
        where = f"--variant {name!r}"
        try:
            variants.append(_variant(text.strip(), name, changes, reference))
        except ValueError as error:
            message = str(error).removeprefix(f"{where}: ")
            raise ValueError(" ".join(f"{where}: {message}".split())) from None
    return tuple(variants)


def _parts(text: str) -> tuple[str, list[str]]:
    """The name and the changes."""
    name, separator, rest = text.partition(":")
    name = " ".join(name.split())
    try:
        changes = shlex.split(rest)
    except ValueError as error:
        raise ValueError(f"--variant {text!r}: a quote is not closed ({error})") from None
    complaint = _complaint(text, name if separator else None, changes)
    if complaint is not None:
        raise ValueError(f"--variant {text!r}: {complaint}")
    return name, changes


def _complaint(text: str, name: str | None, changes: Sequence[str]) -> str | None:
    """What is wrong with the form of a variant."""
    if name is None:
        return _FORM
    if not name:
        return f"the name is empty; {_FORM}"
    if not anchor(name):
        return "the name has no letter from a to z and no digit, which links to its row are made of"
    if not text.isprintable() or "`" in text:
        return (
            "it stands in one line of a page, so it takes no backtick, no line break and nothing else that does not "
            "print"
        )
    odd = [character for character in name if character in _NOT_IN_NAMES]
    if odd:
        return f"the name stands in a table, so it takes none of {' '.join(_NOT_IN_NAMES)}, got {odd[0]!r}"
    if len(name) > _LONGEST:
        return f"the name stands beside a chart, so it has at most {_LONGEST} characters, got {len(name)}"
    return None if changes else f"no change follows the name; {_FORM}"


def _check_key(change: str) -> None:
    key, separator, _ = change.partition("=")
    if not separator:
        raise ValueError(f"expected KEY=VALUE, got {change!r}; a value with spaces stands in quotes")
    if not key.startswith(_KEYS):
        raise ValueError(
            f"{key!r} cannot be changed; a variant changes keys of a recipe that begin with {' or '.join(_KEYS)}"
        )
    for fixed, why in _FIXED.items():
        if key == fixed or key.startswith(f"{fixed}."):
            raise ValueError(f"{key} cannot be changed, as {why}")


def _variant(text: str, name: str, changes: Sequence[str], reference: Run) -> OwnVariant:
    for change in changes:
        _check_key(change)
    before = recipe_of(reference, Path("data"), Path("output"), Path("features"))
    values = plain(before.to_dict())
    for change in changes:
        set_value(values, change)
        _check_json(values, change)
    recipe = read_strict(Recipe, values, f"--variant {name!r}")
    training = _changed_training(before.training, recipe.training)
    if recipe.patch == before.patch and not training:
        raise ValueError(f"it changes nothing, {' '.join(changes)} is what {reference.variant} has already")
    _check_buildable(recipe)
    return OwnVariant(text, name, tuple(changes), recipe.patch, training)


def _check_json(values: dict[str, Any], change: str) -> None:
    """YAML knows dates, sets and infinite numbers, which no run could keep."""
    try:
        json.dumps(values, allow_nan=False, sort_keys=True)
    except (TypeError, ValueError):
        raise ValueError(f"{change!r} is no finite number, text, true, false, null, list or mapping of those") from None


def _changed_training(before: TrainingConfig, now: TrainingConfig) -> dict[str, Any]:
    """In the types of the fields, so that equal settings make equal runs however they were written."""
    names = [item.name for item in dataclasses.fields(TrainingConfig)]
    return {name: getattr(now, name) for name in names if getattr(now, name) != getattr(before, name)}


def _check_buildable(recipe: Recipe) -> None:
    """What the base, the encoders and the Trainer would refuse, found without loading weights.

    Raises:
        ValueError: in their words.
    """
    from transformers import AutoConfig

    from pave.patching.cost import patch_cost, video_tokens
    from pave.utils.embedded import model_path
    from pave.video_llms import get_interface

    for name, channel in recipe.patch.side_channels.items():
        if encoder_source(channel.encoder) not in ("audio", "video"):
            raise ValueError(
                f"patch.side_channels.{name}: its encoder {channel.encoder.name!r} reads a file for each clip, and the "
                "clips here have no such files; take an encoder that reads the video or its sound"
            )
        width = build_encoder(channel.encoder).width
        if width != channel.width:
            raise ValueError(
                f"patch.side_channels.{name}: its encoder gives features of width {width}, but width is {channel.width}"
            )
    config = AutoConfig.from_pretrained(model_path(recipe.base.model))
    frames = FRAMES.num_frames or 0
    patch_cost(config, recipe.patch, num_frames=frames)  # attaches the patch on the meta device
    shape = video_tokens(get_interface(config), config, frames, None)[:2]
    for name, channel in recipe.patch.side_channels.items():
        table = (channel.fusion.num_frames, channel.fusion.tokens_per_frame)
        if channel.fusion.query_source == "learnable" and table != shape:
            raise ValueError(
                f"patch.side_channels.{name}.fusion: num_frames and tokens_per_frame must be {shape[0]} and {shape[1]} "
                f"here, got {table[0]} and {table[1]}"
            )
    on_cpu = replace(recipe.training, trainer={**recipe.training.trainer, "use_cpu": True})
    on_cpu.arguments(recipe.output, num_steps=1)
