"""What an earlier reproduction left in a folder: whether it is still what would be made now."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pave.config import Strict, read_strict
from pave.evidence.bases import is_made
from pave.evidence.own import OwnVariant
from pave.evidence.runs import TRAINED, Run, finished, recipe_of
from pave.evidence.sections import SECTIONS, Plan
from pave.evidence.sections.common import data_folder
from pave.evidence.sections.own import NAME as OWN
from pave.evidence.sections.own import own_variants
from pave.evidence.tables import anchor
from pave.evidence.worlds import check_world
from pave.training.recipe import read_recipe
from pave.training.resuming import RECIPE_FILE
from pave.utils.embedded import PLAYGROUND
from pave.utils.files import atomic_write_json, read_json

logger = logging.getLogger(__name__)

PAGE_FILE = "page.json"
"""By size, what is on the page."""


@dataclass(frozen=True)
class _Page(Strict):
    sections: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    """As ``--variant`` gave them."""


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


def earlier_sections(root: Path, plan: Plan, size: str, but: Sequence[str] = ()) -> list[str]:
    """Sections that an earlier reproduction of the same size in the folder has made, and that stay on the page; one that would be made
    otherwise now, or that is not all there any more, is left out with a warning. ``but`` are not looked at."""
    kept = []
    for name in _noted(root, size).sections:
        if name not in SECTIONS or name in (OWN, *but):
            continue
        try:
            _check_there(SECTIONS[name].runs(plan), root, plan)
            SECTIONS[name].check(plan, root)
        except ValueError as error:
            logger.warning("the section %s does not stay on the page: %s", name, error)
            continue
        kept.append(name)
    return kept


def _check_there(runs: Sequence[Run], root: Path, plan: Plan) -> None:
    """Whether runs are finished, with their worlds and bases, as they would be made now.

    Raises:
        ValueError: naming what is not.
    """
    check_runs(runs, root)
    if not all(finished(run, root) for run in runs):
        raise ValueError("some of its runs are not there")
    for base in {run.base for run in runs} - {PLAYGROUND}:
        if not is_made(base, root):
            raise ValueError(f"the base {base} is not there")
    for world in {name for run in runs for name in run.world.split("+")}:
        check_world(world, data_folder(world, root, plan), plan.train_clips, plan.test_clips)


def with_earlier_variants(variants: Sequence[str], root: Path, plan: Plan, size: str) -> tuple[OwnVariant, ...]:
    """A reader's own variants, behind those of an earlier reproduction of the same size in the folder, which stay on the page; one whose
    name is given again is replaced, and one that would be made otherwise now or is not all there is left out, both with a warning.

    Raises:
        ValueError: if a variant is wrong.
    """
    given = {anchor(variant.name): variant for variant in own_variants(variants)}
    kept: list[str] = []
    for text in _noted(root, size).variants:
        try:
            (variant,) = own_variants([text])
            again = given.get(anchor(variant.name))
            if again is None:
                _check_there(SECTIONS[OWN].runs(replace(plan, variants=(variant,))), root, plan)
                kept.append(text)
            elif again.changes != variant.changes:
                now = " ".join(again.changes)
                logger.warning("the variant %r was %s and is %s now", variant.name, " ".join(variant.changes), now)
        except ValueError as error:
            logger.warning("the variant %r does not stay on the page: %s", text, error)
    return own_variants([*dict.fromkeys(kept), *variants])


def note_page(root: Path, size: str, names: Iterable[str], variants: Iterable[OwnVariant]) -> None:
    """Keep in mind what is on the page, for ``earlier_sections`` and ``with_earlier_variants``; a page of another size is gone."""
    others = {key: page for key, page in _pages(root).items() if key != size}
    if others and size not in _pages(root):
        logger.warning("the page is of size %s now; the runs of the page of size %s are kept", size, " and ".join(others))
    pages = {**others, size: _Page(tuple(names), tuple(variant.text for variant in variants))}
    atomic_write_json(root / PAGE_FILE, {key: page.to_dict() for key, page in pages.items()})


def _noted(root: Path, size: str) -> _Page:
    return _pages(root).get(size, _Page())


def _pages(root: Path) -> dict[str, _Page]:
    path = root / PAGE_FILE
    return read_strict(dict[str, _Page], read_json(path), str(path)) if path.exists() else {}


def _first_difference(one: Any, other: Any, name: str) -> tuple[str, Any, Any] | None:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            found = _first_difference(one.get(key), other.get(key), f"{name}.{key}")
            if found is not None:
                return found
        return None
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    return None if same else (name, one, other)
