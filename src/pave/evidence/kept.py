"""What an earlier reproduction left in a folder: whether it is still what would be made now."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pave.evidence.runs import TRAINED, Run, finished, recipe_of
from pave.evidence.sections import SECTIONS, Plan
from pave.training.recipe import read_recipe
from pave.training.resuming import RECIPE_FILE
from pave.utils.files import atomic_write_json, read_json

logger = logging.getLogger(__name__)

SECTIONS_FILE = "sections.json"
"""By size, the sections on the page."""


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


def earlier_sections(root: Path, plan: Plan, size: str) -> list[str]:
    """Sections that an earlier reproduction of the same size in the folder has made, and that stay on the page; one that would be made
    otherwise now, or that is not all there any more, is left out with a warning."""
    kept = []
    for name in _noted(root).get(size, []):
        if name not in SECTIONS:
            continue
        runs = SECTIONS[name].runs(plan)
        try:
            check_runs(runs, root)
        except ValueError as error:
            logger.warning("the section %s does not stay on the page: %s", name, error)
            continue
        if all(finished(run, root) for run in runs):
            kept.append(name)
        else:
            logger.warning("the section %s does not stay on the page: some of its runs are not there", name)
    return kept


def note_sections(root: Path, size: str, names: Iterable[str]) -> None:
    """Keep in mind what is on the page, for ``earlier_sections``."""
    atomic_write_json(root / SECTIONS_FILE, {**_noted(root), size: list(names)})


def _noted(root: Path) -> dict[str, list[str]]:
    path = root / SECTIONS_FILE
    noted: dict[str, list[str]] = read_json(path) if path.exists() else {}
    return noted


def _first_difference(one: Any, other: Any, name: str) -> tuple[str, Any, Any] | None:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            found = _first_difference(one.get(key), other.get(key), f"{name}.{key}")
            if found is not None:
                return found
        return None
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    return None if same else (name, one, other)
