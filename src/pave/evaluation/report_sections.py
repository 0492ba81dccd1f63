"""Sections of the report on evaluations: scorers side by side, published numbers, counterfactuals, costs. Data for the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pave.evaluation.benchmarks.published import PublishedRow, published_numbers
from pave.evaluation.metrics import Interval

if TYPE_CHECKING:
    from pave.evaluation.benchmarks.scoring import BenchmarkResult, Row, Table
    from pave.evaluation.costs import RunCost
    from pave.evaluation.exposure import Exposure


def scorers_section(results: Mapping[str, BenchmarkResult]) -> dict[str, Any] | None:
    """Every measure by both scorers, with a line for each run in each row of the benchmark; None without any.

    Args:
        results: by run, of one benchmark.
    """
    first = next(iter(results.values()), None)
    if first is None or not first.tables:
        return None
    measures = list(dict.fromkeys(table.measure for table in first.tables))
    versions = [table.version for result in results.values() for table in result.tables]
    return {
        "split": first.split,
        "versions": list(dict.fromkeys(versions)),
        "notes": _notes(results),
        "measures": [{"name": measure, "groups": _scorer_groups(results, measure)} for measure in measures],
    }


def _notes(results: Mapping[str, BenchmarkResult]) -> list[str]:
    return list(dict.fromkeys(note for result in results.values() for note in result.notes))


def _scorer_groups(results: Mapping[str, BenchmarkResult], measure: str) -> list[dict[str, Any]]:
    tables = [table for result in results.values() for table in result.tables if table.measure == measure]
    keys = dict.fromkeys((row.kind, row.name) for table in tables for row in table.rows)
    groups = []
    for kind, name in keys:
        lines = []
        for number, (run, result) in enumerate(results.items()):
            rows = {t.protocol: _row(t, kind, name) for t in result.tables if t.measure == measure}
            known = [row for row in rows.values() if row is not None]
            if known:
                answered = f"{known[0].n_scored:,} of {known[0].n_expected:,}"
                cells = {protocol: _cell(row) for protocol, row in rows.items()}
                lines.append({"run": run, "number": number, "answered": answered, "cells": cells})
        groups.append({"label": name if kind == "overall" else f"{kind}: {name}", "lines": lines})
    return groups


def _row(table: Table, kind: str, name: str) -> Row | None:
    return next((row for row in table.rows if (row.kind, row.name) == (kind, name)), None)


def _cell(row: Row | None) -> dict[str, str]:
    if row is None or not row.n_counted:
        return {"value": "–", "range": "", "note": "none counted" if row is not None else ""}
    left_out = "" if row.n_counted == row.n_expected else f"{row.n_counted:,} counted"
    return {"value": f"{100 * row.value:.1f}", "range": _range(row.interval), "note": left_out}


def published_section(results: Mapping[str, BenchmarkResult]) -> dict[str, Any] | None:
    """A column for each row for which numbers are published; the runs by the ``paper`` scorer, then published systems, each with the
    numbers of its sources. None where nothing is known."""
    first = next(iter(results.values()), None)
    rows = published_numbers(first.benchmark) if first is not None else []
    own = {run: [_paper_cell(result, row) for row in rows] for run, result in results.items()}
    kept = [number for number in range(len(rows)) if any(cells[number] for cells in own.values())]
    if not kept:
        return None
    chosen = [rows[number] for number in kept]
    sources = list(dict.fromkeys(n.source for row in chosen for n in row.numbers))
    systems: dict[tuple[str, str], list[str]] = {}
    for column, row in enumerate(chosen):
        for n in row.numbers:
            systems.setdefault((n.system, n.source), [""] * len(chosen))[column] = f"{n.value:.1f}"
    return {
        "notes": _notes(results),
        "columns": [row.label for row in chosen],
        "own": [
            {"run": run, "number": number, "cells": [cells[k] or "" for k in kept]}
            for number, (run, cells) in enumerate(own.items())
        ],
        "systems": [
            {"name": system, "source": sources.index(source) + 1, "cells": cells} for (system, source), cells in systems.items()
        ],
        "sources": sources,
    }


def _paper_cell(result: BenchmarkResult, published: PublishedRow) -> str | None:
    """The run's own number of a published row, by the ``paper`` scorer."""
    for table in result.tables:
        if table.protocol == "paper" and table.measure == published.measure:
            for row in table.rows:
                if row.name == published.row and row.n_counted:
                    return f"{100 * row.value:.1f}"
    return None


def exposures_section(exposures: Mapping[str, Exposure], runs: Sequence[str]) -> list[dict[str, Any]]:
    """A plot for each run with counterfactuals."""
    from pave.evaluation.exposure import headline

    section = []
    for run, exposure in exposures.items():
        plain = headline(exposure.plain)
        rows = [{"name": "as they are", "difference": "", "differs": "", **_bar(plain.value, plain.interval)}]
        rows[0]["answered"] = f"{plain.n_scored:,} of {plain.n_expected:,}"
        for change in exposure.changes:
            own, pair = headline(change.result), change.pair
            rows.append(
                {
                    "name": change.name,
                    "difference": f"{100 * pair.difference:+.1f}",
                    "differs": _range(pair.interval, sign=True),
                    "answered": f"{own.n_scored:,} of {own.n_expected:,}",
                    **_bar(own.value, own.interval),
                }
            )
        section.append(
            {
                "run": run,
                "number": list(runs).index(run),
                "measure": plain.measure,
                "exposed": exposure.exposed,
                "sentences": exposure.sentences,
                "rows": rows,
            }
        )
    return section


def costs_section(costs: Mapping[str, RunCost | None]) -> list[dict[str, str]]:
    """What is recorded of each run; empty if nothing is of any."""
    if not any(costs.values()):
        return []
    rows = []
    for run, cost in costs.items():
        if cost is None:
            rows.append({"run": run, "seconds": "not recorded", "each": "–", "device": "–", "base": "–", "patch": "–"})
            continue
        share = f"{cost.patch_parameters:,} ({100 * cost.patch_parameters / max(1, cost.base_parameters):.3f} %)"
        rows.append(
            {
                "run": run,
                "seconds": f"{cost.seconds:,.1f} for {cost.samples:,} samples",
                "each": f"{cost.seconds / cost.samples:.3f}" if cost.samples else "–",
                "device": cost.device,
                "base": f"{cost.base_parameters:,}",
                "patch": share if cost.patch_parameters else "none",
            }
        )
    return rows


def _bar(value: float, interval: Interval | None) -> dict[str, str]:
    """Numbers in percent, and what a bar of 0 to 100 shows of them."""
    low, high = (value, value) if interval is None else (interval.low, interval.high)
    left, right = (100 * min(1.0, max(0.0, end)) for end in (low, high))
    return {
        "percent": f"{100 * value:.1f}",
        "width": f"{100 * min(1.0, max(0.0, value)):.2f}",
        "low": f"{left:.2f}",
        "span": f"{right - left:.2f}",
        "range": _range(interval),
    }


def _range(interval: Interval | None, sign: bool = False) -> str:
    if interval is None:
        return ""
    low, high = 100 * interval.low, 100 * interval.high
    return f"{low:+.1f} to {high:+.1f}" if sign else f"{low:.1f} to {high:.1f}"
