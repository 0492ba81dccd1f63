"""A reader's changes to the audio patch, under the patch that they change."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from evidence.plan import Plan, Section
from evidence.runs import Run
from evidence.sections import parts
from evidence.variants import OwnVariant, read_variants
from evidence.worlds import WORLDS

NAME = "own"
"""What the section, its chart and the anchors of its rows are called."""


def own_variants(texts: Iterable[str]) -> tuple[OwnVariant, ...]:
    """The rows that ``--variant`` adds (``evidence.variants.read_variants``)."""
    built_in = [name for group in parts.variants().values() for name in group]
    reference = Run("audio", parts.REFERENCE, WORLDS["audio"].patch())
    return read_variants(texts, reference, [parts.REFERENCE, *built_in])


def _members(plan: Plan) -> dict[str, parts.Variant]:
    return {variant.name: parts.Variant(variant.patch, variant.training) for variant in plan.variants}


def _runs(plan: Plan) -> list[Run]:
    return [run for runs in parts.runs_of(_members(plan), plan).values() for run in runs]


def _write(plan: Plan, root: Path) -> str:
    changes = "; ".join(f"*{variant.name}* with `{' '.join(variant.changes)}`" for variant in plan.variants)
    table_and_curves, charted = parts.against_reference(NAME, _members(plan), plan, root, NAME)
    intro = f"The audio patch of the demo with changes of one's own: {changes}. {parts.explained(plan)}"
    return "\n\n".join([intro, parts.gains({NAME: charted}, root, NAME), *table_and_curves])


def _in_short(plan: Plan, root: Path) -> list[str]:
    texts = ", ".join(text for _, text in parts.in_points(_members(plan), plan, root, NAME))
    return [f"Own variants, on all questions about sound, in points against {parts.REFERENCE}: {texts}."]


SECTION = Section("Variants of one's own", _runs, _write, _in_short)
