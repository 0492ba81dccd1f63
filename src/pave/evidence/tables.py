"""Numbers as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from pave.evaluation.metrics import Interval
from pave.evidence.runs import Accuracy


def cell(score: Accuracy) -> str:
    """``81.2 [79.0, 83.1]``, with the accuracy of each seed under it where there are several."""
    if len(score.seeds) < 2:
        return str(score)
    return f"{score}<br><sub>{' '.join(f'{100 * seed:.1f}' for seed in score.seeds)}</sub>"


def gain(points: float, interval: Interval) -> str:
    """``+12.3 [10.1, 14.9]``."""
    return f"{100 * points:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column is left aligned, as all are in Markdown by default."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
