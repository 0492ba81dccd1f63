"""A reader's own changes to the audio patch, under the patch that they change."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pave.evidence.own import OwnVariant, read_variants
from pave.evidence.runs import Run
from pave.evidence.sections.common import Plan, Section
from pave.evidence.sections.parts import REFERENCE, Variant, against_reference, explained, gains, in_points, runs_of, variants
from pave.evidence.worlds import WORLDS

NAME = "own"
"""Of the section, of its chart, and what its anchors begin with."""
_WORLD = "audio"


def own_variants(texts: Iterable[str]) -> tuple[OwnVariant, ...]:
    """The rows that ``--variant`` adds (``pave.evidence.own.read_variants``)."""
    built_in = [name for group in variants().values() for name in group]
    return read_variants(texts, Run(_WORLD, REFERENCE, WORLDS[_WORLD].patch()), [REFERENCE, *built_in])


def _members(plan: Plan) -> dict[str, Variant]:
    return {variant.name: Variant(variant.patch, variant.training) for variant in plan.variants}


def _runs(plan: Plan) -> list[Run]:
    return runs_of(_members(plan), plan)


def _write(plan: Plan, root: Path) -> str:
    changes = "; ".join(f"*{variant.name}* with `{' '.join(variant.changes)}`" for variant in plan.variants)
    parts, charted = against_reference(NAME, _members(plan), plan, root, NAME)
    intro = f"The audio patch of the demo with changes of one's own: {changes}. {explained(plan)}"
    return "\n\n".join([intro, gains({NAME: charted}, root, NAME), *parts])


def _in_short(plan: Plan, root: Path) -> list[str]:
    found = ", ".join(text for _, text in in_points(_members(plan), plan, root, NAME))
    return [f"Own variants, on all questions about sound, in points against {REFERENCE}: {found}."]


SECTION = Section("Variants of one's own", _runs, _write, _in_short)
