"""Small pictures for reports: thumbnails, waves and heat maps on a true time axis. Arrays in, SVG paths and data URIs out."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLUMNS = 800
_THUMBNAIL = 192
_LINES = 5
_GAP = 1


@dataclass(frozen=True)
class TimeAxis:
    """The seconds that a timeline shows, from ``start`` to ``end``."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        """Length; at least a millisecond."""
        return max(self.end - self.start, 1e-3)

    def percent(self, time: float) -> float:
        """Where ``time`` stands, 0 at the left edge and 100 at the right one."""
        return 100 * (time - self.start) / self.seconds

    def ticks(self, at_most: int = 8) -> list[dict[str, str]]:
        """Round times to label: at most ``at_most``, at steps of 1, 2 or 5 times a power of ten."""
        raw = self.seconds / at_most
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        first = math.ceil(self.start / step - 1e-9)
        last = math.floor(self.end / step + 1e-9)
        return [{"x": f"{self.percent(i * step):.3f}", "label": f"{i * step:.{digits}f}"} for i in range(first, last + 1)]


def step_columns(times_K: NDArray[np.float64], axis: TimeAxis, columns: int = COLUMNS) -> list[tuple[int, int]]:
    """First and one-past-last column of every step.

    A step covers the time up to halfway to its neighbours, but never more than half the usual distance (the median gap)
    either side, so that a gap in the stream stays visible. Every step covers at least one column.
    """
    order = np.argsort(times_K, kind="stable")
    gaps = np.diff(times_K[order])
    usual = float(np.median(gaps[gaps > 0])) if (gaps > 0).any() else axis.seconds / 20
    spans = [(0, 0)] * len(times_K)
    for place, k in enumerate(order):
        before = min(gaps[place - 1], usual) / 2 if place > 0 else usual / 2
        after = min(gaps[place], usual) / 2 if place < len(gaps) else usual / 2
        first = round(columns * (times_K[k] - before - axis.start) / axis.seconds)
        last = round(columns * (times_K[k] + after - axis.start) / axis.seconds)
        first = min(max(first, 0), columns - 1)
        spans[k] = (first, min(max(last, first + 1), columns))
    return spans


def on_timeline(values_RK: NDArray[np.float64], times_K: NDArray[np.float64], axis: TimeAxis) -> NDArray[np.float64]:
    """Spread the values of every step over its columns; NaN where no step is, the largest where several fall together."""
    image = np.full((len(values_RK), COLUMNS), np.nan)
    for k, (first, last) in enumerate(step_columns(times_K, axis)):
        image[:, first:last] = np.fmax(image[:, first:last], values_RK[:, k : k + 1])
    return image


def row_heat_rgba(
    weights_RK: NDArray[np.float64], times_K: NDArray[np.float64], axis: TimeAxis, color: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """Rows of a heat map, each scaled to its own largest weight: opaque where it is reached, clear at zero.

    The colour's opacity carries the weight, so the picture sits on a light or a dark page. A clear line parts the rows.
    """
    peak = weights_RK.max(axis=1, keepdims=True, initial=0.0)
    scaled = np.divide(weights_RK, peak, out=np.zeros_like(weights_RK), where=peak > 0)
    alpha = np.nan_to_num(on_timeline(scaled, times_K, axis))
    alpha = np.repeat(alpha, _LINES + _GAP, axis=0)
    alpha.reshape(len(weights_RK), _LINES + _GAP, COLUMNS)[:, _LINES:] = 0
    return _colored(alpha, color)


def spectrogram_rgba(
    features_KC: NDArray[np.floating], times_K: NDArray[np.float64], axis: TimeAxis, color: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """Features as an image, channel 0 at the bottom, from the 1st percentile (clear) to the 99th (opaque)."""
    values_CK = np.nan_to_num(np.asarray(features_KC, dtype=np.float64).T[::-1])
    low, high = np.percentile(values_CK, [1, 99]) if values_CK.size else (0.0, 1.0)
    scaled = np.clip((values_CK - low) / max(high - low, 1e-9), 0, 1)
    return _colored(np.nan_to_num(on_timeline(scaled, times_K, axis)), color)


def _colored(alpha: NDArray[np.float64], color: tuple[int, int, int]) -> NDArray[np.uint8]:
    image = np.empty((*alpha.shape, 4), dtype=np.uint8)
    image[..., :3] = color
    image[..., 3] = np.round(255 * alpha)
    return image


def wave_path(samples: NDArray[np.floating], bins: int = 400) -> str:
    """An SVG path of the wave's envelope in a box of width 1000 and height 100: up along the maxima, back along the minima.

    Scaled to the loudest sample; silence is a thin line.
    """
    wave = np.nan_to_num(np.asarray(samples, dtype=np.float64))
    if not len(wave):
        return "M0,50H1000"
    bins = min(bins, len(wave))
    edges = np.linspace(0, len(wave), bins + 1).astype(int)
    highs = np.maximum.reduceat(wave, edges[:-1])
    lows = np.minimum.reduceat(wave, edges[:-1])
    scale = 48 / max(float(np.abs(wave).max()), 1e-6)
    x = (np.arange(bins) + 0.5) * 1000 / bins
    top = [f"{a:.1f},{50 - scale * b - 0.5:.1f}" for a, b in zip(x, highs)]
    bottom = [f"{a:.1f},{50 - scale * b + 0.5:.1f}" for a, b in zip(x[::-1], lows[::-1])]
    return "M" + "L".join(top + bottom) + "Z"


def thumbnail_uri(pixels_HWC: NDArray[np.uint8]) -> str:
    """A frame as a data URI, at most 192 pixels wide or high: PNG where it is tiny, JPEG otherwise."""
    if pixels_HWC.dtype != np.uint8 or pixels_HWC.ndim != 3 or pixels_HWC.shape[2] != 3:
        raise ValueError(f"report: a frame must be uint8 (height, width, 3), got {pixels_HWC.dtype} {pixels_HWC.shape}")
    image = Image.fromarray(pixels_HWC)
    tiny = max(image.size) <= 96
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if tiny else "JPEG", **({} if tiny else {"quality": 82}))
    return _uri("png" if tiny else "jpeg", buffer)


def png_uri(image_HWC: NDArray[np.uint8]) -> str:
    """An RGBA array as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC, "RGBA").save(buffer, "PNG", optimize=True)
    return _uri("png", buffer)


def _uri(kind: str, buffer: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
