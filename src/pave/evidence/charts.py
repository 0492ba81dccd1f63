"""Charts of the page: values with intervals on one axis, and learning curves. Numbers in, drawings out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pave.evaluation.metrics import Interval
from pave.evidence.svg import SERIES, Drawing

WIDTH = 760
_LEFT, _RIGHT = 300, 24
_LINE, _GROUP, _LEGEND = 6, 30, 22
_DECADE = (1, 2, 5)


@dataclass(frozen=True)
class Point:
    """A value with its interval."""

    value: float
    low: float
    high: float

    @classmethod
    def percent(cls, value: float, interval: Interval) -> Point:
        """Of a share and its interval."""
        return cls(100 * value, 100 * interval.low, 100 * interval.high)


@dataclass(frozen=True)
class Row:
    """One line of a chart: at most one point for each series."""

    label: str
    points: Mapping[str, Point]
    mark: float | None = None
    """A value to compare with, such as guessing."""


def dot_chart(
    label: str,
    groups: Mapping[str, Sequence[Row]],
    series: Sequence[str],
    *,
    axis: str,
    ends: tuple[float, float] = (0.0, 100.0),
    mark: str = "",
) -> Drawing:
    """Points with intervals, row by row, under the name of each group.

    Args:
        label: what the chart shows.
        groups: rows by the name of their group.
        series: names in the order of their colours, at most ``SERIES``.
        axis: what the horizontal axis is.
        ends: of the axis; made wider where a point lies outside.
        mark: what the marks of the rows are.
    """
    assert len(series) <= SERIES
    every = [p for rows in groups.values() for row in rows for p in row.points.values()]
    low, high = min([ends[0], *(p.low for p in every)]), max([ends[1], *(p.high for p in every)])
    row_height = 12 + _LINE * len(series)
    names = _legend(series, mark)
    top = 20 + _LEGEND * len(names)
    bottom = top + sum(_GROUP + row_height * len(rows) for rows in groups.values())
    drawing = Drawing(WIDTH, bottom + 44, label)
    for line, entries in enumerate(names):
        _draw_legend(drawing, entries, 18 + _LEGEND * line)

    def x_of(value: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (value - low) / (high - low)

    for tick in _ticks(low, high):
        drawing.line(x_of(tick), top, x_of(tick), bottom, "k" if tick == 0 and low < 0 else "l")
        drawing.text(x_of(tick), bottom + 16, f"{tick:g}", "q", anchor="middle")
    drawing.text((_LEFT + WIDTH - _RIGHT) / 2, bottom + 34, axis, "q", anchor="middle")
    y = float(top)
    for name, rows in groups.items():
        drawing.text(16, y + 20, name, "b")
        y += _GROUP
        for row in rows:
            _dots(drawing, row, series, y + row_height / 2, x_of)
            y += row_height
    return drawing


def _dots(drawing: Drawing, row: Row, series: Sequence[str], y: float, x_of: Callable[[float], float]) -> None:
    """The points of a row, under each other so that none hides another."""
    drawing.text(_LEFT - 12, y + 4, row.label, anchor="end")
    reach = _LINE * len(series) / 2
    if row.mark is not None:
        drawing.line(x_of(row.mark), y - reach - 2, x_of(row.mark), y + reach + 2, "n")
    for number, name in enumerate(series):
        if (point := row.points.get(name)) is not None:
            at = y - reach + _LINE * (number + 0.5)
            drawing.line(x_of(point.low), at, x_of(point.high), at, f"c t{number}")
            drawing.dot(x_of(point.value), at, f"s{number}", radius=3.2)


def _legend(series: Sequence[str], mark: str) -> list[list[tuple[float, str, int | None]]]:
    """Lines of (left, name, number of the series; None for the mark), as many as are needed."""
    lines: list[list[tuple[float, str, int | None]]] = [[]]
    x = 16.0
    for name, number in [*((name, number) for number, name in enumerate(series)), *([(mark, None)] if mark else [])]:
        wide = 34 + 6.6 * len(name)
        if x + wide > WIDTH and lines[-1]:
            lines.append([])
            x = 16.0
        lines[-1].append((x, name, number))
        x += wide
    return lines


def _draw_legend(drawing: Drawing, entries: Sequence[tuple[float, str, int | None]], y: float) -> None:
    for x, name, number in entries:
        if number is None:
            drawing.line(x + 5, y - 8, x + 5, y + 8, "n")
        else:
            drawing.dot(x + 5, y, f"s{number}")
        drawing.text(x + 15, y + 4, name)


def _ticks(low: float, high: float, at_most: int = 7) -> list[float]:
    raw = (high - low) / at_most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    return [round(i * step, 9) + 0.0 for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def curve_chart(label: str, curves: Mapping[str, Sequence[tuple[float, float]]], *, x_axis: str, y_axis: str) -> Drawing:
    """Curves of positive values on a logarithmic axis, named under the chart.

    Args:
        label: what the chart shows.
        curves: (x, y) by name, at most ``SERIES``; the first is the reference, dashed on top of the others.
        x_axis, y_axis: what the axes are.
    """
    assert len(curves) <= SERIES
    left, right, top, tall = 64, WIDTH - 24, 34, 240
    xs = [x for curve in curves.values() for x, _ in curve]
    ys = [y for curve in curves.values() for _, y in curve]
    low, high = math.log10(min(ys)) - 0.03, math.log10(max(ys)) + 0.03
    drawing = Drawing(WIDTH, top + tall + 48 + 20 * len(curves) + 8, label)

    def x_of(x: float) -> float:
        return left + (right - left) * (x - min(xs)) / max(max(xs) - min(xs), 1e-9)

    def y_of(y: float) -> float:
        return top + tall * (high - math.log10(y)) / (high - low)

    drawing.text(16, 20, y_axis, "q")
    for decade in range(math.floor(low), math.ceil(high) + 1):
        for factor in _DECADE:
            value = factor * 10.0**decade
            if low <= math.log10(value) <= high:
                drawing.line(left, y_of(value), right, y_of(value))
                drawing.text(left - 8, y_of(value) + 4, f"{value:g}", "q", anchor="end")
    for tick in _ticks(min(xs), max(xs)) if max(xs) > min(xs) else xs[:1]:
        drawing.text(x_of(tick), top + tall + 18, f"{tick:g}", "q", anchor="middle")
    drawing.text(right, top + tall + 34, x_axis, "q", anchor="end")
    for number, (name, curve) in reversed(list(enumerate(curves.items()))):
        kind = f"c t{number}" if number else "c d t0"
        drawing.curve([(x_of(x), y_of(y)) for x, y in curve], kind)
        y = top + tall + 56 + 20 * number
        drawing.line(left, y - 4, left + 24, y - 4, kind)
        drawing.text(left + 32, y, name)
    return drawing
