"""A sensor that is read beside the clip, as a table of numbers.

The file is CSV with the columns ``time`` (seconds on the clip's clock), ``reading`` and ``shake``, about ten rows a
second at uneven times; it starts before the clip and ends after it. The reading rises or falls over the whole clip; the
shake column is quiet but for a burst of 0.6 s. Whether the reading rises, and which object moves during the burst, are
drawn whatever is seen.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pave.playground.questions import Question, objects
from pave.playground.world import DURATION, SEGMENT, Event, Scene, Split, draw_scene, segment_with, stream
from pave.utils.files import atomic_write_text

CHANNEL = 5
"""Stream of random numbers (``pave.playground.world.stream``)."""
COLUMNS = ("time", "reading", "shake")
SHAKE_SECONDS = 0.6
_BEFORE, _AFTER, _PERIOD = 0.5, 0.3, 0.1  # seconds
_NOISE = 0.05


@dataclass(frozen=True)
class SensedScene:
    """A scene with a sensor."""

    scene: Scene
    level: float
    """The reading in the middle of the clip."""
    gain: float
    """What the reading gains from the clip's start to its end; below 0 if it falls."""
    shake: Event

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def draw_sensed(seed: int, split: Split, index: int) -> SensedScene:
    """Scene number ``index`` with a sensor."""
    scene = draw_scene(seed, split, index, silent=True)
    rng = stream(seed, split, index, CHANNEL)
    gain = float(rng.choice((-1, 1)) * rng.uniform(0.8, 2.0))
    level = float(rng.uniform(-1.5, 1.5))
    segment = segment_with(rng, scene.movers, int(rng.integers(2)))
    start = round(float(segment * SEGMENT + rng.uniform(0.55, 0.85)), 3)
    shake = Event("shake", start, round(start + SHAKE_SECONDS, 3))
    return SensedScene(scene, round(level, 3), round(gain, 3), shake)


def draw_readings(sensed: SensedScene) -> NDArray[np.float64]:
    """(rows, 3): the columns of ``COLUMNS``, rounded as they are written."""
    rng = np.random.default_rng([sensed.scene.seed, CHANNEL])
    times = np.arange(-_BEFORE, DURATION + _AFTER, _PERIOD)
    times = times + rng.uniform(-0.4, 0.4, len(times)) * _PERIOD
    reading = sensed.level + sensed.gain * (times / DURATION - 0.5) + rng.normal(0, _NOISE, len(times))
    burst = (sensed.shake.start <= times) & (times < sensed.shake.end)
    shake = rng.normal(0, _NOISE, len(times)) + burst * rng.choice((-1, 1), len(times)) * rng.uniform(1.5, 2.5, len(times))
    return np.stack([times, reading, shake], axis=1).round(3)


def write_readings(path: Path, sensed: SensedScene) -> None:
    """Write the table as CSV."""
    rows = [",".join(f"{value:.3f}" for value in row) for row in draw_readings(sensed)]
    atomic_write_text(path, "\n".join([",".join(COLUMNS), *rows]) + "\n")


def _sensor(sensed: SensedScene, rng: np.random.Generator) -> Question:
    return Question("sensor", "does the sensor reading increase ?", "yes" if sensed.gain > 0 else "no", ("yes", "no"))


def _sensor_vision(sensed: SensedScene, rng: np.random.Generator) -> Question:
    answer = sensed.scene.mover_during(sensed.shake).name
    return Question("sensor_vision", "which object moves during the shake ?", answer, objects(sensed.scene))


MAKERS = {"sensor": _sensor, "sensor_vision": _sensor_vision}
REVEALS = {"sensor": {"reading"}, "sensor_vision": {"objects"}}
