"""Several tasks in one run: what a recipe says of them, and their samples."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pave.config import Strict
from pave.data.descriptors import files_named
from pave.data.samples import Sample, manifest_hash, read_samples
from pave.training.sampler import TaskMix, shares_by_size
from pave.utils.content import stamp_or_none

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True, kw_only=True)
class Task(Strict):
    """One task of several."""

    train: str
    """Samples to learn from, a .jsonl file."""
    eval: str | None = None
    """Samples whose loss is watched, a .jsonl file."""
    root: str | None = None
    """Folder that the paths inside its files start from; default data.root, else each file's own folder."""
    weight: float | None = None
    """Share of the task, in any unit. Where one task has a weight, the others count 1; where none has, sizes decide (data.mixing)."""
    channels: tuple[str, ...] | None = None
    """Side channels that its samples have; the others are missing for them, whatever the files say. null: all."""

    def __post_init__(self) -> None:
        if not self.train.strip():
            raise ValueError("train is empty")
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise ValueError(
                f"weight must be positive and finite, got {self.weight}; leave out a task that is not to be learnt"
            )


@dataclass(frozen=True, kw_only=True)
class Mixing(Strict):
    """How several tasks are mixed."""

    temperature: float | None = None
    """T: a task with n samples is drawn in proportion to n^(1/T). 1 draws every sample equally often, a larger T brings the tasks closer
    together, a smaller one favours the large ones. null: by the weights of the tasks, else every sample equally often."""
    batches: Literal["mixed", "per_task"] = "mixed"
    """mixed: any sample beside any other. per_task: every forward pass holds one task only, the same in all processes."""

    def __post_init__(self) -> None:
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}")


def check_task_names(tasks: Mapping[str, Task]) -> None:
    """Names become parts of ids, of metrics and of dotted paths.

    Raises:
        ValueError: naming one that cannot.
    """
    for name in tasks:
        if not _NAME.fullmatch(name):
            raise ValueError(f"tasks: {name!r} is no name of a task (letters, digits, - and _)")


def read_task(name: str, path: str, task: Task, folder: Path, channels: Iterable[str] = ()) -> list[Sample]:
    """A file of a task. Ids are prefixed with the task's name (``avsd/kitchen-1``), since they may repeat between tasks; a run
    without named tasks (``name`` empty) leaves them.

    Args:
        name: of the task.
        path: of the file.
        task: what the recipe says.
        folder: the recipe's own, which paths start from.
        channels: of the patch.

    Raises:
        ValueError: naming the file and the line.
    """
    samples = read_samples(folder / path, data_root=None if task.root is None else folder / task.root)
    if name:
        samples = [replace(sample, id=f"{name}/{sample.id}") for sample in samples]
    if task.channels is not None:
        absent = {channel: None for channel in channels if channel not in task.channels}
        samples = [replace(sample, side_channels={**sample.side_channels, **absent}) for sample in samples]
    return samples


def task_shares(weights: Mapping[str, float | None], counts: Mapping[str, int], mixing: Mixing) -> dict[str, float]:
    """Share of each task, adding up to 1; empty where nothing says so and every sample is drawn equally often.

    Args:
        weights: of each task, as the recipe has them.
        counts: training samples of each task.
        mixing: how they are mixed.
    """
    if mixing.temperature is not None:
        return shares_by_size(counts, mixing.temperature)
    if all(weight is None for weight in weights.values()):
        return {}
    given = {name: 1.0 if weight is None else weight for name, weight in weights.items()}
    largest = max(given.values())  # the sum of weights may overflow
    total = sum(weight / largest for weight in given.values())
    return {name: weight / largest / total for name, weight in given.items()}


def task_mix(weights: Mapping[str, float | None], counts: Mapping[str, int], mixing: Mixing, samples_per_pass: int) -> TaskMix:
    """For the sampler, of samples that stand task by task in the order of ``counts``.

    Args:
        weights: of each task, as the recipe has them.
        counts: training samples of each task.
        mixing: how they are mixed.
        samples_per_pass: samples in a forward pass, over all processes.
    """
    names = [name for name, count in counts.items() for _ in range(count)]
    shares = task_shares(weights, counts, mixing)
    return TaskMix(names, shares, samples_per_pass if mixing.batches == "per_task" else 1)


@dataclass(frozen=True)
class TaskSamples:
    """The samples of one task."""

    name: str
    train: list[Sample]
    held_out: list[Sample]


class RunSamples:
    """The samples of a run, task by task in the recipe's order.

    Args:
        tasks: by name; one with an empty name for a run without named tasks.
        mixing: how they are mixed.
        folder: the recipe's own.
        channels: of the patch.

    Raises:
        ValueError: if a file is wrong or empty, a sample has no answer to learn from, or a file that one names is not there.
    """

    def __init__(self, tasks: Mapping[str, Task], mixing: Mixing, folder: Path, channels: Sequence[str]) -> None:
        self.mixing = mixing
        self.weights = {name: task.weight for name, task in tasks.items()}
        self.tasks: list[TaskSamples] = []
        for name, task in tasks.items():
            train, held_out = (
                [] if path is None else _learnable(read_task(name, path, task, folder, channels), folder / path, channels)
                for path in (task.train, task.eval)
            )
            self.tasks.append(TaskSamples(name, train, held_out))

    @property
    def train(self) -> list[Sample]:
        """All samples to learn from."""
        return [sample for task in self.tasks for sample in task.train]

    @property
    def held_out(self) -> list[Sample]:
        """All samples whose loss is watched."""
        return [sample for task in self.tasks for sample in task.held_out]

    @property
    def held_out_tasks(self) -> dict[str, str]:
        """Task of every held-out sample by its id; empty without named tasks."""
        return {sample.id: task.name for task in self.tasks if task.name for sample in task.held_out}

    def shares(self) -> dict[str, float]:
        """Of each task, adding up to 1; empty where nothing says so and every sample is drawn equally often."""
        return task_shares(self.weights, {task.name: len(task.train) for task in self.tasks}, self.mixing)

    def sizes(self) -> str:
        """A hash of the sizes of all files that the training samples name, in the order of the samples: videos, side files, what lies in
        folders. Enough to notice that other videos stand in their places, without reading them."""
        files = [path for s in self.train for path in (s.video, *s.side_channels.values()) if path is not None]
        found = [[s and s.size for s in map(stamp_or_none, files_named(path))] for path in dict.fromkeys(files)]
        return f"sha256:{hashlib.sha256(json.dumps(found).encode()).hexdigest()}"

    def mix(self, samples_per_pass: int) -> TaskMix:
        """For the sampler.

        Args:
            samples_per_pass: samples in a forward pass, over all processes.
        """
        return task_mix(self.weights, {task.name: len(task.train) for task in self.tasks}, self.mixing, samples_per_pass)

    def facts(self) -> dict[str, Any]:
        """What a patch records of its samples: the hash of the manifest over all, and with named tasks that of each."""
        train = self.train
        facts: dict[str, Any] = {"train": manifest_hash(train), "train_samples": len(train)}
        shares = self.shares() or shares_by_size({task.name: len(task.train) for task in self.tasks})
        tasks: dict[str, Any] = {}
        for task in (task for task in self.tasks if task.name):
            tasks[task.name] = {
                "train": manifest_hash(task.train),
                "train_samples": len(task.train),
                "share": shares[task.name],
            }
            if task.held_out:
                tasks[task.name] |= {"eval": manifest_hash(task.held_out), "eval_samples": len(task.held_out)}
        return facts | ({"tasks": tasks} if tasks else {})


def _learnable(samples: list[Sample], name: Path, channels: Sequence[str]) -> list[Sample]:
    """Check, before anything slow begins, that all samples of a file can be learnt from."""
    if not samples:
        raise ValueError(f"{name}: the file holds no sample")
    for sample in samples:
        if all(answer is None for _, answer in sample.turns):
            raise ValueError(f"{name}: sample {sample.id!r} has no answer to learn from")
    files = [
        (s.id, path, path == s.video)
        for s in samples
        for path in (s.video, *(s.side_channels.get(c) for c in channels))
        if path is not None
    ]
    # a channel may be stored as a folder, a video may not
    missing = [(i, f) for i, f, is_video in files if not (Path(f).is_file() if is_video else Path(f).exists())]
    if missing:
        sample_id, file = missing[0]
        raise ValueError(
            f"{name}: {len(missing)} of {len(files)} files are not there, the first is {file} of sample {sample_id!r}"
        )
    return samples
