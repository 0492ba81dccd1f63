"""The outcome of a run: scores, failures, and the predictions behind them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pave.data.samples import read_samples
from pave.evaluation.benchmarks import PROTOCOLS, Benchmark, Protocol
from pave.evaluation.benchmarks.scoring import BenchmarkResult, benchmark_of, score_benchmark
from pave.evaluation.contents import other_content
from pave.evaluation.metrics import PairedComparison, Score, compare_paired, score_samples
from pave.evaluation.predictions import Prediction, read_all_predictions
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
    benchmark: BenchmarkResult | None = None
    """The benchmark's own tables, where the samples are of one. The scores above are then those of its strict accuracy."""

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
            **({} if self.benchmark is None else {"benchmark": self.benchmark.to_dict()}),
        }


def score_predictions(
    predictions: Sequence[Prediction],
    settings: dict[str, Any] | None = None,
    *,
    protocols: Sequence[Protocol] = PROTOCOLS,
    seed: int = 0,
    meteor: bool = False,
) -> EvalResult:
    """Score predictions, with intervals clustered by video.

    Args:
        predictions: one for every expected sample, failed ones included.
        settings: carried along.
        protocols: which scorers of a benchmark.
        seed: of the bootstrap of scores that are not right or wrong.
        meteor: METEOR too, which needs Java.

    Raises:
        ValueError: if an id comes twice, a sample's truth cannot be scored, or METEOR is asked for and is no measure of the samples.
    """
    benchmark = check_scorable(predictions)
    right = verdicts(predictions, benchmark)
    groups: dict[str, list[int]] = {}
    for number, prediction in enumerate(predictions):
        groups.setdefault(prediction.type, []).append(number)
    scores = {kind: _score(predictions, right, members) for kind, members in groups.items()}
    overall = _score(predictions, right, range(len(predictions)))
    if benchmark is None and meteor:
        raise ValueError("METEOR is a measure of benchmarks only, and the samples are of none")
    tables = (
        None if benchmark is None else score_benchmark(benchmark, predictions, protocols=protocols, seed=seed, meteor=meteor)
    )
    return EvalResult(overall, scores, list(predictions), settings or {}, tables)


def check_scorable(predictions: Sequence[Prediction]) -> Benchmark | None:
    """Refuse what ``score_predictions`` would refuse, answered or not.

    Returns:
        The benchmark that the samples are of, or None.

    Raises:
        ValueError: if an id comes twice, a sample's truth cannot be scored, or the samples are not of one benchmark.
    """
    ids = [p.id for p in predictions]
    if len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise ValueError(f"score_predictions: sample {twice!r} comes more than once")
    benchmark = benchmark_of(predictions)
    if benchmark is None:
        for prediction in predictions:
            _ = prediction.correct  # raises where the truth cannot be scored
    return benchmark


def verdicts(predictions: Sequence[Prediction], benchmark: Benchmark | None) -> list[bool]:
    """Which answers are right: by the first right-or-wrong measure of the benchmark's strict scorer, else by the default rule. An
    answer to a sample whose truth is not public is not."""
    known = [p for p in predictions if p.references]
    if benchmark is not None and known:
        for measure in benchmark.scorer("strict").measures(known):
            if measure.values and measure.yes_or_no:
                right = {p.id: bool(value) for p, value in zip(known, measure.values, strict=True)}
                return [right.get(p.id, False) for p in predictions]
    return [p.correct if p.references or benchmark is None else False for p in predictions]


def rescore(
    path: str | os.PathLike[str],
    *,
    samples: str | os.PathLike[str] | None = None,
    data_root: str | os.PathLike[str] | None = None,
    protocols: Sequence[Protocol] = PROTOCOLS,
    seed: int = 0,
    meteor: bool = False,
) -> EvalResult:
    """Score a predictions file again, without a model.

    Args:
        path: the file.
        samples: the file of samples that was answered, if the run did not end: those without a line count as wrong.
        data_root: folder that paths in ``samples`` start from; default the file's own.
        protocols: which scorers of a benchmark.
        seed: of the bootstrap of scores that are not right or wrong.
        meteor: METEOR too, which needs Java.

    Raises:
        ValueError: if the run did not end and ``samples`` are not given, or a file cannot be read.
    """
    wanted = None if samples is None else read_samples(samples, data_root)
    settings, predictions = read_all_predictions(path, wanted)
    return score_predictions(predictions, settings, protocols=protocols, seed=seed, meteor=meteor)


def paired_predictions(first: EvalResult, second: EvalResult) -> list[tuple[Prediction, Prediction]]:
    """The predictions of two runs sample by sample, in the order of the first.

    Raises:
        ValueError: if the runs do not have the same samples, by their ids, questions, truths and benchmark, or their files had other
            content.
    """
    others = {p.id: p for p in second.predictions}
    if set(others) != {p.id for p in first.predictions}:
        difference = sorted(set(others) ^ {p.id for p in first.predictions})
        raise ValueError(f"the two runs have different samples; {len(difference)} are in one only, such as {difference[0]!r}")
    for p in first.predictions:
        for name in ("type", "question", "references", "choices", "earlier", "meta"):
            if getattr(p, name) != getattr(others[p.id], name):
                raise ValueError(
                    f"the two runs have different samples of the id {p.id!r}: {name} is {getattr(p, name)!r} in the first and "
                    f"{getattr(others[p.id], name)!r} in the second; answer the same file of samples with both"
                )
        role = other_content(p.content, others[p.id].content)
        if role is not None:
            raise ValueError(
                f"the two runs have different samples of the id {p.id!r}: what {role} named had other content when the second was "
                f"asked ({p.video}); answer the same files with both"
            )
    return [(p, others[p.id]) for p in first.predictions]


def compare_results(first: EvalResult, second: EvalResult, *, seed: int = 0) -> dict[str, PairedComparison]:
    """Paired comparison of two runs on the same samples, over all ("all") and by question type.

    Raises:
        ValueError: if the runs do not have the same samples.
    """
    return compare_pairs(paired_predictions(first, second), seed=seed)


def compare_pairs(pairs: Sequence[tuple[Prediction, Prediction]], *, seed: int = 0) -> dict[str, PairedComparison]:
    """Paired comparison of two runs given sample by sample, over all ("all") and by question type."""
    firsts, seconds = [p for p, _ in pairs], [p for _, p in pairs]
    benchmark = check_scorable(firsts)
    right = [verdicts(predictions, benchmark) for predictions in (firsts, seconds)]
    kinds = {kind: [i for i, p in enumerate(firsts) if p.type == kind] for kind in dict.fromkeys(p.type for p in firsts)}
    kinds = {ALL: list(range(len(firsts)))} | {kind: members for kind, members in kinds.items() if kind != ALL}
    return {
        kind: compare_paired(
            [right[0][i] for i in members], [right[1][i] for i in members], [firsts[i].cluster for i in members], seed=seed
        )
        for kind, members in kinds.items()
    }


def _score(predictions: Sequence[Prediction], right: Sequence[bool], members: Sequence[int]) -> Score:
    return score_samples(
        [right[i] for i in members],
        [predictions[i].prediction is not None for i in members],
        [predictions[i].cluster for i in members],
    )
