"""Numbers as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from evidence.scores import Accuracy
from pave.evaluation.metrics import Interval

_SMALL = re.compile(r"<sub>.*?</sub>")
_TAG = re.compile(r"<[^>]*>")


def cell(score: Accuracy) -> str:
    """``81.2 [79.0, 83.1]``, with the accuracy of each seed under it where there are several, bold where they lie
    further apart than the interval is wide."""
    if len(score.seeds) < 2:
        return str(score)
    seeds = " ".join(f"{100 * seed:.1f}" for seed in score.seeds)
    wide = max(score.seeds) - min(score.seeds) > score.interval.high - score.interval.low
    return f"{score}<br><sub>{f'<b>{seeds}</b>' if wide else seeds}</sub>"


def gain(points: float, interval: Interval) -> str:
    """``+12.3 [10.1, 14.9]``."""
    return f"{100 * points:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def linked(text: str, *words: str) -> str:
    """Text that leads to a row of the page; ``words`` are those that ``anchor`` makes its name of."""
    return f"[{text}](#{anchor(*words)})"


def markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], anchors: str = "", *, named_by: int = 1
) -> str:
    """A table; the first column is left aligned, as all are in Markdown by default.

    Args:
        header: names of the columns.
        rows: cells.
        anchors: where given, what the anchors of the rows begin with, for links to them: ``channels-audio`` leads to
            the row of ``audio``. A row whose first cell is empty belongs to the one above and has none.
        named_by: how many cells an anchor is made of.
    """
    lines = [header, ["---"] * len(header)]
    for cells in rows:
        name = anchor(anchors, *cells[:named_by]) if anchors and cells[0] else ""
        lines.append([f'<a id="{name}"></a>{cells[0]}', *cells[1:]] if name else cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def anchor(*words: str) -> str:
    """What leads to a row: lower case, a hyphen for whatever is neither letter nor digit, without small print."""
    text = _TAG.sub("", _SMALL.sub("", " ".join(words)))
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
