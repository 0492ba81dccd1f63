"""What an earlier reproduction left in a folder: whether it is still what would be made now."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from evidence.bases import is_made
from evidence.contents import SECTIONS
from evidence.plan import Plan
from evidence.runs import TRAINED, Run, recipe_of
from evidence.sections.variants import NAME as OWN
from evidence.sections.variants import own_variants
from evidence.tables import anchor
from evidence.variants import OwnVariant
from evidence.worlds import check_world
from pave.config import Strict, read_strict
from pave.training.recipe import Recipe, read_recipe
from pave.training.resuming import RECIPE_FILE
from pave.utils.files import atomic_write_json, read_json

logger = logging.getLogger(f"pave.{__name__}")

PAGE_FILE = "page.json"
"""By size, what is on the page."""


@dataclass(frozen=True)
class _Page(Strict):
    sections: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    """As ``--variant`` gave them."""


def check_runs(runs: Iterable[Run], root: Path) -> None:
    """Whether the trained runs of a folder would be trained in the same way now. A run's name leaves out settings at
    their default and those that all runs share, and these may have changed since.

    Raises:
        ValueError: naming the folder of a run that would be trained otherwise, and the first setting that differs.
    """
    by_folder = {run.folder(root): run for run in runs if run.patch is not None}
    for folder, run in by_folder.items():
        if not (folder / TRAINED).exists():
            continue
        before, now = read_recipe(folder / RECIPE_FILE), recipe_of(run, Path(), folder, Path())
        unlike = _first_difference(_training_of(before), _training_of(now))
        if unlike is not None:
            where, old, new = unlike
            raise ValueError(
                f"{folder} was trained with {where} {old!r}, now it would be {new!r}; remove that folder to train it "
                "again, or choose another --out"
            )


def _training_of(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe decides the weights: where files lie does not."""
    data = {"frames": recipe.data.frames.to_dict(), "stages": [asdict(stage) for stage in recipe.data.stages]}
    return {"patch": recipe.patch.to_dict(), "training": recipe.training.to_dict(), "data": data}


def _first_difference(one: Any, other: Any, name: str = "") -> tuple[str, Any, Any] | None:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            unlike = _first_difference(one.get(key), other.get(key), f"{name}.{key}" if name else key)
            if unlike is not None:
                return unlike
        return None
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    return None if same else (name, one, other)


def earlier_sections(root: Path, plan: Plan, size: str, but: Sequence[str] = ()) -> list[str]:
    """Sections that an earlier reproduction of the same size in the folder has made, and that stay on the page; one
    that would be made otherwise now, or that is not all there any more, is left out with a warning. ``but`` are not
    looked at."""
    names = []
    for name in _page_before(root, size).sections:
        if name not in SECTIONS or name in (OWN, *but):
            continue
        try:
            _check_there(SECTIONS[name].runs(plan), root, plan)
            SECTIONS[name].check(plan, root)
        except ValueError as error:
            logger.warning("the section %s does not stay on the page: %s", name, error)
            continue
        names.append(name)
    return names


def _check_there(runs: Sequence[Run], root: Path, plan: Plan) -> None:
    """Whether runs are finished, with their worlds and bases, as they would be made now.

    Raises:
        ValueError: naming what is not.
    """
    check_runs(runs, root)
    if not all(run.finished(root) for run in runs):
        raise ValueError("some of its runs are not there")
    for base in {run.base for run in runs}:
        if not is_made(base, root):
            raise ValueError(f"the base {base} is not there")
    for world in {name for run in runs for name in run.world.split("+")}:
        check_world(world, plan.data(world, root), plan.train_clips, plan.test_clips)


def with_earlier_variants(variants: Sequence[str], root: Path, plan: Plan, size: str) -> tuple[OwnVariant, ...]:
    """A reader's own variants, behind those of an earlier reproduction of the same size in the folder, which stay on
    the page; one whose name is given again is replaced, and one that would be made otherwise now or is not all there is
    left out, both with a warning.

    Raises:
        ValueError: if a variant is wrong.
    """
    given = {anchor(variant.name): variant for variant in own_variants(variants)}
    staying: list[str] = []
    for text in _page_before(root, size).variants:
        try:
            (variant,) = own_variants([text])
            again = given.get(anchor(variant.name))
            if again is None:
                _check_there(SECTIONS[OWN].runs(replace(plan, variants=(variant,))), root, plan)
                staying.append(text)
            elif again.changes != variant.changes:
                before, now = " ".join(variant.changes), " ".join(again.changes)
                logger.warning("the variant %r was %s and is %s now", variant.name, before, now)
        except ValueError as error:
            logger.warning("the variant %r does not stay on the page: %s", text, error)
    return own_variants([*dict.fromkeys(staying), *variants])


def note_page(root: Path, size: str, names: Iterable[str], variants: Iterable[OwnVariant]) -> None:
    """Note what is on the page, for ``earlier_sections`` and ``with_earlier_variants``; a page of another size is
    gone."""
    pages = _pages(root)
    if pages and size not in pages:
        logger.warning(
            "the page is of size %s now; the runs of the page of size %s are kept", size, " and ".join(pages)
        )
    pages[size] = _Page(tuple(names), tuple(variant.text for variant in variants))
    atomic_write_json(root / PAGE_FILE, {key: page.to_dict() for key, page in pages.items()})


def _page_before(root: Path, size: str) -> _Page:
    return _pages(root).get(size, _Page())


def _pages(root: Path) -> dict[str, _Page]:
    path = root / PAGE_FILE
    return read_strict(dict[str, _Page], read_json(path), str(path)) if path.exists() else {}
