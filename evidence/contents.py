"""The sections in the order of the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from evidence.plan import Plan, Section
from evidence.runs import Run
from evidence.sections import bases, channels, cost, multi, parts, robustness, time, variants, views

SECTIONS: Mapping[str, Section] = {
    "channels": channels.SECTION,
    "time": time.SECTION,
    "parts": parts.SECTION,
    variants.NAME: variants.SECTION,
    "multi": multi.SECTION,
    "robustness": robustness.SECTION,
    "cost": cost.SECTION,
    "bases": bases.SECTION,
    "views": views.SECTION,
}


def all_runs(names: Iterable[str], plan: Plan) -> list[Run]:
    """What the named sections need."""
    return [run for name in names for run in SECTIONS[name].runs(plan)]
