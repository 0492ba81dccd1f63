"""A second camera that sees behind an occluder.

In the middle of the clip stands a grey cube. For a second an object shows behind it, which only the second camera, on
the other side, can see. Its video was started at another time than the clip; the description of the views says when.
Colour and shape of the hidden object, and which object moves while it shows, are drawn whatever is seen.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pave.data.media import write_video
from pave.playground.questions import Question, objects
from pave.playground.render import FPS, RGB, SIZE, coverage, draw_frames
from pave.playground.world import (
    COLOURS,
    SEGMENT,
    SHAPES,
    Event,
    Scene,
    Split,
    draw_scene,
    segment_with,
    stream,
)
from pave.utils.files import atomic_write_json

CHANNEL = 3
"""Stream of random numbers (``pave.playground.world.stream``)."""
VIEW = "behind"
"""Name of the second camera among the views."""
VIEW_SECONDS = 10.0
SHOWN_SECONDS = 1.0
_CUBE_RGB = (128, 128, 128)
_CUBE_HALF = 4
"""Pixels from the middle of the picture to the cube's edge; between the lanes of the two objects."""


@dataclass(frozen=True)
class OccludedScene:
    """A scene with something behind a cube."""

    scene: Scene
    hidden_colour: str
    hidden_shape: str
    shown: Event
    """When it shows, on the clip's clock; the kind is its colour and shape."""
    offset: float
    """Seconds on the clip's clock at which the second camera starts."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def draw_occluded(seed: int, split: Split, index: int) -> OccludedScene:
    """Scene number ``index`` with a cube, a hidden object and a second camera."""
    scene = draw_scene(seed, split, index, silent=True)
    rng = stream(seed, split, index, CHANNEL)
    colour, shape = COLOURS[int(rng.integers(len(COLOURS)))], SHAPES[int(rng.integers(len(SHAPES)))]
    segment = segment_with(rng, scene.movers, int(rng.integers(2)))
    start = round(float(segment * SEGMENT + rng.uniform(0.3, 0.7)), 3)
    shown = Event(f"{colour} {shape}", start, round(start + SHOWN_SECONDS, 3))
    return OccludedScene(scene, colour, shape, shown, round(float(rng.uniform(-1.5, 0.25)), 3))


def draw_clip(occluded: OccludedScene, times_F: NDArray[np.float64] | None = None) -> NDArray[np.uint8]:
    """What the first camera sees: the scene's frames with the cube, (F, SIZE, SIZE, 3)."""
    return _with_cube(draw_frames(occluded.scene, times_F))


def draw_behind(occluded: OccludedScene) -> NDArray[np.uint8]:
    """What the second camera sees, mirrored because it looks from the other side, with the hidden object while it
    shows."""
    times_F = view_times() + occluded.offset
    frames = _with_cube(draw_frames(occluded.scene, times_F)[:, :, ::-1])
    middle_F = np.full(len(times_F), SIZE / 2)
    opacity_FYX = coverage(occluded.hidden_shape, middle_F, middle_F)
    shows_F = (occluded.shown.start <= times_F) & (times_F < occluded.shown.end)
    return _painted(frames, opacity_FYX * shows_F[:, None, None], RGB[occluded.hidden_colour])


def view_times() -> NDArray[np.float64]:
    """Times of the second camera's frames on its own clock."""
    return np.arange(int(VIEW_SECONDS * FPS)) / FPS


def _with_cube(frames_FHWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    cube = np.zeros((1, SIZE, SIZE), dtype=np.float32)
    cube[:, SIZE // 2 - _CUBE_HALF : SIZE // 2 + _CUBE_HALF, SIZE // 2 - _CUBE_HALF : SIZE // 2 + _CUBE_HALF] = 1
    return _painted(frames_FHWC, cube, _CUBE_RGB)


def _painted(frames_FHWC: NDArray[np.uint8], opacity_FYX: NDArray, rgb: tuple[int, int, int]) -> NDArray[np.uint8]:
    pictures = frames_FHWC.astype(np.float32)
    pictures += opacity_FYX[..., None] * (np.asarray(rgb, dtype=np.float32) - pictures)
    return np.clip(pictures, 0, 255).astype(np.uint8)


def write_views(path: Path, occluded: OccludedScene) -> None:
    """Write the second camera's video beside ``path`` and at ``path`` the JSON that the encoder ``multiview`` reads."""
    write_video(path.parent / f"{VIEW}.mp4", draw_behind(occluded), fps=FPS, durable=False)
    views = [{"name": VIEW, "video": f"{VIEW}.mp4", "offset_seconds": occluded.offset}]
    atomic_write_json(path, {"views": views})


def write_clip(path: Path, occluded: OccludedScene) -> None:
    """Write what the first camera sees."""
    write_video(path, draw_clip(occluded), fps=FPS, durable=False)


def _hidden_colour(occluded: OccludedScene, rng: np.random.Generator) -> Question:
    return Question("hidden_colour", "what colour is the hidden object ?", occluded.hidden_colour, COLOURS)


def _hidden_shape(occluded: OccludedScene, rng: np.random.Generator) -> Question:
    return Question("hidden_shape", "what shape is the hidden object ?", occluded.hidden_shape, SHAPES)


def _behind(occluded: OccludedScene, rng: np.random.Generator) -> Question:
    names = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
    return Question("behind", "what is behind the cube ?", occluded.shown.kind, names)


def _hidden_vision(occluded: OccludedScene, rng: np.random.Generator) -> Question:
    answer = occluded.scene.mover_during(occluded.shown).name
    return Question("hidden_vision", "which object moves when the hidden object is seen ?", answer, objects(occluded.scene))


MAKERS = {
    "hidden_colour": _hidden_colour,
    "hidden_shape": _hidden_shape,
    "behind": _behind,
    "hidden_vision": _hidden_vision,
}
REVEALS = {
    "hidden_colour": {"hidden colour"},
    "hidden_shape": {"hidden shape"},
    "behind": {"hidden colour", "hidden shape"},
    "hidden_vision": {"objects"},
}
