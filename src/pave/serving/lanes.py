"""Lanes for drawing: pictures, streams and weights over time, thinned to what a screen can show and as plain data."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pave.data.items import PatchItem
from pave.inference.attention import FusionView, by_frame
from pave.side_channels import AudioClip, SideFeatures
from pave.side_channels.sensor import SensorSeries

_BINS = 600
"""Of a curve or wave."""
_STEPS = 1200
"""Most side steps; where there are more, neighbours are put together."""
_ROWS = 48
"""Most rows of a picture of features."""
_COLUMNS = 6
"""Most columns of a sensor."""
_TOKENS = 16_384
"""Most values that are told token by token."""
_HEIGHT = 64
"""Of the pictures of frames, in pixels."""


def frame_lane(item: PatchItem) -> dict[str, Any]:
    """The frames that were looked at: their times, and one JPEG with all of them side by side.

    Args:
        item: with pictures.
    """
    height, width = item.frames_FHWC.shape[1:3]
    wide = max(1, min(2 * _HEIGHT, round(width * _HEIGHT / height)))
    strip = Image.new("RGB", (wide * len(item.frames_FHWC), _HEIGHT))
    for number, pixels_HWC in enumerate(item.frames_FHWC):
        strip.paste(Image.fromarray(np.ascontiguousarray(pixels_HWC)).resize((wide, _HEIGHT)), (wide * number, 0))
    file = io.BytesIO()
    strip.save(file, "JPEG", quality=80)
    times = _rounded(item.times_F)
    return {"times": times, "picture": f"data:image/jpeg;base64,{_text(file.getvalue())}", "width": wide, "height": _HEIGHT}


def sound_lane(clip: AudioClip | None) -> dict[str, Any] | None:
    """The lowest and the highest sample of each of up to 600 stretches of sound, from -127 to 127."""
    if clip is None:
        return None
    samples = clip.samples if clip.samples.ndim == 1 else clip.samples.mean(axis=1)
    edges = np.linspace(0, len(samples), min(_BINS, len(samples)) + 1).astype(int)[:-1]
    low, high = np.minimum.reduceat(samples, edges), np.maximum.reduceat(samples, edges)
    return {
        "start": round(clip.start_time, 3),
        "seconds": round(len(samples) / clip.sample_rate, 3),
        "low": [round(float(value) * 127) for value in np.clip(low, -1, 1)],
        "high": [round(float(value) * 127) for value in np.clip(high, -1, 1)],
    }


def sensor_lane(series: SensorSeries | None) -> dict[str, Any] | None:
    """Up to 600 readings of up to 6 columns, each column from 0, its lowest value, to 1; null in gaps."""
    if series is None or not len(series.times_n):
        return None
    chosen = np.unique(np.linspace(0, len(series.times_n) - 1, _BINS).astype(int))
    curves = []
    for name, values in list(zip(series.names, series.values_nC.T, strict=True))[:_COLUMNS]:
        there = values[np.isfinite(values)]
        low, high = (float(there.min()), float(there.max())) if len(there) else (0.0, 0.0)
        scaled = (values[chosen] - low) / (high - low or 1.0)
        curves.append({"name": name, "low": low, "high": high, "values": _rounded(scaled)})
    return {"times": _rounded(series.times_n[chosen]), "curves": curves, "left_out": max(0, len(series.names) - _COLUMNS)}


def channel_lanes(
    item: PatchItem, name: str, stream: AudioClip | SensorSeries | None, view: FusionView | None
) -> dict[str, Any]:
    """The lanes of one side channel.

    Args:
        item: with its features.
        name: PATCH.CHANNEL.
        stream: what was recorded, where it can be drawn.
        view: what the patch does with the features; None where it does nothing, or adds tokens.
    """
    features = item.side.get(name)
    lanes: dict[str, Any] = {
        "sound": sound_lane(stream) if isinstance(stream, AudioClip) else None,
        "sensor": sensor_lane(stream) if isinstance(stream, SensorSeries) else None,
        "steps": None,
        "gate": None,
        "change": None,
        "attention": None,
    }
    if features is None or not len(features):
        return lanes
    order = np.argsort(features.times_K.numpy(), kind="stable")
    groups = np.linspace(0, len(order), min(_STEPS, len(order)) + 1).astype(int)[:-1]
    lanes["steps"] = _steps(features, order, groups)
    if view is not None:
        frames = len(item.times_F)
        lanes["gate"] = None if view.gate_TS is None else _tokens(by_frame(view.gate_TS, frames))
        lanes["change"] = _tokens(by_frame(view.change_TS, frames))
        if view.attention_TK is not None:
            summed_FG = np.add.reduceat(by_frame(view.attention_TK, frames)[:, order], groups, axis=1)
            lanes["attention"] = [_stretch(row) for row in summed_FG]
    return lanes


def _steps(features: SideFeatures, order: NDArray[np.intp], groups: NDArray[np.intp]) -> dict[str, Any]:
    """Times, and a picture of the features: bytes, a row for each step, each feature over its own range."""
    counts = np.diff([*groups, len(order)])
    means_KC = features.features_KMC.float().mean(dim=1).numpy()[order]
    means_GC = np.add.reduceat(means_KC, groups, axis=0) / counts[:, None]
    bands = np.linspace(0, means_GC.shape[1], min(_ROWS, means_GC.shape[1]) + 1).astype(int)[:-1]
    means_GR = np.add.reduceat(means_GC, bands, axis=1) / np.diff([*bands, means_GC.shape[1]])
    low, high = np.nanpercentile(means_GR, (1, 99.5))
    shades = np.nan_to_num(np.clip((means_GR - low) / (high - low or 1.0), 0, 1)) * 255
    times = np.add.reduceat(features.times_K.numpy()[order], groups) / counts
    return {
        "count": len(order),
        "width": int(features.features_KMC.shape[2]),
        "times": _rounded(times),
        "rows": int(means_GR.shape[1]),
        "shades": _text(shades.astype(np.uint8).tobytes()),
    }


def _tokens(values_FS: NDArray[np.float64]) -> dict[str, Any]:
    """By frame the mean of its tokens, and each of them where there are not too many."""
    tokens = None if values_FS.size > _TOKENS else [_rounded(row) for row in values_FS]
    return {"frames": _rounded(values_FS.mean(axis=1)), "tokens": tokens}


def _stretch(weights: NDArray[np.float64]) -> dict[str, Any]:
    """A row of attention without the zeros around it."""
    there = np.flatnonzero(weights > 0)
    if not len(there):
        return {"first": 0, "weights": []}
    return {"first": int(there[0]), "weights": _rounded(weights[there[0] : there[-1] + 1])}


def _rounded(values: NDArray[np.float64]) -> list[float | None]:
    return [round(float(value), 4) if np.isfinite(value) else None for value in values]


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
