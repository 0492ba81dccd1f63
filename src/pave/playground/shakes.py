"""Clips of 4 to 6 s with the log of a sensor that shakes slowly, steadily or fast: what a first data set of one's own looks like.

The log is CSV with the columns ``time`` (seconds on the clip's clock) and ``shake``, 50 readings a second at uneven times: a sine of one
of three frequencies, at any phase, size and level, under noise. Nothing that is seen says which it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pave.data.media import write_video
from pave.data.samples import Sample, write_samples
from pave.playground.questions import ask
from pave.playground.render import FPS, draw_frames
from pave.playground.world import Split, draw_scene, stream
from pave.utils.files import atomic_write_text

CHANNEL = 6
"""Stream of random numbers (``pave.playground.world.stream``)."""
FREQUENCIES = {"slow": 1.0, "steady": 3.0, "fast": 8.0}
"""By answer, in Hz; each clip's own is up to a tenth higher or lower."""
QUESTION = "how fast does the object shake ?"
SHAKE, SILENT = "shake", ("colour", "shape", "first_mover")
"""Types of questions: one for the sensor, the others for what is seen."""
RATE = 50.0
_SHORTEST, _LONGEST = 4.0, 6.0  # seconds


def draw_log(answer: str, seconds: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """(rows, 2): time and shake."""
    count = int(seconds * RATE)
    times = (np.arange(count) + rng.uniform(0.1, 0.9, count)) / RATE
    hertz, size = FREQUENCIES[answer] * rng.uniform(0.9, 1.1), rng.uniform(0.5, 2.0)
    wave = size * np.sin(2 * np.pi * (hertz * times + rng.uniform()))
    return np.stack([times, rng.uniform(-1, 1) + wave + rng.normal(0, 0.2 * size, count)], axis=1)


def write_shakes(folder: Path, split: Split, count: int, *, seed: int = 0, name: str = "shake") -> list[Sample]:
    """Write clips, logs and ``SPLIT.jsonl``, with a question on the sensor and two on the picture for each clip.

    Args:
        folder: made where missing.
        split: "train", "validation" or "test".
        count: clips.
        seed: of the data set.
        name: of the side channel in the samples.
    """
    folder, samples = folder.resolve(), []
    for index in range(count):
        rng = stream(seed, split, index, CHANNEL)
        scene, answer = draw_scene(seed, split, index, silent=True), list(FREQUENCIES)[index % len(FREQUENCIES)]
        seconds = float(rng.uniform(_SHORTEST, _LONGEST))
        clip = folder / "clips" / split / f"{index:05d}.mp4"
        write_video(clip, draw_frames(scene, np.arange(int(seconds * FPS)) / FPS), fps=FPS, durable=False)
        rows = [f"{time:.4f},{value:.4f}" for time, value in draw_log(answer, seconds, rng)]
        atomic_write_text(clip.with_suffix(".csv"), "\n".join(["time,shake", *rows]) + "\n")
        asked = [(SHAKE, QUESTION, answer)]
        for kind in (str(rng.choice(SILENT[:2])), SILENT[2]):
            question = ask(scene, kind, rng)
            asked.append((kind, question.text, question.answer))
        sides: dict[str, Any] = {name: str(clip.with_suffix(".csv"))}
        samples += [
            Sample(id=f"{split}-{index:05d}-{n}", video=str(clip), type=kind, question=text, answer=truth, side_channels=sides)
            for n, (kind, text, truth) in enumerate(asked)
        ]
    write_samples(folder / f"{split}.jsonl", samples)
    return samples
