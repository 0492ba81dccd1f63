"""From a scene to frames and samples of sound."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pave.playground.world import DURATION, NUM_SEGMENTS, SEGMENT, Event, Scene

SIZE = 48
"""Pixels of a side of the picture."""
FPS = 4
"""Frames a second of a clip."""
SAMPLE_RATE = 16000
"""Samples of sound a second."""
RADIUS = 6.0
SPEED = 11.0
_MARGIN = 12.0
RGB = {
    "red": (225, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 90, 240),
    "yellow": (235, 220, 50),
    "white": (245, 245, 245),
    "orange": (245, 140, 20),
    "purple": (160, 50, 220),
    "cyan": (30, 220, 225),
}
_BORDER = 4
_TRAIL = ((5.0, 0.55), (10.0, 0.3))  # pixels behind a moving object, opacity


def frame_times() -> NDArray[np.float64]:
    """Presentation times of a clip's frames in seconds."""
    return np.arange(int(DURATION * FPS)) / FPS


def _along_lane(scene: Scene, index: int, times_F: NDArray[np.float64]) -> tuple[NDArray, NDArray, NDArray]:
    """Where an object is along its lane in pixels, the way it faces (+1, -1), and whether it moves, at each time."""
    starts = np.arange(NUM_SEGMENTS) * SEGMENT
    mine = np.asarray(scene.movers) == index
    moved_F = (np.clip(times_F[:, None] - starts, 0, SEGMENT) * mine).sum(axis=1)
    moving_F = mine[np.clip(times_F // SEGMENT, 0, NUM_SEGMENTS - 1).astype(int)]
    thing, span = scene.things[index], SIZE - 2 * _MARGIN
    phase_F = (thing.start * span + thing.direction * SPEED * moved_F) % (2 * span)
    out_F = phase_F <= span
    return _MARGIN + np.where(out_F, phase_F, 2 * span - phase_F), np.where(out_F, 1, -1) * thing.direction, moving_F


def _in_picture(scene: Scene, index: int, along_F: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
    across_F = np.full_like(along_F, SIZE * (0.27 if scene.things[index].lane == 0 else 0.73))
    return (along_F, across_F) if scene.lanes == "rows" else (across_F, along_F)


def place(scene: Scene, index: int, times_F: NDArray[np.float64]) -> tuple[NDArray, NDArray, NDArray]:
    """Centre of an object in pixels (x, y) and whether it moves, at each of the times (seconds)."""
    along_F, _, moving_F = _along_lane(scene, index, times_F)
    return (*_in_picture(scene, index, along_F), moving_F)


def coverage(shape: str, x_F: NDArray, y_F: NDArray) -> NDArray[np.float32]:
    """Opacity of a shape centred at (x, y) for every pixel, with edges one pixel soft: (F, SIZE, SIZE)."""
    pixels = np.arange(SIZE, dtype=np.float32) + 0.5
    dx = pixels[None, None, :] - x_F[:, None, None].astype(np.float32)
    dy = pixels[None, :, None] - y_F[:, None, None].astype(np.float32)
    if shape == "circle":
        distance = np.hypot(dx, dy) - RADIUS
    elif shape == "square":
        distance = np.maximum(np.abs(dx), np.abs(dy)) - RADIUS * 0.9
    else:
        distance = np.maximum(dy - RADIUS * 0.8, (np.abs(dx) * 2 - dy - RADIUS * 1.2) / np.float32(np.sqrt(5)))
    return np.clip(0.5 - distance, 0, 1)


def _paint(pictures: NDArray[np.float32], opacity: NDArray, colour: str) -> None:
    pictures += opacity[..., None] * (np.asarray(RGB[colour], dtype=np.float32) - pictures)


def draw_frames(scene: Scene, times_F: NDArray[np.float64] | None = None) -> NDArray[np.uint8]:
    """The pictures at the given times in seconds, by default at ``frame_times()``: (F, SIZE, SIZE, 3)."""
    times_F = frame_times() if times_F is None else times_F
    grain = np.random.default_rng(scene.seed).normal(0, 4, (SIZE, SIZE, 1))
    background = (np.asarray(scene.background) + grain).astype(np.float32)
    pictures = np.repeat(background[None], len(times_F), axis=0)
    for index, thing in enumerate(scene.things):
        along_F, facing_F, moving_F = _along_lane(scene, index, times_F)
        for back, opacity in _TRAIL[::-1]:
            ghost = coverage(thing.shape, *_in_picture(scene, index, along_F - facing_F * back))
            _paint(pictures, opacity * moving_F[:, None, None] * ghost, thing.colour)
        _paint(pictures, coverage(thing.shape, *_in_picture(scene, index, along_F)), thing.colour)
    border = np.ones((SIZE, SIZE), dtype=np.float32)
    border[_BORDER:-_BORDER, _BORDER:-_BORDER] = 0
    for flash in scene.flashes:
        lit_F = (flash.start <= times_F) & (times_F < flash.end)
        _paint(pictures, lit_F[:, None, None] * border, flash.kind)
    return np.clip(pictures, 0, 255).astype(np.uint8)


def _bell(t: NDArray[np.float64], pitch: float, rng: np.random.Generator) -> NDArray[np.float64]:
    partials = ((1.0, 1.0, 6), (2.0, 0.6, 8), (2.76, 0.5, 9), (5.4, 0.35, 14))
    return sum(a * np.sin(2 * np.pi * 700 * pitch * k * t) * np.exp(-d * t) for k, a, d in partials)  # type: ignore[return-value]


def _buzz(t: NDArray[np.float64], pitch: float, rng: np.random.Generator) -> NDArray[np.float64]:
    return np.sign(np.sin(2 * np.pi * 110 * pitch * t)) * (0.6 + 0.4 * np.sign(np.sin(2 * np.pi * 24 * t)))


def _whistle(t: NDArray[np.float64], pitch: float, rng: np.random.Generator) -> NDArray[np.float64]:
    sweep = 1900 * pitch * t + 350 * t**2 / t[-1] + 12 * np.sin(2 * np.pi * 9 * t)
    return np.sin(2 * np.pi * sweep)


def _drum(t: NDArray[np.float64], pitch: float, rng: np.random.Generator) -> NDArray[np.float64]:
    beat = t % 0.17
    thump = np.sin(2 * np.pi * (90 * pitch * beat + 2.5 * np.exp(-beat * 30))) * np.exp(-beat * 18)
    return thump + 0.5 * rng.normal(0, 1, len(t)) * np.exp(-beat * 60)


_VOICES = {"bell": _bell, "buzz": _buzz, "whistle": _whistle, "drum": _drum}


def _voice(event: Event, rng: np.random.Generator) -> NDArray[np.float64]:
    t = np.arange(round((event.end - event.start) * SAMPLE_RATE)) / SAMPLE_RATE
    wave = _VOICES[event.kind](t, float(rng.uniform(0.9, 1.1)), rng)
    fade = np.clip(np.minimum(t, t[-1] - t) / 0.01, 0, 1)
    return wave * fade * float(rng.uniform(0.25, 0.5)) / np.abs(wave).max()


def draw_sound(scene: Scene) -> NDArray[np.float32]:
    """The sound track, mono at ``SAMPLE_RATE``: the scene's sounds, and silence between them."""
    rng = np.random.default_rng([scene.seed, 1])
    samples = np.zeros(int(DURATION * SAMPLE_RATE))
    for event in scene.sounds:
        wave = _voice(event, rng)
        first = round(event.start * SAMPLE_RATE)
        samples[first : first + len(wave)] += wave
    return samples.astype(np.float32)
