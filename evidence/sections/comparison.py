"""Base alone, LoRA on video only and the patch, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evidence.charts import Point, Row, dot_chart
from evidence.figures import add_figure
from evidence.plan import BASE, PATCH, VIDEO_ONLY, chance_text, spoken
from evidence.runs import Run
from evidence.scores import accuracy, difference
from evidence.tables import cell, gain, markdown_table
from evidence.worlds import WORLDS

ACCURACY_AXIS = "accuracy in percent, with 95 % intervals"
_HEADER = ["questions", "chance", BASE, VIDEO_ONLY, PATCH, "gain"]


@dataclass(frozen=True)
class Comparison:
    """One group of questions."""

    cells: list[str]
    """Under the header."""
    charted: Row


def compare(
    world: str, groups: Mapping[str, Sequence[str]], runs: Mapping[str, Sequence[Run]], root: Path
) -> list[Comparison]:
    """The three variants on each group of question types, and what the patch gains.

    Args:
        world: name of the questions' world.
        groups: question types by what the row is called.
        runs: those of the three variants.
        root: folder of all runs.
    """
    out = []
    for group, kinds in groups.items():
        scores = {variant: accuracy(runs[variant], root, kinds) for variant in (BASE, VIDEO_ONLY, PATCH)}
        by = difference(runs[VIDEO_ONLY], runs[PATCH], root, kinds)
        cells = [spoken(group), chance_text(world, group), *map(cell, scores.values()), gain(*by)]
        points = {variant: Point.percent(score.mean, score.interval) for variant, score in scores.items()}
        chance = WORLDS[world].chance.get(group)
        out.append(Comparison(cells, Row(spoken(group), points, None if chance is None else 100 * chance)))
    return out


def chart_and_table(
    root: Path, name: str, title: str, first_column: str, compared: Mapping[str, tuple[str, Sequence[Comparison]]]
) -> list[str]:
    """The parts of the page: a chart and a table.

    Args:
        root: folder of all runs.
        name: name of the chart's file.
        title: title of the chart, for those who cannot see it.
        first_column: what the table's first column is called.
        compared: by what the chart calls a group of rows, what the table calls it, and its rows.
    """
    charted = {group: [row.charted for row in rows] for group, (_, rows) in compared.items()}
    chart = dot_chart(title, charted, (BASE, VIDEO_ONLY, PATCH), axis=ACCURACY_AXIS, mark="guessing")
    cells = [[head if row is rows[0] else "", *row.cells] for head, rows in compared.values() for row in rows]
    return [add_figure(root, name, chart), markdown_table([first_column, *_HEADER], cells, name)]
