"""What is compared: each section names its runs, and writes its part of the page from their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pave.evidence.runs import Run
from pave.evidence.sections import bases, channels, cost, multi, own, parts, robustness, time, views
from pave.evidence.sections.common import FULL, ONE_SEED, SHORT, Plan, Section

__all__ = ["FULL", "ONE_SEED", "SECTIONS", "SHORT", "Plan", "Section", "all_runs"]

SECTIONS: Mapping[str, Section] = {
    "channels": channels.SECTION,
    "time": time.SECTION,
    "parts": parts.SECTION,
    own.NAME: own.SECTION,
    "multi": multi.SECTION,
    "robustness": robustness.SECTION,
    "cost": cost.SECTION,
    "bases": bases.SECTION,
    "views": views.SECTION,
}


def all_runs(names: Sequence[str], plan: Plan) -> list[Run]:
    """What the named sections need."""
    return [run for name in names for run in SECTIONS[name].runs(plan)]
