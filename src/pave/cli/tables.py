"""Tables of scores for people, of ``pave eval`` and ``pave score``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pave.utils.console import aligned

if TYPE_CHECKING:
    from pave.evaluation.benchmarks.scoring import BenchmarkResult, Row
    from pave.evaluation.exposure import Exposure
    from pave.evaluation.metrics import PairedComparison
    from pave.evaluation.result import EvalResult

_SHOWN = 20


def result_text(result: EvalResult) -> str:
    """The benchmark's own tables where the samples are of one, else accuracy by question type."""
    return _types_text(result) if result.benchmark is None else benchmark_text(result.benchmark)


def print_failures(result: EvalResult, changed: Mapping[str, EvalResult] | None = None) -> None:
    """Name the samples without an answer on standard error, and those that lack one under a change of the streams only."""
    _print_failures(result.failures, "")
    known = {sample for sample, _ in result.failures}
    for name, other in (changed or {}).items():
        _print_failures([failure for failure in other.failures if failure[0] not in known], f" under {name}")


def _print_failures(failures: Sequence[tuple[str, str]], where: str) -> None:
    for sample, message in failures[:_SHOWN]:
        print(f"no answer to {sample}{where}: {message}", file=sys.stderr)
    if len(failures) > _SHOWN:
        print(f"... and {len(failures) - _SHOWN} more samples without an answer{where}", file=sys.stderr)


def benchmark_text(result: BenchmarkResult) -> str:
    """Every measure of both protocols side by side, a row for each subtype."""
    from pave.evaluation.benchmarks import get_benchmark

    lines = [f"{get_benchmark(result.benchmark).title}, split {result.split}: {result.n_samples:,} samples"]
    lines += [f"note: {note}" for note in result.notes]
    if not result.tables:
        return "\n".join(lines)
    names = list(dict.fromkeys((row.kind, row.name) for table in result.tables for row in table.rows))
    cells = [["", *(f"{table.measure} ({table.protocol})" for table in result.tables), "answered"]]
    for kind, name in names:
        rows = [next((row for row in table.rows if (row.kind, row.name) == (kind, name)), None) for table in result.tables]
        first = next(row for row in rows if row is not None)
        label = name if kind == "overall" else f"{kind}: {name}"
        cells.append([label, *map(_number, rows), f"{first.n_scored:,} of {first.n_expected:,}"])
    lines += ["", aligned(cells), "", "scorers: " + ", ".join(dict.fromkeys(table.version for table in result.tables))]
    return "\n".join(lines)


def comparison_text(comparisons: Mapping[str, PairedComparison], first: str, second: str, title: str = "") -> str:
    """A row for each subset: difference in points with its interval, samples that one run alone has right, and p."""
    cells = [["", "difference", "95 % interval", "only 2nd", "only 1st", "p"]]
    for name, pair in comparisons.items():
        p = "< 0.0001" if pair.p_value < 1e-4 else f"{pair.p_value:.4f}"
        interval = f"{100 * pair.interval.low:+.1f} to {100 * pair.interval.high:+.1f}"
        cells.append([name, f"{100 * pair.difference:+.1f}", interval, str(pair.only_second), str(pair.only_first), p])
    return "\n".join([f"{second} minus {first}{title}", aligned(cells)])


def exposure_text(exposure: Exposure) -> str:
    """A row for the run as it is and one for each change of its streams, and what that says of the patch."""
    from pave.evaluation.exposure import headline

    plain = headline(exposure.plain)
    cells = [["streams", plain.measure, "difference", "95 % interval", "answered"]]
    cells.append(["as they are", f"{100 * plain.value:.1f}", "", "", f"{plain.n_scored:,} of {plain.n_expected:,}"])
    for change in exposure.changes:
        own, interval = headline(change.result), change.pair.interval
        cells.append(
            [
                change.name,
                f"{100 * own.value:.1f}",
                f"{100 * change.pair.difference:+.1f}",
                f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f}",
                f"{own.n_scored:,} of {own.n_expected:,}",
            ]
        )
    return "\n".join([aligned(cells), *exposure.sentences])


def _number(row: Row | None) -> str:
    """A number times 100 with its interval, and its denominator where samples were left out of it."""
    if row is None:
        return ""
    interval = "" if row.interval is None else f" [{100 * row.interval.low:.1f}, {100 * row.interval.high:.1f}]"
    left_out = "" if row.n_counted == row.n_expected else f" of {row.n_counted:,} only"
    return f"{100 * row.value:.1f}{interval}{left_out}" if row.n_counted else "none counted"


def _types_text(result: EvalResult) -> str:
    rows = [*result.by_type.items(), ("overall", result.overall)] if len(result.by_type) > 1 else [("overall", result.overall)]
    width = max(len(kind) for kind, _ in rows)
    lines = [f"{'':<{width}}  accuracy  95 % interval     n"]
    for kind, score in rows:
        interval = f"{100 * score.interval.low:.1f} to {100 * score.interval.high:.1f}"
        answered = "" if score.n_scored == score.n_expected else f" ({score.n_scored} answered)"
        lines.append(f"{kind:<{width}}  {100 * score.accuracy:>7.1f}%  {interval:<14}{score.n_expected:>5}{answered}")
    return "\n".join(lines)
