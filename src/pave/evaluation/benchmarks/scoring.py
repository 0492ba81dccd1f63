"""The tables of a benchmark: every measure of both protocols, by subtype, with intervals and paired comparisons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pave.evaluation.benchmarks import PROTOCOLS, Benchmark, Measure, Protocol, get_benchmark
from pave.evaluation.metrics import Interval, PairedComparison, accuracy_interval, compare_paired, mean_interval
from pave.evaluation.predictions import Prediction

OVERALL = "overall"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of a table."""

    kind: str
    """Kind of subtype (modality, duration, ...), or overall."""
    name: str
    """The subtype, or overall."""
    value: float
    """Between 0 and 1 for an accuracy; some caption measures go above."""
    n_scored: int
    """Samples with an answer."""
    n_counted: int
    """The denominator; the published rule of some benchmarks leaves samples out."""
    n_expected: int
    """Samples there are."""
    interval: Interval | None
    """95 % interval, clustered by video; None where the number is not a mean over samples, or a mean over subtypes."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Table:
    """One measure of one protocol."""

    protocol: Protocol
    version: str
    """Of the scorer."""
    measure: str
    rows: tuple[Row, ...]
    """Overall first, then by subtype."""

    def row(self, name: str, kind: str | None = None) -> Row:
        """The row of a subtype, or of all ("overall")."""
        return next(row for row in self.rows if row.name == name and kind in (None, row.kind))


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """A run on a benchmark, scored."""

    benchmark: str
    split: str
    """Several are joined by a comma."""
    tables: tuple[Table, ...]
    """By protocol and measure; none where no answer is public."""
    n_samples: int
    """Samples of the run."""
    n_official: tuple[int, ...]
    """Samples that the split has officially, by release of its annotations; empty where that is not known."""
    n_secret: int
    """Samples whose answer is not public; they are in no table."""

    def table(self, protocol: Protocol, measure: str | None = None) -> Table:
        """The table of a measure; by default of the benchmark's own, the first one."""
        return next(t for t in self.tables if t.protocol == protocol and measure in (None, t.measure))

    @property
    def notes(self) -> list[str]:
        """What a reader of the numbers must know: sentences."""
        notes = []
        if self.n_official and self.n_samples not in self.n_official:
            official = " or ".join(f"{n:,}" for n in self.n_official)
            notes.append(
                f"{self.n_samples:,} samples, but the split {self.split} has {official}: not comparable with published numbers"
            )
        if self.n_secret:
            notes.append(f"the answers to {self.n_secret:,} samples are not public: write a submission with --submission")
        return notes

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "notes": self.notes}


def benchmark_of(predictions: Sequence[Prediction]) -> Benchmark | None:
    """The benchmark that the samples are of, or None.

    Raises:
        ValueError: if they are of several, or of one that is not known, or lack facts of it.
    """
    names = list(dict.fromkeys(p.benchmark for p in predictions))
    if len(names) > 1:
        raise ValueError(
            f"the samples are of several benchmarks ({', '.join('none' if n is None else n for n in names)}); score each in a file "
            "of its own"
        )
    if not names or names[0] is None:
        return None
    benchmark = get_benchmark(names[0])
    for prediction in predictions:
        lacking = _lacking(benchmark, prediction.meta)
        if lacking is not None:
            raise ValueError(
                f"sample {prediction.id!r} is of the benchmark {names[0]}, but its meta lacks {lacking!r}; "
                "make the file of samples with pave data convert, or take 'benchmark' out of meta"
            )
    return benchmark


def _lacking(benchmark: Benchmark, meta: Mapping[str, Any]) -> str | None:
    """The first fact of the benchmark that a sample's meta does not have as ``facts`` makes it."""
    subtypes, official = meta.get("subtypes"), meta.get("official")
    if not isinstance(subtypes, dict) or not all(isinstance(name, str) for name in subtypes.values()):
        return "subtypes"
    if benchmark.mean_over is not None and benchmark.mean_over not in subtypes:
        return f"subtypes.{benchmark.mean_over}"
    if not isinstance(official, dict):
        return "official"
    for key, kind in benchmark.official.items():
        value = official.get(key)
        texts = value if isinstance(value, list) else ()
        if not isinstance(value, kind) or not all(isinstance(text, str) for text in texts):
            return f"official.{key}"
    return None


def score_benchmark(
    benchmark: Benchmark,
    predictions: Sequence[Prediction],
    *,
    protocols: Sequence[Protocol] = PROTOCOLS,
    seed: int = 0,
    meteor: bool = False,
) -> BenchmarkResult:
    """Score the predictions of a run.

    Args:
        benchmark: theirs.
        predictions: one for every expected sample, failed ones included.
        protocols: which scorers.
        seed: of the bootstrap of scores that are not right or wrong.
        meteor: METEOR too, which needs Java (``pave.evaluation.metrics.captions.check_meteor``).

    Raises:
        ValueError: if METEOR is asked for and is no measure of the benchmark.
    """
    known = [p for p in predictions if p.references]
    splits = list(dict.fromkeys(str(p.meta.get("split")) for p in predictions))
    tables = []
    for scorer in [benchmark.scorer(protocol) for protocol in protocols] if known else []:
        measures = scorer.measures(known)
        if meteor:
            if scorer.meteor is None:
                raise ValueError(f"METEOR is no measure of {benchmark.title}: its answers are not compared as sentences")
            measures = [*measures, scorer.meteor(known)]
        for measure in measures:
            rows = _rows(benchmark, known, measure, seed)
            tables.append(Table(protocol=scorer.protocol, version=scorer.version, measure=measure.name, rows=rows))
    official = [benchmark.totals.get(split, {}) for split in splits]
    return BenchmarkResult(
        benchmark=benchmark.name,
        split=", ".join(splits),
        tables=tuple(tables),
        n_samples=len(predictions),
        n_official=tuple(official[0].values()) if len(splits) == 1 else (),
        n_secret=len(predictions) - len(known),
    )


def compare_benchmark(
    benchmark: Benchmark,
    pairs: Sequence[tuple[Prediction, Prediction]],
    *,
    protocols: Sequence[Protocol] = PROTOCOLS,
    seed: int = 0,
) -> dict[Protocol, dict[str, dict[str, PairedComparison]]]:
    """Compare two runs sample by sample: by protocol, measure and row (overall and every subtype).

    Samples that a published rule leaves out of one of the runs are left out of both; measures that are no mean over samples
    cannot be compared so.

    Args:
        benchmark: of both.
        pairs: the predictions of both runs, sample by sample.
        protocols: which scorers.
        seed: of the bootstrap of scores that are not right or wrong.
    """
    pairs = [pair for pair in pairs if pair[0].references]
    predictions = [first for first, _ in pairs]
    groups = _groups(predictions)
    found: dict[Protocol, dict[str, dict[str, PairedComparison]]] = {}
    for scorer in [benchmark.scorer(protocol) for protocol in protocols]:
        measures = zip(scorer.measures(predictions), scorer.measures([b for _, b in pairs]), strict=True)
        for one, two in measures:
            if not one.values or not two.values:
                continue
            rows = {}
            if benchmark.mean_over is not None:
                rows[mean_name(benchmark.mean_over)] = _compare(
                    one.values, two.values, predictions, range(len(predictions)), seed, benchmark.mean_over
                )
            for (kind, name), members in groups.items():
                rows[f"{kind}: {name}" if name in rows else name] = _compare(one.values, two.values, predictions, members, seed)
            found.setdefault(scorer.protocol, {})[one.name] = rows
    return found


def _compare(
    first: Sequence[float | None],
    second: Sequence[float | None],
    predictions: Sequence[Prediction],
    members: Sequence[int],
    seed: int,
    mean_over: str | None = None,
) -> PairedComparison:
    """Of the samples that count in both runs."""
    kept = [(a, b, predictions[i]) for i in members if (a := first[i]) is not None and (b := second[i]) is not None]
    weights = None if mean_over is None else _weights(mean_over, [p for _, _, p in kept])
    videos = [p.cluster for _, _, p in kept]
    return compare_paired([a for a, _, _ in kept], [b for _, b, _ in kept], videos, weights=weights, seed=seed)


def _groups(predictions: Sequence[Prediction]) -> dict[tuple[str, str], list[int]]:
    """Indices into ``predictions``: all of them, then by kind of subtype and subtype, in order of first appearance."""
    groups: dict[tuple[str, str], list[int]] = {(OVERALL, OVERALL): list(range(len(predictions)))}
    kinds = dict.fromkeys(kind for p in predictions for kind in p.meta.get("subtypes", {}))
    for kind in kinds:
        for number, prediction in enumerate(predictions):
            name = prediction.meta.get("subtypes", {}).get(kind)
            if name is not None:
                groups.setdefault((kind, name), []).append(number)
    return groups


def _rows(benchmark: Benchmark, predictions: Sequence[Prediction], measure: Measure, seed: int) -> tuple[Row, ...]:
    answered = sum(p.prediction is not None for p in predictions)
    if not measure.values:
        total = measure.total or 0.0
        n = len(predictions)
        row = Row(kind=OVERALL, name=OVERALL, value=total, n_scored=answered, n_counted=n, n_expected=n, interval=None)
        return (row,)
    rows = [
        _row(kind, name, [predictions[i] for i in members], [measure.values[i] for i in members], measure.yes_or_no, seed)
        for (kind, name), members in _groups(predictions).items()
    ]
    if benchmark.mean_over is not None:
        rows.insert(0, _mean_of_rows(benchmark.mean_over, rows, predictions, measure, seed))
    return tuple(rows)


def _mean_of_rows(kind: str, rows: Sequence[Row], predictions: Sequence[Prediction], measure: Measure, seed: int) -> Row:
    """The unweighted mean over the rows of a kind of subtype: a mean over samples that weighs every subtype the same."""
    counted = [(value, p) for value, p in zip(measure.values, predictions, strict=True) if value is not None]
    weights = _weights(kind, [p for _, p in counted])
    interval = _interval([value for value, _ in counted], [p.cluster for _, p in counted], measure.yes_or_no, seed, weights)
    parts = [row.value for row in rows if row.kind == kind and row.n_counted]
    return replace(rows[0], name=mean_name(kind), value=sum(parts) / len(parts) if parts else 0.0, interval=interval)


def mean_name(kind: str) -> str:
    """What the row of an unweighted mean over subtypes is called."""
    return f"mean of {kind}s"


def _weights(kind: str, predictions: Sequence[Prediction]) -> list[float]:
    """Weights that give every subtype of a kind the same weight as a whole."""
    names = [p.meta["subtypes"][kind] for p in predictions]
    sizes = Counter(names)
    return [1 / sizes[name] for name in names]


def _row(
    kind: str, name: str, predictions: Sequence[Prediction], values: Sequence[float | None], yes_or_no: bool, seed: int
) -> Row:
    counted = [(value, p.cluster) for value, p in zip(values, predictions, strict=True) if value is not None]
    numbers, clusters = [value for value, _ in counted], [video for _, video in counted]
    return Row(
        kind=kind,
        name=name,
        value=sum(numbers) / len(numbers) if numbers else 0.0,
        n_scored=sum(p.prediction is not None for p in predictions),
        n_counted=len(numbers),
        n_expected=len(predictions),
        interval=_interval(numbers, clusters, yes_or_no, seed),
    )


def _interval(
    values: Sequence[float], clusters: Sequence[str], yes_or_no: bool, seed: int, weights: Sequence[float] | None = None
) -> Interval:
    if yes_or_no:
        return accuracy_interval(values, clusters, weights=weights)
    return mean_interval(values, clusters, weights=weights, seed=seed)
