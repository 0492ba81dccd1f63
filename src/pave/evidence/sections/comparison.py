"""Base alone, LoRA on video only and the patch, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pave.evidence.charts import Point, Row
from pave.evidence.runs import Run, accuracy, difference
from pave.evidence.sections.common import BASE, PATCH, VIDEO_ONLY
from pave.evidence.tables import cell, gain
from pave.evidence.worlds import ChannelWorld

HEADER = ["questions", "chance", BASE, VIDEO_ONLY, PATCH, "gain"]


@dataclass(frozen=True)
class Compared:
    """One group of questions."""

    cells: list[str]
    """Under ``HEADER``; a star behind the gain says that the intervals of patch and LoRA do not overlap."""
    charted: Row


def compare(
    world: ChannelWorld, groups: Mapping[str, Sequence[str]], made: Mapping[str, Sequence[Run]], root: Path
) -> list[Compared]:
    """The three variants on each group of question types, and what the patch gains.

    Args:
        world: of the questions.
        groups: question types by what the row is called.
        made: the runs of the three variants.
        root: of all runs.
    """
    rows = []
    for group, kinds in groups.items():
        scores = {variant: accuracy(made[variant], root, kinds) for variant in (BASE, VIDEO_ONLY, PATCH)}
        apart = scores[PATCH].interval.low > scores[VIDEO_ONLY].interval.high
        by = difference(made[VIDEO_ONLY], made[PATCH], root, kinds)
        chance = None if group not in world.chance else 100 * world.chance[group]
        cells = [
            group.replace("_", " "),
            "" if chance is None else f"{chance:.0f}",
            *map(cell, scores.values()),
            gain(*by) + (" *" if apart else ""),
        ]
        points = {variant: Point.percent(score.mean, score.interval) for variant, score in scores.items()}
        rows.append(Compared(cells, Row(group.replace("_", " "), points, chance)))
    return rows
