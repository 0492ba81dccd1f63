"""Drawings for the page as SVG: shapes and text only, for a light and a dark page.

Nothing is embedded or loaded: sites that host a repository forbid it. A drawing paints its own ground and takes its colours from the
viewer's colour scheme, so that it can be read wherever it is put. Numbers are rounded, so that the same values give the same file.
"""

from __future__ import annotations

from html import escape
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

SERIES = 8
"""Colours that can be told apart; classes ``s0`` to ``s7``, the first a grey for the reference."""
_LIGHT = ("#57606a", "#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#9a6700", "#0a7d83")
_DARK = ("#9aa4af", "#58a6ff", "#ffa657", "#56d364", "#bc8cff", "#ff9bce", "#e3b341", "#56d4dd")
_SCHEMES = {
    "light": {
        "ground": "#ffffff",
        "ink": "#1f2328",
        "soft": "#59636e",
        "rule": "#d1d9e0",
        "heat": "#0969da",
        "mark": "#bc4c00",
    },
    "dark": {"ground": "#0d1117", "ink": "#e6edf3", "soft": "#9198a1", "rule": "#3d444d", "heat": "#58a6ff", "mark": "#ffa657"},
}
_RULES = """
text{font:12px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:var(--ink)}
.b{font-weight:600}.q{fill:var(--soft);font-size:11px}.g{fill:var(--ground)}.i{fill:var(--ink)}.h{fill:var(--heat)}.m{fill:var(--mark)}
.f{fill:var(--rule)}.l{stroke:var(--rule);fill:none}.k{stroke:var(--soft);fill:none}.w{stroke:var(--mark);fill:none;stroke-width:2}
.n{stroke:var(--ink);fill:none;stroke-width:1.5}
.c{fill:none;stroke-width:1.8;stroke-linejoin:round}.d{stroke-dasharray:6 4}
"""
_NEAR = 26
"""Colours whose red, green and blue all differ by no more are drawn as one."""


def _style() -> str:
    def variables(scheme: str, series: tuple[str, ...]) -> str:
        named = {**_SCHEMES[scheme], **{f"s{i}": colour for i, colour in enumerate(series)}}
        return "svg{" + ";".join(f"--{name}:{colour}" for name, colour in named.items()) + "}"

    classes = "".join(f".s{i}{{fill:var(--s{i})}}.t{i}{{stroke:var(--s{i})}}" for i in range(SERIES))
    dark = f"@media (prefers-color-scheme:dark){{{variables('dark', _DARK)}}}"
    return variables("light", _LIGHT) + dark + _RULES + classes


class Drawing:
    """Shapes in the order they were put.

    Args:
        width, height: in pixels.
        label: what the drawing shows, for those who cannot see it.
    """

    def __init__(self, width: float, height: float, label: str) -> None:
        self.width, self.height, self.label = width, height, label
        self._parts: list[str] = []

    def rect(self, x: float, y: float, width: float, height: float, kind: str, *, opacity: float = 1.0) -> None:
        """A filled box; ``kind`` are classes of the style."""
        faint = "" if opacity >= 1 else f' opacity="{_n(opacity, 3)}"'
        self._parts.append(f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" class="{kind}"{faint}/>')

    def line(self, x0: float, y0: float, x1: float, y1: float, kind: str = "l") -> None:
        """A straight line."""
        self._parts.append(f'<path d="M{_n(x0)} {_n(y0)}L{_n(x1)} {_n(y1)}" class="{kind}"/>')

    def curve(self, points: list[tuple[float, float]], kind: str) -> None:
        """A line through points."""
        self._parts.append(f'<path d="M{"L".join(f"{_n(x)} {_n(y)}" for x, y in points)}" class="{kind}"/>')

    def dot(self, x: float, y: float, kind: str, radius: float = 4.0) -> None:
        """A disc."""
        self._parts.append(f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}" class="{kind}"/>')

    def shape(self, path: str, kind: str, *, x: float, y: float, width: float, height: float) -> None:
        """A path made for a box of 1000 by 100, stretched into this one."""
        scale = f"translate({_n(x)} {_n(y)}) scale({_n(width / 1000, 4)} {_n(height / 100, 4)})"
        self._parts.append(f'<path d="{path}" class="{kind}" transform="{scale}"/>')

    def text(self, x: float, y: float, words: str, kind: str = "", *, anchor: str = "start") -> None:
        """A line of text whose baseline starts, ends ("end") or has its middle ("middle") at the point."""
        where = "" if anchor == "start" else f' text-anchor="{anchor}"'
        look = f' class="{kind}"' if kind else ""
        self._parts.append(f'<text x="{_n(x)}" y="{_n(y)}"{look}{where}>{escape(words)}</text>')

    def frame(self, x: float, y: float, width: float, height: float, kind: str = "k") -> None:
        """The border of a box."""
        self._parts.append(f'<path d="M{_n(x)} {_n(y)}h{_n(width)}v{_n(height)}h{_n(-width)}z" class="{kind}"/>')

    def picture(self, x: float, y: float, width: float, height: float, pixels_HWC: NDArray[np.uint8]) -> None:
        """A small picture, a box for every run of like pixels; meant for some tens of pixels a side."""
        H, W = pixels_HWC.shape[:2]
        colours, which_HW = _few_colours(pixels_HWC)
        ground = int(np.bincount(which_HW.flatten()).argmax())
        boxes: dict[int, list[str]] = {ground: [f"M0 0h{W}v{H}h-{W}z"]}
        for row, line_W in enumerate(which_HW):
            starts = [0, *(np.flatnonzero(np.diff(line_W)) + 1).tolist(), W]
            for first, last in pairwise(starts):
                if (colour := int(line_W[first])) != ground:
                    boxes.setdefault(colour, []).append(f"M{first} {row}h{last - first}v1h-{last - first}z")
        drawn = "".join(f'<path fill="{colours[colour]}" d="{"".join(runs)}"/>' for colour, runs in boxes.items())
        scale = f"translate({_n(x)} {_n(y)}) scale({_n(width / W, 4)} {_n(height / H, 4)})"
        self._parts.append(f'<g transform="{scale}" shape-rendering="crispEdges">{drawn}</g>')

    def __str__(self) -> str:
        size = f'viewBox="0 0 {_n(self.width)} {_n(self.height)}" width="{_n(self.width)}" height="{_n(self.height)}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(self.label)}">'
        ground = f'<rect width="{_n(self.width)}" height="{_n(self.height)}" class="g"/>'
        return "\n".join([head, f"<style>{_style()}</style>", ground, *self._parts, "</svg>"]) + "\n"


def _few_colours(pixels_HWC: NDArray[np.uint8]) -> tuple[list[str], NDArray[np.intp]]:
    """The colours of a picture without its noise, and which of them each pixel has."""
    flat = pixels_HWC.reshape(-1, 3).astype(int)
    kept: list[NDArray[np.int_]] = []
    which = np.full(len(flat), -1)
    values, counts = np.unique(flat, axis=0, return_counts=True)
    for colour in values[np.argsort(-counts, kind="stable")]:
        left = which < 0
        if not (left & (flat == colour).all(axis=1)).any():
            continue
        which[left & (np.abs(flat - colour).max(axis=1) <= _NEAR)] = len(kept)
        kept.append(colour)
    means = [flat[which == i].mean(axis=0).round().astype(int) for i in range(len(kept))]
    return ["#" + "".join(f"{v:02x}" for v in mean) for mean in means], which.reshape(pixels_HWC.shape[:2])


def _n(value: float, digits: int = 1) -> str:
    """A number as short as it can be."""
    text = f"{value:.{digits}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text
