"""Charts of the page: values with intervals on one axis, and learning curves. Numbers in, figures out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import blended_transform_factory

from pave.evaluation.metrics import Interval

WIDTH = 8.0
"""Inches."""
STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so the same everywhere
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8c959f",
    "grid.color": "#d8dee4",
    "legend.frameon": False,
    "legend.columnspacing": 1.4,
    "figure.constrained_layout.use": True,
}
SERIES = (
    ("#6e7781", "o"),
    ("#0072b2", "s"),
    ("#d55e00", "^"),
    ("#009e73", "D"),
    ("#cc79a7", "v"),
    ("#e69f00", "P"),
    ("#56b4e9", "X"),
    ("#222222", "*"),
)
"""Colour and marker of each series: told apart by the colour-blind (Okabe and Ito 2008), and by the marker in grey
print. The first, a grey, is the reference."""
_LINE, _GAP = 0.085, 0.11
"""Inches between the points of a row, and between rows."""
_LEGEND_CHARACTERS = 92


@dataclass(frozen=True)
class Point:
    """A value with its interval."""

    value: float
    low: float
    high: float

    @classmethod
    def percent(cls, value: float, interval: Interval) -> Point:
        """From a share and its interval."""
        return cls(100 * value, 100 * interval.low, 100 * interval.high)


@dataclass(frozen=True)
class Row:
    """One line of a chart: at most one point for each series."""

    label: str
    points: Mapping[str, Point]
    mark: float | None = None
    """A value to compare with, such as guessing."""


def dot_chart(
    title: str,
    groups: Mapping[str, Sequence[Row]],
    series: Sequence[str],
    *,
    axis: str,
    ends: tuple[float, float] = (0.0, 100.0),
    mark: str = "",
) -> Figure:
    """Points with intervals, row by row, under the name of each group.

    Args:
        title: what the chart shows, for those who cannot see it.
        groups: rows by the name of their group.
        series: names in the order of their colours, at most as many as ``SERIES``.
        axis: what the horizontal axis is.
        ends: the least that the axis shows; made wider where a point lies outside.
        mark: what the marks of the rows are.
    """
    assert len(series) <= len(SERIES)
    height, names = _LINE * len(series) + _GAP, [*series, *([mark] if mark else [])]
    at: list[tuple[float, Row]] = []
    headings: list[tuple[float, str]] = []
    y = 0.0
    for group, rows in groups.items():
        headings.append((y + 0.15, group))
        y += 0.28
        for row in rows:
            at.append((y + height / 2, row))
            y += height
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, y + 0.55 + 0.2 * _legend_lines(names)))
        axes: Any = figure.subplots()
        for number, name in enumerate(series):
            offset = _LINE * (number - (len(series) - 1) / 2)
            found = [(y + offset, row.points[name]) for y, row in at if name in row.points]
            _dots(axes, found, name, *SERIES[number])
        marked = [(y, row.mark) for y, row in at if row.mark is not None]
        if marked:
            centres, values = zip(*marked, strict=True)
            half = height / 2 - _GAP / 4
            tops, bottoms = [c - half for c in centres], [c + half for c in centres]
            axes.vlines(values, tops, bottoms, color="black", linewidth=1.3, label=mark, zorder=1)
        _scale(axes, [point for _, row in at for point in row.points.values()], ends, y)
        axes.set_yticks([y for y, _ in at], [row.label for _, row in at])
        left = blended_transform_factory(figure.transFigure, axes.transData)
        for y, group in headings:
            heading = axes.text(0.005, y, group, transform=left, fontweight="bold", va="center", zorder=5)
            heading.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.5})
            heading.set_in_layout(False)  # it may reach over the labels of the rows into the chart
        axes.set_xlabel(axis)
        _legend(figure, names, "outside upper left")
    figure.set_label(title)
    return figure


def _dots(axes: Any, found: Sequence[tuple[float, Point]], name: str, colour: str, marker: str) -> None:
    x = [point.value for _, point in found]
    reach = [[p.value - p.low for _, p in found], [p.high - p.value for _, p in found]]
    style = {"markersize": 4, "linewidth": 1.4, "linestyle": "none", "elinewidth": 1.4, "clip_on": False}
    axes.errorbar(x, [y for y, _ in found], xerr=reach, color=colour, marker=marker, label=name, zorder=3, **style)


def _scale(axes: Any, points: Sequence[Point], ends: tuple[float, float], bottom: float) -> None:
    low = min([ends[0], *(point.low for point in points)])
    high = max([ends[1], *(point.high for point in points)])
    spare = 0.01 * (high - low)
    axes.set_xlim(low - spare, high + spare)
    axes.set_ylim(bottom, 0)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    if low < 0:
        axes.axvline(0, color="#57606a", linewidth=1.0, zorder=2)


def _legend_columns(names: Sequence[str]) -> int:
    """As many as fit beside each other; a column is as wide as the longest of its names."""
    for columns in range(len(names), 1, -1):
        lines = -(-len(names) // columns)
        widths = [max(len(name) + 8 for name in names[start : start + lines]) for start in range(0, len(names), lines)]
        if sum(widths) <= _LEGEND_CHARACTERS:
            return columns
    return 1


def _legend_lines(names: Sequence[str]) -> int:
    return -(-len(names) // _legend_columns(names))


def _legend(figure: Figure, names: Sequence[str], where: Literal["outside upper left", "outside lower left"]) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    by_name = dict(zip(labels, handles, strict=True))
    shown = [name for name in names if name in by_name]
    columns = _legend_columns(names)
    figure.legend([by_name[name] for name in shown], shown, loc=where, ncols=columns)


def curve_chart(title: str, curves: Mapping[str, Sequence[tuple[float, float]]], *, x_axis: str, y_axis: str) -> Figure:
    """Curves of positive values on a logarithmic axis, named under the chart.

    Args:
        title: what the chart shows, for those who cannot see it.
        curves: (x, y) by name, at most as many as ``SERIES``; the first is the reference, dashed on top of the others.
        x_axis, y_axis: what the axes are.
    """
    assert len(curves) <= len(SERIES)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.2 + 0.2 * _legend_lines(list(curves))))
        axes: Any = figure.subplots()
        for number, (name, curve) in enumerate(curves.items()):
            xs, ys = zip(*curve, strict=True)
            colour, marker = SERIES[number]
            style = {"linestyle": "--" if number == 0 else "-", "zorder": 4 if number == 0 else 3, "linewidth": 1.5}
            every = (0.02 * number, 0.2)  # markers of several curves beside each other
            axes.plot(xs, ys, color=colour, marker=marker, markevery=every, markersize=4.5, label=name, **style)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.set(xlabel=x_axis, ylabel=y_axis)
        _legend(figure, list(curves), "outside lower left")
    figure.set_label(title)
    return figure
