"""From many scenes to a folder of real media files, and from questions on them to files of samples.

A folder holds::

    clips/train/00000.mp4 ...     H.264 and AAC
    scenes-train.jsonl            what is in each clip: {"id", "video", "scene"}, one line each
    manifest-train.json           how the clips were made; what is there under the same manifest is not made again
    train.jsonl                   samples: {"id", "video", "type", "question", "answer"}, or "messages" in a
                                  conversation; those on sounds say in "meta" when they are heard ("events")

Every file appears whole or not at all. The same arguments give the same scenes, questions, frames and samples of sound.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pave.data.media import write_video
from pave.playground.questions import SOUND_TYPES, Question, converse
from pave.playground.render import FPS, SAMPLE_RATE, SIZE, draw_frames, draw_sound
from pave.playground.world import DURATION, SPLITS, Event, Scene, Split, draw_scene
from pave.utils.files import atomic_write_json, atomic_write_text
from pave.utils.json_files import read_json

_Scene = TypeVar("_Scene")
_WORLD_VERSION = 1  # counts changes that make other clips of the same seed
_QUESTION_STREAM = 7  # of the random numbers that choose what is asked; far from the streams of the scenes themselves


def clip_name(split: Split, index: int) -> str:
    """Path of a clip inside its folder."""
    return f"clips/{split}/{index:05d}.mp4"


def render_clip(path: Path, scene: Scene) -> None:
    """Write one scene as an mp4; a scene without sounds gets no audio track."""
    sound = draw_sound(scene) if scene.sounds else None
    write_video(path, draw_frames(scene), fps=FPS, audio=sound, sample_rate=SAMPLE_RATE, durable=False)


def _render_numbered(folder: Path, split: Split, seed: int, silent: bool, index: int) -> int:
    render_clip(folder / clip_name(split, index), draw_scene(seed, split, index, silent=silent))
    return index


def render_clips(
    folder: Path, split: Split, count: int, *, seed: int = 0, silent: bool = False, processes: int = 2
) -> Iterator[int]:
    """Render the first ``count`` scenes of a split and yield how many are done after each one.

    The work is done as the result is read: go through it, for instance with ``pave.utils.console.track``. Clips that
    are there already under the same manifest are kept.

    Args:
        folder: made where missing.
        split: "train", "validation" or "test"; different splits share no scene.
        count: clips.
        seed: of the data set.
        silent: no sound and no audio track.
        processes: worker processes; 0 renders in this one.

    Raises:
        ValueError: if the split is unknown, or the folder holds clips that were made otherwise.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    folder = Path(folder)
    manifest = {"world": _WORLD_VERSION, "seed": seed, "silent": silent, "fps": FPS, "size": SIZE, "seconds": DURATION}
    check_manifest(folder / f"manifest-{split}.json", manifest)
    lines = [
        {"id": f"{split}-{i:05d}", "video": clip_name(split, i), "scene": draw_scene(seed, split, i, silent=silent).to_dict()}
        for i in range(count)
    ]
    missing = [i for i in range(count) if not (folder / clip_name(split, i)).exists()]
    done = count - len(missing)
    if done:
        yield done
    for _ in _each_rendered(folder, split, seed, silent, missing, processes):
        done += 1
        yield done
    atomic_write_text(folder / f"scenes-{split}.jsonl", json_lines(lines))


def _each_rendered(folder: Path, split: Split, seed: int, silent: bool, indices: list[int], processes: int) -> Iterator[int]:
    if processes == 0:
        yield from (_render_numbered(folder, split, seed, silent, i) for i in indices)
        return
    # "spawn", because forking a process that runs PyTorch's threads can hang
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        arguments = (repeat(folder), repeat(split), repeat(seed), repeat(silent), indices)
        yield from pool.map(_render_numbered, *arguments, chunksize=8)


def check_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Write how clips are made beside them, or compare it with what is written there.

    Raises:
        ValueError: if the clips there were made otherwise.
    """
    if not path.exists():
        atomic_write_json(path, manifest)
        return
    before = read_json(path)
    if before != manifest:
        raise ValueError(f"{path}: the clips beside it were made with {before}, not with {manifest}; choose another folder")


def read_scenes(folder: Path, split: Split) -> dict[str, Scene]:
    """The scenes behind the clips of a folder, by the path of the clip inside it."""
    lines = (Path(folder) / f"scenes-{split}.jsonl").read_text().splitlines()
    return {row["video"]: Scene.from_dict(row["scene"]) for row in map(json.loads, lines)}


def write_samples(
    path: Path, split: Split, count: int, conversations: Sequence[Sequence[str]], *, seed: int = 0, silent: bool = False
) -> int:
    """Write a file of samples on the first ``count`` scenes of a split, beside the folder ``clips``.

    Args:
        path: of the jsonl file.
        split: as in ``render_clips``, like ``count``, ``seed`` and ``silent``.
        conversations: what is asked on each clip, one sample for each entry. An entry names the types of its questions
            in order; "colour|shape" draws one of them. A conversation of one question is written as "question" and
            "answer".

    Returns:
        The number of samples.

    Raises:
        ValueError: if a type is unknown, or two questions of a conversation could give each other away.
    """

    def sample(scene: Scene, index: int, kinds: Sequence[str], rng: np.random.Generator) -> dict[str, Any]:
        events = scene.sounds if set(kinds) & set(SOUND_TYPES) else None
        return as_sample(converse(scene, kinds, rng), events)

    scenes = (draw_scene(seed, split, index, silent=silent) for index in range(count))
    return write_rows(path, split, scenes, conversations, sample, (seed, _QUESTION_STREAM))


def write_rows(
    path: Path,
    split: Split,
    scenes: Iterable[_Scene],
    conversations: Sequence[Sequence[str]],
    sample: Callable[[_Scene, int, Sequence[str], np.random.Generator], dict[str, Any]],
    seed_and_stream: tuple[int, int],
) -> int:
    """Write one sample for each scene and conversation; returns how many there are.

    Args:
        path: of the jsonl file.
        split: of the scenes.
        scenes: in the order of their numbers.
        conversations: as in ``write_samples``.
        sample: from scene, number, types of questions and random numbers to what the sample says.
        seed_and_stream: of the random numbers that choose what is asked.
    """
    seed, stream = seed_and_stream
    rows = []
    for index, scene in enumerate(scenes):
        rng = np.random.default_rng([seed, SPLITS.index(split), index, stream])
        for number, slots in enumerate(conversations):
            kinds = [str(rng.choice(slot.split("|"))) for slot in slots]
            named = {"id": f"{split}-{index:05d}-{number}", "video": clip_name(split, index)}
            rows.append({**named, **sample(scene, index, kinds, rng)})
    atomic_write_text(Path(path), json_lines(rows))
    return len(rows)


def as_sample(questions: list[Question], events: Sequence[Event] | None) -> dict[str, Any]:
    """The fields of a sample for one question or a conversation.

    Args:
        questions: in the order they are asked.
        events: when what is asked about happens in the side stream, for whoever wants to leave out some of the rest;
            None: nothing of the side stream is asked about.
    """
    meta = {} if events is None else {"meta": {"events": [[event.start, event.end] for event in events]}}
    if len(questions) == 1:
        (one,) = questions
        return {"type": one.type, "question": one.text, "answer": one.answer, **meta}
    turns = [({"role": "user", "content": q.text}, {"role": "assistant", "content": q.answer}) for q in questions]
    messages = [message for turn in turns for message in turn]
    return {"type": "+".join(q.type for q in questions), "messages": messages, **meta}


def json_lines(rows: list[dict[str, Any]]) -> str:
    """A line of JSON for each row."""
    return "".join(json.dumps(row) + "\n" for row in rows)
