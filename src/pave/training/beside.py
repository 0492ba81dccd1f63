"""Saved patches that act, frozen, beside the one that is trained: it learns what they leave to do, and what they take away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pave.config import SideChannelConfig
from pave.patching import freeze_patch, load_patch, read_record, resolve_patch
from pave.training.recipe import Recipe


def all_channels(recipe: Recipe, folder: Path) -> dict[str, SideChannelConfig]:
    """The channels that a run reads, by name: those of the patch that is trained, then those of ``recipe.patches``.

    A channel of one name is one stream, so it is encoded alike for all patches that have it.

    Args:
        recipe: of the run.
        folder: the recipe's own.

    Raises:
        ValueError: if there is no such patch, it lengthens the prompt, or two patches read a channel of one name otherwise.
    """
    channels = dict(recipe.patch.side_channels)
    for name, where in _places(recipe, folder).items():
        config = read_record(where).patch
        longer = config.newline == "grid" or any(c.fusion.adds_llm_tokens for c in config.side_channels.values())
        if longer:
            raise ValueError(f"patches.{name}: the patch at {where} lengthens the prompt, so it cannot act beside another one")
        for channel, theirs in config.side_channels.items():
            mine = channels.setdefault(channel, theirs)
            if (mine.width, mine.encoder) != (theirs.width, theirs.encoder):
                raise ValueError(
                    f"patches.{name}: the patch at {where} reads the side channel {channel!r} with another encoder (or of another width) "
                    "than another patch of this run; call the channel of the patch that is trained otherwise"
                )
    return channels


def load_beside(recipe: Recipe, model: Any, processor: Any, folder: Path) -> dict[str, Any]:
    """Put the patches of ``recipe.patches`` on the base, frozen and without dropout.

    Returns:
        What the trained patch records of them, by name.

    Raises:
        ValueError: as ``load_patch`` does, or if one needs vision features that the recipe's store does not hold.
    """
    facts: dict[str, Any] = {}
    for name, where in _places(recipe, folder).items():
        record = read_record(where)
        if recipe.data.vision == "store" and record.patch.reads_pre_projector and not recipe.patch.reads_pre_projector:
            raise ValueError(
                f"patches.{name}: the patch at {where} makes its queries of what enters the base's projector, which the store of this "
                "recipe does not hold; set data.vision to 'memory' or 'tower'"
            )
        load_patch(model, where, name=name, processor=processor)
        freeze_patch(model, name)
        facts[name] = {"patch": recipe.patches[name], "files": dict(record.files)}
    return facts


def _places(recipe: Recipe, folder: Path) -> dict[str, Path]:
    """A folder beside the recipe, else what the hub gives."""
    return {name: resolve_patch(folder / w if (folder / w).is_dir() else w) for name, w in recipe.patches.items()}
