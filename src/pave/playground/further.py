"""Further worlds, each with one channel beside the silent clip: real files, and questions that need the channel.

========== ============================ ================================================== ==========================
world      what a sample's channel is   questions that need it                             module
========== ============================ ================================================== ==========================
space      pictures, depth maps, poses  nearer                                             ``distances``
camera     a second camera's video      hidden_colour, hidden_shape, behind, hidden_vision ``second_camera``
flicker    the clip, sampled densely    flicker, flicker_count, flicker_vision             ``flickers``
sensor     a table of numbers           sensor, sensor_vision                              ``sensors``
========== ============================ ================================================== ==========================

The seen part of every world is the silent scene of the same seed, split and number; what the channel adds is drawn from
random numbers of its own, so that nothing visible says anything about the answers. A folder is laid out as by
``pave.playground.clips``, with the channel's files under ``WORLD/SPLIT/``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pave.playground import distances, flickers, second_camera, sensors
from pave.playground.clips import as_sample, check_manifest, clip_name, json_lines, render_clip, write_rows
from pave.playground.questions import REVEALS, SILENT_TYPES, Question, ask, check_apart
from pave.playground.world import DURATION, SPLITS, Event, Split
from pave.utils.files import atomic_write_text

_VERSION = 1  # counts changes that make other files of the same seed
_QUESTION_STREAM = 8  # of the random numbers that choose what is asked


@dataclass(frozen=True)
class World:
    """How one further world is drawn, written and asked about."""

    name: str
    draw: Callable[[int, Split, int], Any]
    """From seed, split and number to a scene with its addition; the plain scene is its ``scene``."""
    write_clip: Callable[[Path, Any], None]
    """Writes what is seen."""
    ending: str | None
    """How the path of the channel's file ends after the scene's number; None: the channel is the clip itself."""
    write_side: Callable[[Path, Any], None]
    """Writes the channel's file (and others beside it)."""
    makers: Mapping[str, Callable[[Any, np.random.Generator], Question]]
    """By type, the questions that need the channel."""
    reveals: Mapping[str, set[str]]
    """What each type gives away."""
    events: Callable[[Any], Sequence[Event]] = lambda _: ()
    """When something happens in the channel."""

    def side_name(self, split: Split, index: int) -> str | None:
        """Path of the channel's file inside the folder."""
        return None if self.ending is None else f"{self.name}/{split}/{index:05d}{self.ending}"


def _plain_clip(path: Path, extended: Any) -> None:
    render_clip(path, extended.scene)


def _no_file(path: Path, extended: Any) -> None:
    raise AssertionError("this world's channel is the clip itself")


WORLDS = {
    world.name: world
    for world in (
        World(
            name="space",
            draw=distances.draw_spaced,
            write_clip=_plain_clip,
            ending="/scene.json",
            write_side=distances.write_space,
            makers=distances.MAKERS,
            reveals=distances.REVEALS,
        ),
        World(
            name="camera",
            draw=second_camera.draw_occluded,
            write_clip=second_camera.write_clip,
            ending="/views.json",
            write_side=second_camera.write_views,
            makers=second_camera.MAKERS,
            reveals=second_camera.REVEALS,
            events=lambda occluded: [occluded.shown],
        ),
        World(
            name="flicker",
            draw=flickers.draw_flickering,
            write_clip=flickers.write_clip,
            ending=None,
            write_side=_no_file,
            makers=flickers.MAKERS,
            reveals=flickers.REVEALS,
            events=lambda flickering: flickering.flickers,
        ),
        World(
            name="sensor",
            draw=sensors.draw_sensed,
            write_clip=_plain_clip,
            ending=".csv",
            write_side=sensors.write_readings,
            makers=sensors.MAKERS,
            reveals=sensors.REVEALS,
            events=lambda sensed: [sensed.shake],
        ),
    )
}


def get_world(name: str) -> World:
    """The world of a name.

    Raises:
        ValueError: listing the known ones.
    """
    if name not in WORLDS:
        raise ValueError(f"there is no further world {name!r}; known: {', '.join(WORLDS)}")
    return WORLDS[name]


def ask_further(world: World, extended: Any, kind: str, rng: np.random.Generator) -> Question:
    """A question of one of the world's own types, or of a type that needs the frames only.

    Raises:
        ValueError: if the type is neither.
    """
    if kind in world.makers:
        return world.makers[kind](extended, rng)
    if kind in SILENT_TYPES:
        return ask(extended.scene, kind, rng)
    known = ", ".join((*world.makers, *SILENT_TYPES))
    raise ValueError(f"unknown type of question {kind!r} in the world {world.name!r}; known: {known}")


def converse_further(world: World, extended: Any, kinds: Sequence[str], rng: np.random.Generator) -> list[Question]:
    """Questions for one conversation, in the given order.

    Raises:
        ValueError: if a type is unknown, or two of them give away the same thing.
    """
    questions = [ask_further(world, extended, kind, rng) for kind in kinds]
    check_apart(kinds, {**REVEALS, **world.reveals})
    return questions


def render_further(folder: Path, name: str, split: Split, count: int, *, seed: int = 0) -> None:
    """Write clips and channels of the first ``count`` scenes of a split. What is there already under the same manifest
    is kept.

    Args:
        folder: made where missing; one world in each.
        name: of the world.
        split: "train", "validation" or "test".
        count: scenes.
        seed: of the data set.

    Raises:
        ValueError: if the world or the split is unknown, or the folder holds something that was made otherwise.
    """
    world, folder = get_world(name), Path(folder)
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    manifest = {"world": name, "version": _VERSION, "seed": seed, "seconds": DURATION}
    check_manifest(folder / f"manifest-{split}.json", manifest)
    lines = []
    for index in range(count):
        extended = world.draw(seed, split, index)
        clip, side = clip_name(split, index), world.side_name(split, index)
        if side is not None and not (folder / side).exists():
            world.write_side(folder / side, extended)
        if not (folder / clip).exists():
            world.write_clip(folder / clip, extended)
        lines.append({"id": f"{split}-{index:05d}", "video": clip, "scene": extended.to_dict()})
    atomic_write_text(folder / f"scenes-{split}.jsonl", json_lines(lines))


def write_further_samples(
    path: Path,
    name: str,
    split: Split,
    count: int,
    conversations: Sequence[Sequence[str]],
    *,
    channel: str,
    seed: int = 0,
) -> int:
    """Write a file of samples on the first ``count`` scenes of a split of a world, beside the folder ``clips``.

    Args:
        path: of the jsonl file.
        name: of the world.
        split: as in ``render_further``, like ``count`` and ``seed``.
        conversations: what is asked on each clip, one sample for each entry, as in
            ``pave.playground.clips.write_samples``.
        channel: name of the side channel in the patch, under which samples name their file.

    Returns:
        The number of samples.

    Raises:
        ValueError: if the world or a type is unknown, or two questions of a conversation could give each other away.
    """
    world = get_world(name)

    def sample(extended: Any, index: int, kinds: Sequence[str], rng: np.random.Generator) -> dict[str, Any]:
        side = world.side_name(split, index)
        side_channels = {} if side is None else {"side_channels": {channel: side}}
        events = world.events(extended) if set(kinds) & set(world.makers) else None
        return {**side_channels, **as_sample(converse_further(world, extended, kinds, rng), events)}

    scenes = (world.draw(seed, split, index) for index in range(count))
    return write_rows(path, split, scenes, conversations, sample, (seed, _QUESTION_STREAM))
