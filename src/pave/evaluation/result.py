"""The outcome of a run: scores, failures, and the predictions behind them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pave.evaluation.metrics import PairedComparison, Score, compare_paired, score_samples
from pave.evaluation.predictions import Prediction, read_predictions
from pave.evaluation.report import RunTable

ALL = "all"


@dataclass(frozen=True)
class EvalResult:
    """A scored run."""

    overall: Score
    """Over all samples."""
    by_type: dict[str, Score]
    """By question type, in order of first appearance."""
    predictions: list[Prediction]
    """In the order of the samples."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What decided the answers."""

    @property
    def failures(self) -> list[tuple[str, str]]:
        """(sample id, why) of the samples without an answer. They count as wrong."""
        return [(p.id, p.error or "no answer") for p in self.predictions if p.prediction is None]

    def table(self, name: str, note: str = "") -> RunTable:
        """For ``write_report``."""
        return RunTable(name=name, overall=self.overall, by_type=self.by_type, failures=self.failures, note=note)

    def to_dict(self) -> dict[str, Any]:
        """Scores, failures and settings for JSON; the predictions stay in their file."""
        return {
            "overall": self.overall.to_dict(),
            "by_type": {kind: score.to_dict() for kind, score in self.by_type.items()},
            "failures": [{"id": sample, "error": message} for sample, message in self.failures],
            "settings": self.settings,
        }


def score_predictions(
    predictions: Sequence[Prediction], settings: dict[str, Any] | None = None, *, seed: int = 0
) -> EvalResult:
    """Score predictions, with intervals clustered by video.

    Args:
        predictions: one for every expected sample, failed ones included.
        settings: carried along.
        seed: of the bootstrap.

    Raises:
        ValueError: if an id comes twice, or a sample's truth cannot be scored.
    """
    ids = [p.id for p in predictions]
    if len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise ValueError(f"score_predictions: sample {twice!r} comes more than once")
    groups: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        groups.setdefault(prediction.type, []).append(prediction)
    scores = {kind: _score(group, seed) for kind, group in groups.items()}
    return EvalResult(_score(predictions, seed), scores, list(predictions), settings or {})


def rescore(path: str | os.PathLike[str], *, seed: int = 0) -> EvalResult:
    """Score a predictions file again, without a model."""
    settings, predictions = read_predictions(path)
    return score_predictions(predictions, settings, seed=seed)


def compare_results(first: EvalResult, second: EvalResult, *, seed: int = 0) -> dict[str, PairedComparison]:
    """Paired comparison of two runs on the same samples, over all ("all") and by question type.

    Raises:
        ValueError: if the runs do not have the same samples.
    """
    others = {p.id: p for p in second.predictions}
    if set(others) != {p.id for p in first.predictions}:
        difference = sorted(set(others) ^ {p.id for p in first.predictions})
        raise ValueError(f"the two runs have different samples; {len(difference)} are in one only, such as {difference[0]!r}")
    pairs = [(p, others[p.id]) for p in first.predictions]
    comparisons = {ALL: _compare(pairs, seed)}
    for kind in first.by_type:
        comparisons[kind] = _compare([(a, b) for a, b in pairs if a.type == kind], seed)
    return comparisons


def _score(predictions: Sequence[Prediction], seed: int) -> Score:
    return score_samples(
        [p.correct for p in predictions],
        [p.prediction is not None for p in predictions],
        [p.video for p in predictions],
        seed=seed,
    )


def _compare(pairs: Sequence[tuple[Prediction, Prediction]], seed: int) -> PairedComparison:
    return compare_paired([a.correct for a, _ in pairs], [b.correct for _, b in pairs], [a.video for a, _ in pairs], seed=seed)
