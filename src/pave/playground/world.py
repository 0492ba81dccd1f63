"""The miniature world: scenes of two moving objects, flashing lights and short sounds, described as data.

A scene lasts 8 s and is cut into 4 segments of 2 s. In every segment one of the two objects moves (along its own lane,
with a motion trail behind it) and the other rests. A light may flash, or a sound be heard, in the middle of a segment.
Everything that happens keeps clear of the segment borders, so whichever way 8 frames are sampled evenly from the clip,
at least one of them shows the flash, and the frame nearest to a sound shows the object that moves while it is heard.

A scene is drawn in two steps from two independent streams of random numbers: first what can be seen, then the sounds.
The kind of a sound and the *object* that moves during it are drawn uniformly, whatever is seen; only then is the
segment drawn, among those in which that object moves. So nothing visible says anything about the answers to the
questions on sound.

Further channels are added around a scene, drawn from a stream of random numbers of their own (see ``stream``), so that
no scene that exists changes: ``pave.playground.further`` has depth and pose, a second camera, events between the
sampled frames, and a sensor.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle")
LIGHTS = ("white", "orange", "purple", "cyan")
SOUNDS = ("bell", "buzz", "whistle", "drum")

DURATION = 8.0
"""Seconds of a clip."""
NUM_SEGMENTS = 4
SEGMENT = DURATION / NUM_SEGMENTS
"""Seconds of a segment."""
NUM_MOMENTS = 8
"""Frames that a model is meant to sample from a clip."""
FLASH_SECONDS = 1.5
SOUND_SECONDS = 0.5

_SEGMENT_PATTERNS = tuple(
    pattern for pattern in np.ndindex(*(2,) * NUM_SEGMENTS) if len(set(pattern)) == 2
)  # which object moves in each segment; both move at least once


@dataclass(frozen=True)
class Thing:
    """One object."""

    colour: str
    shape: str
    lane: int
    """0 or 1: which half of the picture it keeps to."""
    start: float
    """Where it starts along its lane, 0 to 1."""
    direction: int
    """+1 or -1 along the lane, at the start."""

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Event:
    """Something of a kind that happens for a moment."""

    kind: str
    start: float
    """Seconds."""
    end: float
    """Seconds."""

    @property
    def segment(self) -> int:
        """The segment that holds the middle of the event."""
        return int((self.start + self.end) / 2 // SEGMENT)


@dataclass(frozen=True)
class Scene:
    """Everything there is to see and hear in one clip. The same scene always renders to the same frames and samples."""

    seed: int
    """Seed of what rendering draws: texture of the background, pitch and loudness of the sounds."""
    things: tuple[Thing, Thing]
    lanes: str
    """``rows``: the lanes lie one above the other and objects move sideways; ``columns``: the other way round."""
    movers: tuple[int, ...]
    """Index of the object that moves, one for each segment."""
    background: tuple[int, int, int]
    flashes: tuple[Event, ...] = ()
    """In order of time, at most one in a segment, each of another colour."""
    sounds: tuple[Event, ...] = ()
    """In order of time."""

    def mover_at(self, seconds: float) -> Thing:
        """The object that moves at a time."""
        return self.things[self.movers[min(max(int(seconds // SEGMENT), 0), NUM_SEGMENTS - 1)]]

    def mover_during(self, event: Event) -> Thing:
        """The object that moves while something happens."""
        return self.things[self.movers[event.segment]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Scene:
        """Read what ``to_dict`` wrote (after JSON, too)."""
        first, second = (Thing(**thing) for thing in values["things"])
        red, green, blue = values["background"]
        parts = {
            "things": (first, second),
            "movers": tuple(values["movers"]),
            "background": (red, green, blue),
            "flashes": tuple(Event(**event) for event in values["flashes"]),
            "sounds": tuple(Event(**event) for event in values["sounds"]),
        }
        return cls(**{**values, **parts})


def stream(seed: int, split: Split, index: int, channel: int) -> np.random.Generator:
    """Random numbers of their own for each channel of each scene: a new channel changes no scene that exists."""
    return np.random.default_rng(np.random.SeedSequence([seed, SPLITS.index(split), index, channel]))


def _draw_things(rng: np.random.Generator) -> tuple[Thing, Thing]:
    colours = rng.permutation(len(COLOURS))[:2]
    shapes = rng.permutation(len(SHAPES))[:2]
    lanes = rng.permutation(2)
    first, second = (
        Thing(COLOURS[c], SHAPES[s], int(lane), round(float(rng.uniform()), 3), int(rng.choice((-1, 1))))
        for c, s, lane in zip(colours, shapes, lanes, strict=True)
    )
    return first, second


def _draw_flashes(rng: np.random.Generator) -> tuple[Event, ...]:
    count = int(rng.integers(1, 4))
    segments = sorted(rng.permutation(NUM_SEGMENTS)[:count])
    kinds = rng.permutation(len(LIGHTS))[:count]
    slack = SEGMENT - FLASH_SECONDS
    starts = [round(float(s * SEGMENT + rng.uniform(0.1, 0.9) * slack), 3) for s in segments]
    return tuple(Event(LIGHTS[k], start, round(start + FLASH_SECONDS, 3)) for k, start in zip(kinds, starts, strict=True))


def segment_with(rng: np.random.Generator, movers: tuple[int, ...], mover: int) -> int:
    """One of the segments in which an object moves, drawn uniformly."""
    return int(rng.choice([s for s, m in enumerate(movers) if m == mover]))


def _draw_sound(rng: np.random.Generator, movers: tuple[int, ...]) -> Event:
    kind = SOUNDS[int(rng.integers(len(SOUNDS)))]
    mover = int(rng.integers(2))
    segment = segment_with(rng, movers, mover)
    start = round(float(segment * SEGMENT + rng.uniform(0.55, 0.95)), 3)
    return Event(kind, start, round(start + SOUND_SECONDS, 3))


def draw_scene(seed: int, split: Split, index: int, *, silent: bool = False) -> Scene:
    """Scene number ``index`` of a split; the same arguments always give the same scene.

    Args:
        seed: of the whole data set.
        split: scenes of different splits come from different random numbers.
        index: from 0.
        silent: leave the sound out (everything that is seen stays the same).

    Raises:
        ValueError: if the split is not one of ``SPLITS``.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    seen, heard = stream(seed, split, index, 0), stream(seed, split, index, 1)
    things = _draw_things(seen)
    lanes = str(seen.choice(("rows", "columns")))
    movers = tuple(int(m) for m in _SEGMENT_PATTERNS[int(seen.integers(len(_SEGMENT_PATTERNS)))])
    red, green, blue = (int(v) for v in seen.integers(20, 70, 3))
    flashes = _draw_flashes(seen)
    sounds = () if silent else (_draw_sound(heard, movers),)
    return Scene(int(seen.integers(2**31)), things, lanes, movers, (red, green, blue), flashes, sounds)
