"""A clip, its side channel and the attention between them as one drawing on one time axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pave.evaluation.report import SoundView
from pave.evaluation.report_graphics import TimeAxis, step_columns, wave_path
from pave.evidence.looks import Look
from pave.evidence.svg import Drawing

WIDTH = 760
_LEFT, _RIGHT = 118, 744
_PIXELS = 24
"""Of a side of a drawn frame."""
_LINE, _CELL, _LABEL = 9, 14, 46
_FAINT = 0.004
"""Share of the largest weight that is not drawn any more."""


@dataclass(frozen=True)
class _Time:
    """Where seconds and steps stand."""

    axis: TimeAxis
    spans_K: list[tuple[float, float]]
    """Left and right of each step."""

    @classmethod
    def of(cls, look: Look) -> _Time:
        times_F, times_K = look.item.times_F, look.times_K
        half = (times_F[1] - times_F[0]) / 2 if len(times_F) > 1 else 0.5
        step = float(np.median(np.diff(np.sort(times_K)))) / 2 if len(times_K) > 1 else half
        axis = TimeAxis(
            min(float(times_F[0] - half), float(times_K.min() - step)),
            max(float(times_F[-1] + half), float(times_K.max() + step)),
        )
        wide = 10_000
        spans = [
            (_LEFT + (_RIGHT - _LEFT) * first / wide, _LEFT + (_RIGHT - _LEFT) * last / wide)
            for first, last in step_columns(times_K, axis, wide)
        ]
        return cls(axis, spans)

    def x(self, seconds: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * self.axis.percent(seconds) / 100


def draw_look(look: Look, label: str, sound: SoundView | None = None) -> Drawing:
    """The frames, what the channel holds, where every frame looks in every layer, and where the tokens of one frame look.

    Args:
        look: what is drawn.
        label: what the drawing shows.
        sound: of the clip, where the channel is its sound.
    """
    time, mean_LTK = _Time.of(look), look.mean_LTK()
    layers, T, _ = mean_LTK.shape
    thumb = min(float(np.diff([time.x(t) for t in look.item.times_F]).min()) - 4, 76.0) if T > 1 else 76.0
    heat_top = 8 + thumb + 20 + (44 if sound is not None else 0) + 40
    timeline = heat_top + layers * (T * _LINE + 12)
    tokens_top = timeline + 62
    drawing = Drawing(WIDTH, tokens_top + _tokens_height(look), label)
    for start, end in look.events:
        drawing.rect(time.x(start), 8 + thumb + 18, time.x(end) - time.x(start), timeline - thumb - 26, "m", opacity=0.25)
    _frames(drawing, look, time, thumb)
    y = 8 + thumb + 20
    if sound is not None:
        drawing.text(16, y + 24, "sound")
        left, right = time.x(sound.start), time.x(sound.start + len(sound.samples) / sound.sample_rate)
        drawing.shape(wave_path(sound.samples), "i", x=left, y=y, width=right - left, height=40)
        y += 44
    _steps(drawing, look, time, y, 32)
    for layer in range(layers):
        _heat(drawing, look, mean_LTK[layer], time, heat_top + layer * (T * _LINE + 12), f"layer {layer + 1}")
    for tick in time.axis.ticks():
        x = _LEFT + (_RIGHT - _LEFT) * float(tick["x"]) / 100
        drawing.line(x, timeline - 8, x, timeline - 4, "k")
        drawing.text(x, timeline + 8, f"{tick['label']} s", "q", anchor="middle")
    _tokens(drawing, look, timeline + 36)
    return drawing


def _frames(drawing: Drawing, look: Look, time: _Time, size: float) -> None:
    drawing.text(16, 8 + size / 2 + 4, "frames")
    for number, (seconds, pixels) in enumerate(zip(look.item.times_F, look.item.frames_FHWC, strict=True)):
        x = time.x(float(seconds)) - size / 2
        drawing.picture(x, 8, size, size, _small(pixels))
        if number == _frame_of(look):
            drawing.frame(x - 1.5, 6.5, size + 3, size + 3, "w")


def _frame_of(look: Look) -> int:
    """The sampled frame that stands for the chosen time step (bases may merge frames)."""
    return look.chosen_frame * len(look.item.times_F) // len(look.in_reach_TK)


def _small(pixels_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(pixels_HWC).resize((_PIXELS, _PIXELS), Image.Resampling.BOX))


def _steps(drawing: Drawing, look: Look, time: _Time, y: float, height: float) -> None:
    """How far the features of each step lie from the mean of all steps, as bars."""
    drawing.text(16, y + height / 2, "side steps")
    flat_KX = look.features_KMC.reshape(len(look.times_K), -1)
    far_K = np.linalg.norm(flat_KX - flat_KX.mean(axis=0), axis=1)
    tallest = max(float(far_K.max()), 1e-9)
    for (left, right), far in zip(time.spans_K, far_K, strict=True):
        tall = max(height * float(far) / tallest, 1.0)
        drawing.rect(left + 0.5, y + height - tall, max(right - left - 1, 1), tall, "s0")


def _heat(drawing: Drawing, look: Look, weights_TK: NDArray[np.float64], time: _Time, y: float, name: str) -> None:
    T = len(weights_TK)
    drawing.text(16, y + 14, name)
    drawing.text(16, y + 30, "a line a frame", "q")
    for t in range(T):
        reach = look.in_reach_TK[t].nonzero()[0]
        if not len(reach):
            continue
        left, right = time.spans_K[reach[0]][0], time.spans_K[reach[-1]][1]
        drawing.rect(left, y + t * _LINE, right - left, _LINE - 1, "f", opacity=0.45)
        for k in reach:
            _weight(
                drawing, time.spans_K[k][0], y + t * _LINE, time.spans_K[k][1] - time.spans_K[k][0], _LINE - 1, weights_TK[t, k]
            )


def _weight(drawing: Drawing, x: float, y: float, width: float, height: float, weight: float) -> None:
    """A cell: clear for nothing, full for all of the attention."""
    if weight > _FAINT:
        drawing.rect(x, y, width, height, "h", opacity=min(float(weight), 0.999))


# --- one frame, token by token


def _rows(look: Look) -> list[tuple[str, NDArray[np.float64]]]:
    """Names and weights (steps in reach, M) of the lines about the chosen frame."""
    weight_LSKM = look.weight_LTNSKM[:, look.chosen_frame].mean(axis=1)[:, :, look.in_reach_TK[look.chosen_frame]]
    layers, S = weight_LSKM.shape[:2]
    if weight_LSKM.shape[-1] == 1:
        return [(f"token {s + 1}, layer {layers}", weight_LSKM[-1, s]) for s in range(S)]
    rows = [(f"mean, layer {layer + 1}", weight_LSKM[layer].mean(axis=0)) for layer in range(layers)]
    on_S = weight_LSKM[-1][:, look.on_event_K[look.in_reach_TK[look.chosen_frame]]].sum(axis=(1, 2))
    order = np.argsort(-on_S, kind="stable")
    chosen = dict.fromkeys([int(order[0]), int(order[-1])])
    return rows + [(f"token {s + 1}, layer {layers}", weight_LSKM[-1, s]) for s in chosen]


def _grid_side(look: Look) -> int:
    return round(look.weight_LTNSKM.shape[-1] ** 0.5)


def _column(look: Look) -> tuple[float, float]:
    """Width of the column of a step, and side of the picture in it."""
    steps = max(int(look.in_reach_TK[look.chosen_frame].sum()), 1)
    wide = min((_RIGHT - _LEFT - 110) / steps, 120.0)
    return wide, min(wide - 6, 64.0)


def _tokens_height(look: Look) -> float:
    picture = _column(look)[1] + 6 if look.pictures_KHWC() is not None else 0
    tall = _CELL if look.weight_LTNSKM.shape[-1] == 1 else _column(look)[1] + 6
    return max(picture + len(_rows(look)) * tall + 24, 110)


def _tokens(drawing: Drawing, look: Look, y: float) -> None:
    """The chosen frame with its numbered tokens, and what they attend to among the steps in reach."""
    t, wide, side = look.chosen_frame, *_column(look)
    seconds = float(look.item.times_F[_frame_of(look)])
    S, M = look.weight_LTNSKM.shape[3], look.weight_LTNSKM.shape[-1]
    drawing.text(16, y, f"The frame at {seconds:g} s: its {S} video tokens and the steps it may attend to", "b")
    y += 14
    size = 84.0
    drawing.picture(16, y, size, size, _small(look.item.frames_FHWC[_frame_of(look)]))
    across = round(S**0.5)
    if across * across == S:
        cell = size / across
        for s in range(S):
            left, top = 16 + cell * (s % across), y + cell * (s // across)
            drawing.frame(left, top, cell, cell)
            drawing.rect(left + 1, top + 1, 14, 12, "g", opacity=0.75)
            drawing.text(left + 4, top + 11, str(s + 1), "q")
    x = _LEFT + 110
    steps, pictures = look.in_reach_TK[t].nonzero()[0], look.pictures_KHWC()
    for column, k in enumerate(steps):
        if pictures is not None:
            drawing.picture(x + column * wide, y, side, side, pictures[k])
        if look.on_event_K[k]:
            drawing.rect(x + column * wide, y - 5, wide - 6, 3, "m")
    y += side + 6 if pictures is not None else 0
    for name, weights_KM in _rows(look):
        tall = _CELL - 2 if M == 1 else side
        drawing.text(x - 8, y + min(tall, 20) / 2 + 5, name, "q", anchor="end")
        for column in range(len(steps)):
            _step_cells(
                drawing, weights_KM[column], (x + column * wide, y, wide - 6 if M == 1 else side, tall), _grid_side(look)
            )
        y += tall + (2 if M == 1 else 6)
    every = int(-(-_LABEL // wide))
    for column, k in enumerate(steps):
        if column % every == 0:
            drawing.text(x + column * wide, y + 12, f"{look.times_K[k]:.2f} s", "q")


def _step_cells(drawing: Drawing, weight_M: NDArray[np.float64], box: tuple[float, float, float, float], across: int) -> None:
    """The tokens of one step in a box, row by row."""
    x, y, width, height = box
    drawing.rect(x, y, width, height, "f", opacity=0.45)
    if across * across != len(weight_M):
        across = 1
        weight_M = weight_M.sum(keepdims=True)
    wide, tall = width / across, height / across
    for m, weight in enumerate(weight_M):
        _weight(drawing, x + wide * (m % across), y + tall * (m // across), wide, tall, float(weight))
