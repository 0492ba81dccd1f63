"""Base alone, LoRA on video only and the patch, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pave.evidence.charts import Point, Row, dot_chart
from pave.evidence.figures import on_page
from pave.evidence.runs import Run
from pave.evidence.scores import accuracy, difference
from pave.evidence.sections.common import BASE, PATCH, VIDEO_ONLY
from pave.evidence.tables import cell, gain, markdown_table
from pave.evidence.worlds import ChannelWorld

_HEADER = ["questions", "chance", BASE, VIDEO_ONLY, PATCH, "gain"]


@dataclass(frozen=True)
class Compared:
    """One group of questions."""

    cells: list[str]
    """Under the header."""
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
        chance = None if group not in world.chance else 100 * world.chance[group]
        cells = [
            group.replace("_", " "),
            "" if chance is None else f"{chance:.0f}",
            *map(cell, scores.values()),
            gain(*difference(made[VIDEO_ONLY], made[PATCH], root, kinds)),
        ]
        points = {variant: Point.percent(score.mean, score.interval) for variant, score in scores.items()}
        rows.append(Compared(cells, Row(group.replace("_", " "), points, chance)))
    return rows


def chart_and_table(
    root: Path, name: str, title: str, first_column: str, compared: Mapping[str, tuple[str, Sequence[Compared]]]
) -> list[str]:
    """The parts of the page: a chart and a table.

    Args:
        root: of all runs.
        name: of the chart's file.
        title: of the chart, for those who cannot see it.
        first_column: what the table's first column is called.
        compared: by what the chart calls a group of rows, what the table calls it, and its rows.
    """
    charted = {group: [row.charted for row in rows] for group, (_, rows) in compared.items()}
    axis = "accuracy in percent, with 95 % intervals"
    chart = dot_chart(title, charted, (BASE, VIDEO_ONLY, PATCH), axis=axis, mark="guessing")
    cells = [[head if row is rows[0] else "", *row.cells] for head, rows in compared.values() for row in rows]
    return [on_page(root, name, chart), markdown_table([first_column, *_HEADER], cells, name)]
