"""What runs answered, compared: accuracies and paired differences with their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pave.evaluation.metrics import Interval, accuracy_interval, difference_interval
from pave.evaluation.predictions import read_predictions
from pave.evidence.runs import AS_IT_IS, Run, answers_file
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


def _types(run: Run, kind: str) -> tuple[str, str]:
    """A type alone, and with its world in front: ``colour`` and ``audio:colour``, whether the run has one world or several."""
    world, _, bare = kind.rpartition(":")
    return bare, f"{world or run.world}:{bare}"


def _clip(video: str) -> str:
    """A clip's path from the folder of its world on: the same wherever the data lay when it was asked about."""
    return "/".join(Path(video).parts[-4:])


@lru_cache(maxsize=1024)
def _marks(file: Path, stamp: Stamp) -> tuple[dict[str, Any], tuple[tuple[str, str, bool], ...]]:
    """How a file's answers were made, and (clip, type, whether it is right) of each. A table asks for the same file many times."""
    settings, predictions = read_predictions(file)
    return {key: settings.get(key) for key in _SHARED}, tuple((_clip(p.video), p.type, p.correct) for p in predictions)


def _correct(runs: Sequence[Run], root: Path, kinds: Iterable[str], name: str) -> Iterator[list[tuple[str, bool]]]:
    wanted = set(kinds)
    for run in runs:
        marks = _read(run, root, name)[1]
        yield [(clip, right) for clip, kind, right in marks if wanted.intersection(_types(run, kind))]


def _read(run: Run, root: Path, name: str) -> tuple[dict[str, Any], tuple[tuple[str, str, bool], ...]]:
    file = answers_file(run, root, name)
    return _marks(file, stamp_of(file))


def accuracy(runs: Sequence[Run], root: Path, kinds: Iterable[str], name: str = AS_IT_IS) -> Accuracy:
    """Accuracy of the runs of one variant (one for each seed) on some question types.

    Raises:
        ValueError: if there is no such answer.
    """
    kinds = tuple(kinds)
    found = list(_correct(runs, root, kinds, name))
    flat = [row for rows in found for row in rows]
    if not flat:
        raise ValueError(f"no answer of the types {sorted(kinds)}")
    right = [right for _, right in flat]
    interval = accuracy_interval(right, [video for video, _ in flat])
    return Accuracy(float(np.mean(right)), interval, tuple(float(np.mean([r for _, r in rows])) for rows in found))


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
    one = [row for rows in _correct(first, root, kinds, names[0]) for row in rows]
    other = [row for rows in _correct(second, root, kinds, names[1]) for row in rows]
    if [video for video, _ in one] != [video for video, _ in other]:
        raise ValueError("the two variants were not asked the same questions")
    a, b = [right for _, right in one], [right for _, right in other]
    return float(np.mean(b) - np.mean(a)), difference_interval(a, b, [video for video, _ in one])


def _check_asked_alike(first: Run, second: Run, root: Path, names: tuple[str, str]) -> None:
    one, other = (_read(run, root, name)[0] for run, name in zip((first, second), names, strict=True))
    for key in _SHARED:
        if one[key] != other[key]:
            raise ValueError(
                f"{first.folder(root)} and {second.folder(root)} cannot be compared: {key} was {one[key]!r} in one and {other[key]!r} in "
                "the other; remove the older folder, so that it is made again"
            )
