"""What an earlier reproduction left in a folder: whether it is still what would be made now."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pave.evidence.runs import TRAINED, Run, recipe_of
from pave.training.recipe import read_recipe
from pave.training.resuming import RECIPE_FILE


def check_runs(runs: Iterable[Run], root: Path) -> None:
    """Whether the trained runs of a folder would be trained in the same way now. A run's name leaves out settings at their default and
    those that all runs share, and these may have changed since.

    Raises:
        ValueError: naming the folder of a run that would be trained otherwise, and the first setting that differs.
    """
    seen: set[Path] = set()
    for run in runs:
        folder = run.folder(root)
        if run.patch is None or folder in seen or not (folder / TRAINED).exists():
            continue
        seen.add(folder)
        before, now = read_recipe(folder / RECIPE_FILE), recipe_of(run, Path(), folder, Path())
        for name, one, other in (
            ("patch", before.patch.to_dict(), now.patch.to_dict()),
            ("training", before.training.to_dict(), now.training.to_dict()),
            ("data.frames", before.data.frames.to_dict(), now.data.frames.to_dict()),
            ("data.stages", [asdict(stage) for stage in before.data.stages], [asdict(stage) for stage in now.data.stages]),
        ):
            found = _first_difference(one, other, name)
            if found is not None:
                where, old, new = found
                raise ValueError(
                    f"{folder} was trained with {where} {old!r}, now it would be {new!r}; remove that folder to train it again, or choose "
                    "another --out"
                )


def _first_difference(one: Any, other: Any, name: str) -> tuple[str, Any, Any] | None:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            found = _first_difference(one.get(key), other.get(key), f"{name}.{key}")
            if found is not None:
                return found
        return None
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    return None if same else (name, one, other)
