"""Counterfactual runs beside a run: where they are kept, what each of them changes, and whether they expose the patch.

A patch is exposed if its answers are as good with another video's streams as with their own. Runs are compared on the samples that
both have answered, so that a stream which cannot be changed is not taken for one that is needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pave.data.samples import Sample
from pave.evaluation.benchmarks import PROTOCOLS, Protocol
from pave.evaluation.benchmarks.scoring import Row, benchmark_of, compare_benchmark
from pave.evaluation.counterfactuals import DEFAULTS, Counterfactual
from pave.evaluation.inference import VideoQA
from pave.evaluation.metrics import Interval, PairedComparison
from pave.evaluation.result import EvalResult, compare_pairs, paired_predictions, rescore
from pave.evaluation.runner import evaluate
from pave.evaluation.shards import PREDICTIONS, Shard, merge_shards, whole_names

_PREFIX = "counterfactual-"


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The one number of a run that its counterfactuals are compared by."""

    measure: str
    """accuracy, CIDEr, ..."""
    value: float
    interval: Interval | None
    n_scored: int
    """Samples with an answer."""
    n_expected: int
    """Samples there are."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A run with changed streams, against the run as it is."""

    name: str
    """The counterfactual, such as ``shifted=2``."""
    result: EvalResult
    pairs: dict[str, PairedComparison]
    """Changed minus as it is: over all samples first, then by question type (of a benchmark: by its rows)."""
    n_compared: int
    """Samples that both runs answered."""

    @property
    def pair(self) -> PairedComparison:
        """Over all samples."""
        return next(iter(self.pairs.values()))


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """A run and its counterfactuals."""

    plain: EvalResult
    changes: tuple[Change, ...]

    @property
    def judged(self) -> list[Change]:
        """The changes that a verdict rests on: streams of other videos; where there is none, no streams at all."""
        for kind in ("swapped", "removed"):
            found = [change for change in self.changes if change.name.rpartition(":")[2] == kind]
            if found:
                return found
        return []

    @property
    def exposed(self) -> bool | None:
        """True if nothing shows that the patch uses its streams; None if no change tells."""
        told = [change for change in self.judged if change.n_compared]
        return any(change.pair.interval.high >= 0 for change in told) if told else None

    @property
    def sentences(self) -> list[str]:
        """What they say of the patch: a sentence for each change that a verdict rests on."""
        return [_sentence(change, headline(self.plain).measure) for change in self.judged]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "exposed": self.exposed,
            "verdict": self.sentences,
            "changes": {
                change.name: {
                    **asdict(headline(change.result)),
                    "n_compared": change.n_compared,
                    "difference": {kind: asdict(pair) for kind, pair in change.pairs.items()},
                    "failures": [{"id": sample, "error": message} for sample, message in change.result.failures],
                }
                for change in self.changes
            },
        }


def headline(result: EvalResult) -> Headline:
    """Of a benchmark the first row of its own measure, by the strict scorer where both are there; else the accuracy."""
    score = result.overall
    if result.benchmark is not None and result.benchmark.tables:
        table = next((t for t in result.benchmark.tables if t.protocol == "strict"), result.benchmark.tables[0])
        row: Row = table.rows[0]
        return Headline(
            measure=table.measure,
            value=row.value,
            interval=row.interval,
            n_scored=row.n_scored,
            n_expected=row.n_expected,
        )
    return Headline(
        measure="accuracy",
        value=score.accuracy,
        interval=score.interval,
        n_scored=score.n_scored,
        n_expected=score.n_expected,
    )


def check_changes(qa: VideoQA, changes: Sequence[Counterfactual], samples: Sequence[Sample]) -> None:
    """Refuse, before any work, changes that cannot be made.

    Raises:
        ValueError: if the model has no such channel, or the samples cannot lend each other streams.
    """
    for change in changes:
        qa.use_counterfactual(change, samples)
    qa.use_counterfactual(None)


def evaluate_changes(
    qa: VideoQA,
    samples: Sequence[Sample],
    changes: Sequence[Counterfactual],
    *,
    folder: str | os.PathLike[str] | None = None,
    shard: Shard | None = None,
    lenders: Sequence[Sample] | None = None,
    **options: Any,
) -> dict[str, EvalResult]:
    """Answer the samples once under each change.

    Args:
        qa: the patched model.
        samples: to answer.
        changes: in which order.
        folder: where ``counterfactual-KIND=VALUE.jsonl`` is written for each of them; an unfinished one is gone on with.
        shard: which part of the evaluation ``samples`` are.
        lenders: all samples of the evaluation, where ``samples`` are a part.
        options: further arguments of ``evaluate``, the same as those of the run as it is.

    Raises:
        ValueError: see ``evaluate``.
    """
    found: dict[str, EvalResult] = {}
    for change in changes:
        name = file_of(change)
        path = None if folder is None else Path(folder) / (name if shard is None else shard.part_of(name))
        found[str(change)] = evaluate(
            qa, samples, counterfactual=change, lenders=lenders, predictions=path, shard=shard, **options
        )
    qa.use_counterfactual(None)
    return found


def file_of(change: Counterfactual) -> str:
    """Name of the predictions file of a counterfactual: ``counterfactual-audio.shifted=2.jsonl``."""
    return f"{_PREFIX}{str(change).replace(':', '.')}.jsonl"


def compare_changes(plain: EvalResult, changed: Mapping[str, EvalResult], *, seed: int = 0) -> Exposure:
    """Compare a run with its counterfactuals.

    Args:
        plain: the run as it is.
        changed: by name of the counterfactual.
        seed: of the bootstrap of scores that are not right or wrong.

    Raises:
        ValueError: if they do not have the same samples.
    """
    changes = []
    for name, result in changed.items():
        pairs = [
            (first, second)
            for first, second in paired_predictions(plain, result)
            if first.prediction is not None and second.prediction is not None
        ]
        benchmark = benchmark_of(plain.predictions)
        compared = compare_pairs(pairs, seed=seed)
        known = [pair for pair in pairs if pair[0].references]
        if known and benchmark is not None and plain.benchmark is not None and plain.benchmark.tables:
            measures = compare_benchmark(benchmark, known, protocols=_protocols(plain), seed=seed)
            compared = next((next(iter(measure.values())) for measure in measures.values()), compared)
        changes.append(Change(name=name, result=result, pairs=compared, n_compared=len(pairs)))
    return Exposure(plain=plain, changes=tuple(changes))


def read_changes(
    folder: str | os.PathLike[str],
    plain: EvalResult,
    *,
    samples: str | os.PathLike[str] | None = None,
    data_root: str | os.PathLike[str] | None = None,
    protocols: Sequence[Protocol] = PROTOCOLS,
    seed: int = 0,
) -> Exposure | None:
    """The counterfactuals that lie beside a run in its folder, scored again; None if there is none. Parts are put together.

    Args:
        folder: of the run.
        plain: the run as it is, scored.
        samples: the file of samples, for runs that did not end.
        data_root: folder that paths in ``samples`` start from.
        protocols: which scorers of a benchmark.
        seed: of the bootstrap of scores that are not right or wrong.

    Raises:
        ValueError: if one is not of this run, did not end, or cannot be read; the message names the file.
    """
    found: dict[str, EvalResult] = {}
    for name in whole_names(folder):
        if not name.startswith(_PREFIX):
            continue
        path = merge_shards(folder, name)
        result = rescore(path, samples=samples, data_root=data_root, protocols=protocols, seed=seed)
        found[_checked_name(path, plain, result)] = result
    if not found:
        return None
    ordered = sorted(found, key=_place)
    return compare_changes(plain, {name: found[name] for name in ordered}, seed=seed)


def _protocols(result: EvalResult) -> list[Protocol]:
    """The protocol of the headline."""
    assert result.benchmark is not None
    there = [table.protocol for table in result.benchmark.tables]
    return ["strict"] if "strict" in there else there[:1]


def _place(name: str) -> tuple[str, int, str]:
    """Changes of all channels first, then channel by channel, each in the order of their description."""
    channel, _, change = name.rpartition(":")
    kind = change.partition("=")[0]
    return channel, list(DEFAULTS).index(kind) if kind in DEFAULTS else len(DEFAULTS), name


def _checked_name(path: Path, plain: EvalResult, changed: EvalResult) -> str:
    """The counterfactual that a file says it is of."""
    name = changed.settings.get("counterfactual")
    if not isinstance(name, str):
        raise ValueError(
            f"{path}: the file does not say which counterfactual it is of; only pave eval writes files of this name"
        )
    for key in _other_keys(plain, changed):
        raise ValueError(
            f"{path} belongs to another run than {path.with_name(PREDICTIONS)}: {key} is {changed.settings.get(key)!r}, there it is "
            f"{plain.settings.get(key)!r}; remove it, or run pave eval with --counterfactuals again"
        )
    try:
        paired_predictions(plain, changed)
    except ValueError:
        raise ValueError(
            f"{path} answers other samples than {path.with_name(PREDICTIONS)}; remove it, or run pave eval with --counterfactuals again"
        ) from None
    return name.partition(", seed ")[0]


def _other_keys(plain: EvalResult, changed: EvalResult) -> Iterator[str]:
    for key in dict.fromkeys([*plain.settings, *changed.settings]):
        if key != "counterfactual" and plain.settings.get(key) != changed.settings.get(key):
            yield key


def _sentence(change: Change, measure: str) -> str:
    channel, _, kind = change.name.rpartition(":")
    stream = f"side channel {channel!r}" if channel else "side channel"
    doing = f"the {stream} of another video" if kind == "swapped" else f"its {stream} removed"
    if not change.n_compared:
        return f"Whether the patch uses its {stream} cannot be told: no sample was answered both as it is and with {doing}."
    pair, low, high = change.pair, 100 * change.pair.interval.low, 100 * change.pair.interval.high
    changes = f"{100 * pair.difference:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}"
    if change.n_compared < change.result.overall.n_expected:
        changes += f", on {change.n_compared:,} of {change.result.overall.n_expected:,} samples"
    if pair.interval.high >= 0:
        return f"Exposed: with {doing} the {measure} does not fall ({changes}), so nothing here shows that the patch uses it."
    return f"With {doing} the {measure} falls ({changes}): the patch uses it."
