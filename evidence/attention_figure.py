"""A clip, its side channel and the attention between them as one figure on one time axis."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from evidence.attention import Look
from evidence.charts import STYLE, WIDTH
from pave.evaluation.report import SoundView
from pave.evaluation.report_graphics import TimeAxis, step_columns

_BLUE, _REACH, _EVENT = "#0072b2", "#e3e7eb", "#e69f00"
_WAVE_COLUMNS, _SPAN_COLUMNS = 800, 10_000
_COLUMNS_WIDTH = 5.4
"""Inches of all columns of steps."""
_LABEL = {"rotation": 0, "ha": "right", "va": "center"}


def draw_look(look: Look, title: str, sound: SoundView | None = None) -> Figure:
    """The frames, what the channel holds, where every frame looks in every layer, and where the tokens of one frame
    look.

    Args:
        look: what is drawn.
        title: what the figure shows, for those who cannot see it.
        sound: the clip's, where the channel is its sound.
    """
    axis, mean_LTK = _time_axis(look), look.mean_LTK()
    layers, T, _ = mean_LTK.shape
    with rc_context(STYLE):
        frame = min(_frame_seconds(look) / axis.seconds * 0.82 * WIDTH * 0.94, 0.9)
        heights = [frame, *([0.4] if sound is not None else []), 0.4, *[0.13 * T] * layers]
        tokens = _tokens_height(look)
        figure = Figure(figsize=(WIDTH, sum(heights) + 0.13 * len(heights) + tokens + 0.75))
        above, below = figure.subfigures(2, height_ratios=[sum(heights) + 0.13 * len(heights) + 0.35, tokens + 0.4])  # type: ignore[misc]
        rows = above.subplots(len(heights), sharex=True, height_ratios=heights)
        _draw_frames(rows[0], look, frame * axis.seconds / (0.82 * WIDTH))
        if sound is not None:
            _draw_wave(rows[1], sound)
        _draw_steps(rows[-layers - 1], look, axis)
        for layer, axes in enumerate(rows[-layers:]):
            _draw_weights(axes, look, mean_LTK[layer], axis, f"layer {layer + 1},\na line a frame")
        for axes in rows:
            axes.set_yticks([])
            axes.tick_params(length=0, labelbottom=axes is rows[-1])
            axes.spines[:].set_visible(False)
        for axes in rows[1:]:
            for start, end in look.events:
                axes.axvspan(start, end, color=_EVENT, alpha=0.25, linewidth=0, zorder=0)
        rows[-1].set(xlim=(axis.start, axis.end), xlabel="seconds")
        _draw_tokens(below, look)
    figure.set_label(title)
    return figure


def _frame_seconds(look: Look) -> float:
    """Time between two frames."""
    times_F = look.item.times_F
    return float(np.diff(times_F).min()) if len(times_F) > 1 else 1.0


def _time_axis(look: Look) -> TimeAxis:
    times_F, times_K = look.item.times_F, look.times_K
    half = _frame_seconds(look) / 2
    step = float(np.median(np.diff(np.sort(times_K)))) / 2 if len(times_K) > 1 else half
    return TimeAxis(
        min(float(times_F[0] - half), float(times_K.min() - step)),
        max(float(times_F[-1] + half), float(times_K.max() + step)),
    )


def _spans(look: Look, axis: TimeAxis) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Start and length of each step in seconds."""
    columns_K2 = np.asarray(step_columns(look.times_K, axis, _SPAN_COLUMNS), dtype=float)
    seconds_K2 = axis.start + columns_K2 * axis.seconds / _SPAN_COLUMNS
    return seconds_K2[:, 0], seconds_K2[:, 1] - seconds_K2[:, 0]


def _frame_of(look: Look) -> int:
    """The sampled frame that stands for the chosen time step (bases may merge frames)."""
    return look.chosen_frame * len(look.item.times_F) // len(look.in_reach_TK)


def _draw_frames(axes: Any, look: Look, side: float) -> None:
    axes.set_ylabel("frames", **_LABEL)
    for number, (seconds, pixels) in enumerate(zip(look.item.times_F, look.item.frames_FHWC, strict=True)):
        extent = (seconds - side / 2, seconds + side / 2, 0, 1)
        axes.imshow(pixels, extent=extent, aspect="auto", interpolation="nearest")
        if number == _frame_of(look):
            axes.plot(seconds, -0.08, marker="^", color="black", markersize=6, clip_on=False)
    axes.set_ylim(0, 1)


def _draw_wave(axes: Any, sound: SoundView) -> None:
    """The envelope of the sound, scaled to its loudest sample."""
    samples = np.nan_to_num(np.asarray(sound.samples, dtype=np.float64))
    edges = np.linspace(0, len(samples), min(_WAVE_COLUMNS, len(samples)) + 1).astype(int)
    seconds = sound.start + edges[:-1] / sound.sample_rate
    low, high = np.minimum.reduceat(samples, edges[:-1]), np.maximum.reduceat(samples, edges[:-1])
    axes.fill_between(seconds, low, high, color="#222222", linewidth=0.4)
    reach = max(float(np.abs(samples).max()), 1e-6)
    axes.set_ylim(-1.05 * reach, 1.05 * reach)
    axes.set_ylabel("sound", **_LABEL)


def _draw_steps(axes: Any, look: Look, axis: TimeAxis) -> None:
    """How far the features of each step lie from the mean of all steps, as bars."""
    flat_KX = look.features_KMC.reshape(len(look.times_K), -1)
    far_K = np.linalg.norm(flat_KX - flat_KX.mean(axis=0), axis=1)
    starts_K, lengths_K = _spans(look, axis)
    axes.bar(starts_K, far_K, lengths_K, align="edge", color="#6e7781", edgecolor="white", linewidth=0.5)
    axes.set_ylim(0, max(float(far_K.max()), 1e-9))
    axes.set_ylabel("side steps", **_LABEL)


def _draw_weights(axes: Any, look: Look, weights_TK: NDArray[np.float64], axis: TimeAxis, name: str) -> None:
    """A line for each frame: grey where it may attend to, blue as deep as its attention."""
    starts_K, lengths_K = _spans(look, axis)
    for t, reach_K in enumerate(look.in_reach_TK):
        lines = np.full(int(reach_K.sum()), t)
        cells = {"left": starts_K[reach_K], "height": 0.88}
        axes.barh(lines, lengths_K[reach_K], color=_REACH, **cells)
        axes.barh(lines, lengths_K[reach_K], color=_blue(weights_TK[t, reach_K]), **cells)
    axes.set_ylim(len(weights_TK) - 0.5, -0.5)
    axes.set_ylabel(name, **_LABEL)


def _blue(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Colours: clear for nothing, full for all of the attention."""
    colours = np.empty((*weights.shape, 4))
    colours[...] = to_rgba(_BLUE)
    colours[..., 3] = np.clip(weights, 0, 1)
    return colours


# --- one frame, token by token


def token_rows(look: Look) -> list[tuple[str, NDArray[np.float64]]]:
    """Names and weights (steps in reach, M) of the lines about the chosen frame."""
    reach_K = look.in_reach_TK[look.chosen_frame]
    weight_LSKM = look.weight_LTNSKM[:, look.chosen_frame].mean(axis=1)[:, :, reach_K]
    layers, S = weight_LSKM.shape[:2]
    if weight_LSKM.shape[-1] == 1:
        return [(f"token {s + 1}, layer {layers}", weight_LSKM[-1, s]) for s in range(S)]
    rows = [(f"mean, layer {layer + 1}", weight_LSKM[layer].mean(axis=0)) for layer in range(layers)]
    on_event_S = weight_LSKM[-1][:, look.on_event_K[reach_K]].sum(axis=(1, 2))
    order = np.argsort(-on_event_S, kind="stable")
    chosen = dict.fromkeys([int(order[0]), int(order[-1])])
    return rows + [(f"token {s + 1}, layer {layers}", weight_LSKM[-1, s]) for s in chosen]


def _column_width(look: Look) -> float:
    """Inches of the column of a step; square where it holds pictures or several tokens."""
    steps = max(int(look.in_reach_TK[look.chosen_frame].sum()), 1)
    plain = look.weight_LTNSKM.shape[-1] == 1 and look.pictures_KHWC() is None
    return min(_COLUMNS_WIDTH / steps, 1.2 if plain else 0.65)


def _row_heights(look: Look) -> list[float]:
    """Inches of a row of pictures, where there is one, and of each row of cells."""
    side = _column_width(look)
    cells = 0.19 if look.weight_LTNSKM.shape[-1] == 1 else side
    pictures = [side] if look.pictures_KHWC() is not None else []
    return [*pictures, *[cells] * len(token_rows(look))]


def _tokens_height(look: Look) -> float:
    return max(sum(_row_heights(look)) + 0.2, 1.3)


def _draw_tokens(below: Any, look: Look) -> None:
    """The chosen frame with its numbered tokens, and what they attend to among the steps in reach."""
    seconds, S = float(look.item.times_F[_frame_of(look)]), look.weight_LTNSKM.shape[3]
    below.suptitle(
        f"The frame at {seconds:g} s: its {S} video tokens and the steps it may attend to",
        x=0.02, ha="left", fontsize=9, fontweight="bold",
    )  # fmt: skip
    left, right = below.subplots(1, 2, width_ratios=[1.15, 6])
    _draw_numbered(left, look.item.frames_FHWC[_frame_of(look)], S)
    steps, pictures = look.in_reach_TK[look.chosen_frame].nonzero()[0], look.pictures_KHWC()
    heights, rows, top = _row_heights(look), token_rows(look), 0.0
    if pictures is not None:
        for column, k in enumerate(steps):
            right.imshow(pictures[k], extent=(column + 0.03, column + 0.97, 0.94 * heights[0], 0), aspect="auto",
                         interpolation="nearest")  # fmt: skip
        top = heights.pop(0)
    ticks = []
    for (name, weights_KM), height in zip(rows, heights, strict=True):
        for column, weight_M in enumerate(weights_KM):
            _draw_cells(right, weight_M, (column + 0.03, column + 0.97, top + 0.94 * height, top))
        ticks.append((top + 0.47 * height, name))
        top += height
    for column in look.on_event_K[steps].nonzero()[0]:
        right.plot([column + 0.03, column + 0.97], [-0.04, -0.04], color=_EVENT, linewidth=3, solid_capstyle="butt")
    right.set(xlim=(0, _COLUMNS_WIDTH / _column_width(look)), ylim=(top, -0.08))
    right.set_yticks([y for y, _ in ticks], [name for _, name in ticks])
    columns = [int(x) for x in MaxNLocator(nbins=9, integer=True).tick_values(0, len(steps)) if 0 <= x < len(steps)]
    right.set_xticks([x + 0.5 for x in columns], [f"{look.times_K[steps[x]]:.2f} s" for x in columns])
    right.tick_params(length=0)
    right.spines[:].set_visible(False)


def _draw_numbered(axes: Any, pixels_HWC: NDArray[np.uint8], S: int) -> None:
    across = round(S**0.5)
    axes.imshow(pixels_HWC, extent=(0, across, across, 0), interpolation="nearest")
    axes.set_anchor("NW")
    axes.set_axis_off()
    if across * across != S:
        return
    box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.0}
    for s in range(S):
        left, top = s % across, s // across
        axes.add_patch(Rectangle((left, top), 1, 1, fill=False, edgecolor="#8c959f", linewidth=0.8, clip_on=False))
        axes.text(left + 0.1, top + 0.12, str(s + 1), fontsize=7, va="top", ha="left", bbox=box)


def _draw_cells(axes: Any, weight_M: NDArray[np.float64], extent: tuple[float, float, float, float]) -> None:
    """The tokens of one step in a box, row by row where they make a square, else added up."""
    across = round(len(weight_M) ** 0.5)
    grid = weight_M.reshape(across, across) if across**2 == len(weight_M) else weight_M.sum().reshape(1, 1)
    left, right, bottom, top = extent
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, color=_REACH, linewidth=0))
    axes.imshow(_blue(grid), extent=extent, aspect="auto", interpolation="nearest", zorder=2)
