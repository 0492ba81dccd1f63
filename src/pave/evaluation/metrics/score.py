"""One accuracy with everything needed to judge it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pave.evaluation.metrics.intervals import Interval, accuracy_interval


@dataclass(frozen=True)
class Score:
    """Right answers of one question type, or of all."""

    n_correct: int
    """Samples answered right."""
    n_scored: int
    """Samples that got an answer at all; the others failed and count as wrong."""
    n_expected: int
    """Samples there are: the denominator."""
    interval: Interval
    """95 % interval of the accuracy, clustered by video."""

    @property
    def accuracy(self) -> float:
        """n_correct / n_expected; 0 without samples."""
        return self.n_correct / self.n_expected if self.n_expected else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"accuracy": self.accuracy, **asdict(self)}


def score_samples(correct: Sequence[bool], scored: Sequence[bool], clusters: Sequence[Hashable]) -> Score:
    """Sum up one group of samples.

    Args:
        correct: per sample; a sample that failed is not correct.
        scored: per sample, False where no answer was produced.
        clusters: per sample the id of its video.
    """
    if any(right and not done for right, done in zip(correct, scored, strict=True)):
        raise ValueError("score_samples: a sample without an answer cannot be correct")
    interval = accuracy_interval(correct, clusters)
    return Score(sum(map(bool, correct)), sum(map(bool, scored)), len(correct), interval)
