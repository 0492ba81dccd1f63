"""What must agree for a run to go on in its output folder as if it had not been interrupted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pave.config import read_strict
from pave.patching import BaseFingerprint, read_record
from pave.patching.fingerprint import differences
from pave.training.checkpoints import last_checkpoint
from pave.training.recipe import Recipe

RECIPE_FILE = "recipe.yaml"
MAY_CHANGE = (
    "output",
    "data.cache",
    "data.cache_gigabytes",
    "training.workers",
    "training.log_every",
    "training.save_every",
    "training.keep_checkpoints",
    "training.report_to",
)
"""Fields of a recipe on which no weight depends; a resumed run may have them otherwise."""


def checkpoint_to_resume(recipe: Recipe, output: Path, resume: bool) -> Path | None:
    """The checkpoint to resume from, if any.

    Args:
        recipe: what is to be run.
        output: its output folder.
        resume: whether a run is to go on.

    Raises:
        ValueError: if two runs would be mixed in one folder, or there is nothing to resume from.
    """
    checkpoint = last_checkpoint(output, content=resume)
    if not resume:
        if checkpoint is not None:
            raise ValueError(
                f"{output}: the folder holds checkpoints of an earlier run; go on with it (--resume), or choose another output or empty the folder"
            )
        return None
    if checkpoint is None:
        raise ValueError(f"{output}: nothing to resume from, the folder holds no complete checkpoint")
    before, now = _flat(_with_defaults(read_record(checkpoint).provenance.get("recipe"))), _flat(recipe.to_dict())
    changed = [key for key in [*now, *before] if before.get(key) != now.get(key) and key not in MAY_CHANGE]
    if before and changed:
        key = changed[0]
        raise ValueError(
            f"{output}: the checkpoints there come from another recipe, {key!r} was {before.get(key)!r} and is {now.get(key)!r}; "
            f"resume with {output / RECIPE_FILE}"
        )
    return checkpoint


def _with_defaults(recorded: Any) -> Any:
    """A recorded recipe with the fields that were added since it was written."""
    try:
        return read_strict(Recipe, recorded, "recorded recipe").to_dict()
    except ValueError:
        return recorded


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted paths to the values of a recipe."""
    if not isinstance(value, dict) or not value:
        return {} if not prefix else {prefix: plain(value)}
    return {path: item for key, inner in value.items() for path, item in _flat(inner, f"{prefix}.{key}".lstrip(".")).items()}


def check_same_data(checkpoint: Path, now: Mapping[str, Any]) -> None:
    """Refuse to go on with other samples, with other files in their places, or with a step that counts other samples: the order, or what
    is learnt, would be another one.

    Raises:
        ValueError: naming what differs.
    """
    before = read_record(checkpoint).provenance.get("data")
    for key, value in now.items():
        was = before.get(key) if isinstance(before, dict) else None
        if was is not None and was != value:
            others = {"samples_per_step": "another number of processes", "sizes": "files of other sizes behind its samples"}
            what = others.get(key, "other training samples")
            if key == "tasks":
                key = next((name for name in [*value, *was] if was.get(name) != value.get(name)), key)
                was, value, what = was.get(key), value.get(key), f"other samples of the task {key!r}"
            raise ValueError(
                f"{checkpoint}: it was written by a run with {what} ({key} was {was}, now it is {value}), so the run cannot go "
                "on as if it had not been interrupted; restore them, or start a new run in another output folder"
            )


def check_same_base(checkpoint: str | Path, now: BaseFingerprint) -> None:
    """Refuse to go on on a base that is not the one of the checkpoint: its weights, config, processor or tokenizer.

    Raises:
        ValueError: naming what differs.
    """
    found = differences(read_record(checkpoint).base, now)
    if found:
        raise ValueError(
            f"{checkpoint}: the base is not the one that the checkpoint was trained on, it differs in: {'; '.join(found)}; restore it, or "
            "start a new run in another output folder"
        )


def plain(value: Any) -> Any:
    """With lists for tuples, as YAML and JSON know them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value
