"""What runs answered, compared: accuracies and paired differences with their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from evidence.runs import AS_IT_IS, Run
from pave.evaluation.metrics import Interval, accuracy_interval, difference_interval
from pave.evaluation.predictions import read_predictions
from pave.utils.content import Stamp, stamp_of

_SHARED = ("frames", "base_weights", "dtype", "max_new_tokens")
"""What two runs must have in common to be compared."""


@dataclass(frozen=True)
class Accuracy:
    """Accuracy pooled over the seeds of a variant."""

    mean: float
    interval: Interval
    """95 %, clustered by video: the answers of all seeds on one video count as one cluster."""
    seeds: tuple[float, ...]
    """Accuracy of each seed."""

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} [{100 * self.interval.low:.1f}, {100 * self.interval.high:.1f}]"


@dataclass(frozen=True)
class _Mark:
    """One answer: whether it is right."""

    clip: str
    """A clip's path from the folder of its world on: the same wherever the data lay when it was asked about."""
    kind: str
    right: bool


@lru_cache(maxsize=1024)
def _marks(file: Path, stamp: Stamp) -> tuple[dict[str, Any], tuple[_Mark, ...]]:
    """How a file's answers were made, and their marks. A table asks for the same file many times."""
    settings, predictions = read_predictions(file)
    marks = (_Mark("/".join(Path(p.video).parts[-4:]), p.type, p.correct) for p in predictions)
    return {key: settings.get(key) for key in _SHARED}, tuple(marks)


def _read(run: Run, root: Path, name: str) -> tuple[dict[str, Any], tuple[_Mark, ...]]:
    file = run.answers_file(root, name)
    return _marks(file, stamp_of(file))


def _of_kinds(runs: Sequence[Run], root: Path, kinds: Iterable[str], name: str) -> Iterator[list[_Mark]]:
    """The marks of each run on some question types, which may be named alone or with their world in front
    (``colour``, ``audio:colour``), whether the run has one world or several."""
    wanted = set(kinds)
    for run in runs:
        marks = []
        for mark in _read(run, root, name)[1]:
            world, _, bare = mark.kind.rpartition(":")
            if wanted.intersection((bare, f"{world or run.world}:{bare}")):
                marks.append(mark)
        yield marks


def accuracy(runs: Sequence[Run], root: Path, kinds: Iterable[str], name: str = AS_IT_IS) -> Accuracy:
    """Accuracy of the runs of one variant (one for each seed) on some question types.

    Raises:
        ValueError: if there is no such answer.
    """
    kinds = tuple(kinds)
    by_seed = list(_of_kinds(runs, root, kinds, name))
    marks = [mark for seed in by_seed for mark in seed]
    if not marks:
        raise ValueError(f"no answer of the types {sorted(kinds)}")
    right = [mark.right for mark in marks]
    interval = accuracy_interval(right, [mark.clip for mark in marks])
    seeds = tuple(float(np.mean([mark.right for mark in seed])) for seed in by_seed)
    return Accuracy(float(np.mean(right)), interval, seeds)


def difference(
    first: Sequence[Run],
    second: Sequence[Run],
    root: Path,
    kinds: Iterable[str],
    names: tuple[str, str] = (AS_IT_IS, AS_IT_IS),
) -> tuple[float, Interval]:
    """Accuracy of ``second`` minus that of ``first``, seed by seed and question by question, in points of 1.

    Raises:
        ValueError: if they do not have the same questions, or were not asked in the same way on the same base.
    """
    kinds = tuple(kinds)
    for run, other_run in zip(first, second, strict=False):
        _check_asked_alike(run, other_run, root, names)
    one = [mark for seed in _of_kinds(first, root, kinds, names[0]) for mark in seed]
    other = [mark for seed in _of_kinds(second, root, kinds, names[1]) for mark in seed]
    clips = [mark.clip for mark in one]
    if clips != [mark.clip for mark in other]:
        raise ValueError("the two variants were not asked the same questions")
    a, b = [mark.right for mark in one], [mark.right for mark in other]
    return float(np.mean(b) - np.mean(a)), difference_interval(a, b, clips)


def _check_asked_alike(first: Run, second: Run, root: Path, names: tuple[str, str]) -> None:
    one, other = (_read(run, root, name)[0] for run, name in zip((first, second), names, strict=True))
    for key in _SHARED:
        if one[key] != other[key]:
            raise ValueError(
                f"{first.folder(root)} and {second.folder(root)} cannot be compared: {key} was {one[key]!r} in one and "
                f"{other[key]!r} in the other; remove the older folder, so that it is made again"
            )
