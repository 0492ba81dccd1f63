"""What can be read off a figure of matplotlib: points of a dot chart, and text that is cut or hidden by other text."""

from itertools import combinations

from matplotlib.axis import Axis, Tick
from matplotlib.container import ErrorbarContainer
from matplotlib.text import Text


def points(figure):
    """By series of a dot chart, (value, low, high, y) from the top down."""
    found = {}
    for container in figure.axes[0].containers:
        assert isinstance(container, ErrorbarContainer)
        line, _, (bars,) = container
        ends = [segment[:, 0].tolist() for segment in bars.get_segments()]
        found[container.get_label()] = [
            (float(x), *end, float(y)) for x, end, y in zip(line.get_xdata(), ends, line.get_ydata(), strict=True)
        ]
    return found


def unreadable(figure):
    """Texts that overlap another one, or are cut by the figure's edge."""
    figure.draw_without_rendering()
    texts = {t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()}
    for axis in figure.findobj(Axis):  # it also has ticks outside of its limits, which are never drawn
        labels = {tick: {tick.label1, tick.label2} for tick in axis.findobj(Tick)}
        for tick in labels.keys() - set(axis._update_ticks()):
            texts -= labels[tick]
    shown = sorted(((t.get_text(), t.get_window_extent()) for t in texts), key=lambda pair: pair[0])
    cut = [text for text, box in shown if not inside(box, figure.bbox)]
    return cut + [(a, b) for (a, x), (b, y) in combinations(shown, 2) if overlap(x, y)]


def inside(box, outer):
    return box.x0 >= outer.x0 - 1 and box.y0 >= outer.y0 - 1 and box.x1 <= outer.x1 + 1 and box.y1 <= outer.y1 + 1


def overlap(a, b):
    return min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
