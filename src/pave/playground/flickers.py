"""Flashes so short that they fall between the frames a model sees.

The clip has 8 frames a second. A light in the middle of the picture flickers: it is on for one frame, one to three
times, always while one and the same object moves. However 8 frames are sampled evenly from the clip (centres, floor,
endpoints), none of them shows it, and the sampled frame nearest to a flicker shows the object that moves during it.
Kind, number and object are drawn whatever else is seen. The clip is encoded without loss, so that nothing of a flicker
spills into its neighbours.
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
from pave.playground.render import RGB, SIZE, draw_frames
from pave.playground.world import DURATION, LIGHTS, NUM_SEGMENTS, Event, Scene, Split, draw_scene, stream

CHANNEL = 4
"""Stream of random numbers (``pave.playground.world.stream``)."""
HIGH_FPS = 8
"""Frames a second of these clips."""
COUNTS = ("one", "two", "three")
_SLOTS = ((5, 7, 11), (21, 23, 25), (37, 39, 41, 43), (53, 55, 57, 59))
"""By segment, the frames that may flicker: sampled by no even sampling, nearest to sampled frames of the same segment,
not adjacent."""
_SPOT_HALF = 4


@dataclass(frozen=True)
class FlickeringScene:
    """A scene with a light that flickers."""

    scene: Scene
    flickers: tuple[Event, ...]
    """In order of time, of one kind, each one frame long."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def draw_flickering(seed: int, split: Split, index: int) -> FlickeringScene:
    """Scene number ``index`` with one to three flickers."""
    scene = draw_scene(seed, split, index, silent=True)
    rng = stream(seed, split, index, CHANNEL)
    kind, count, mover = LIGHTS[int(rng.integers(len(LIGHTS)))], int(rng.integers(1, 4)), int(rng.integers(2))
    slots = [slot for segment in range(NUM_SEGMENTS) if scene.movers[segment] == mover for slot in _SLOTS[segment]]
    chosen = sorted(int(slot) for slot in rng.permutation(slots)[:count])
    return FlickeringScene(scene, tuple(Event(kind, frame / HIGH_FPS, (frame + 1) / HIGH_FPS) for frame in chosen))


def high_times() -> NDArray[np.float64]:
    """Presentation times of the clip's frames in seconds."""
    return np.arange(int(DURATION * HIGH_FPS)) / HIGH_FPS


def draw_clip(flickering: FlickeringScene) -> NDArray[np.uint8]:
    """All frames, (64, SIZE, SIZE, 3)."""
    times_F = high_times()
    frames = draw_frames(flickering.scene, times_F)
    spot = slice(SIZE // 2 - _SPOT_HALF, SIZE // 2 + _SPOT_HALF)
    for flicker in flickering.flickers:
        lit_F = (flicker.start <= times_F) & (times_F < flicker.end)
        frames[lit_F, spot, spot] = RGB[flicker.kind]
    return frames


def write_clip(path: Path, flickering: FlickeringScene) -> None:
    """Write the clip without loss."""
    write_video(path, draw_clip(flickering), fps=HIGH_FPS, crf=0, durable=False)


def _flicker(flickering: FlickeringScene, rng: np.random.Generator) -> Question:
    return Question("flicker", "which light is seen to flicker ?", flickering.flickers[0].kind, LIGHTS)


def _flicker_count(flickering: FlickeringScene, rng: np.random.Generator) -> Question:
    answer = COUNTS[len(flickering.flickers) - 1]
    return Question("flicker_count", "how many times does the light flicker ?", answer, COUNTS)


def _flicker_vision(flickering: FlickeringScene, rng: np.random.Generator) -> Question:
    answer = flickering.scene.mover_during(flickering.flickers[0]).name
    return Question("flicker_vision", "which object moves while the light does flicker ?", answer, objects(flickering.scene))


MAKERS = {"flicker": _flicker, "flicker_count": _flicker_count, "flicker_vision": _flicker_vision}
REVEALS = {"flicker": {"flickers"}, "flicker_count": {"number of flickers"}, "flicker_vision": {"objects"}}
