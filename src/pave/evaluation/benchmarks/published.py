"""Numbers that papers print for the benchmarks, from ``published.json``. None of them was measured here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class PublishedNumber:
    """One printed number."""

    system: str
    """What was measured: ``PAVE 7B, with the side channel``."""
    value: float
    """As printed, in percent."""
    source: str
    """Where it is printed."""


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """The numbers of one measure."""

    benchmark: str
    """Name of the benchmark."""
    label: str
    """What the row is called in tables."""
    measure: str
    """Of the benchmark's ``paper`` scorer."""
    row: str
    """Name of the row in its tables: a subtype, or overall."""
    numbers: tuple[PublishedNumber, ...]


@cache
def published_rows() -> tuple[PublishedRow, ...]:
    """Every row, in the order to show them."""
    values = json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))
    sources = values["sources"]
    return tuple(
        PublishedRow(
            **{key: row[key] for key in ("benchmark", "label", "measure", "row")},
            numbers=tuple(
                PublishedNumber(system=number["system"], value=number["value"], source=sources[number["source"]])
                for number in row["numbers"]
            ),
        )
        for row in values["rows"]
    )


def published_numbers(benchmark: str) -> list[PublishedRow]:
    """The rows of a benchmark; none where nothing is known."""
    return [row for row in published_rows() if row.benchmark == benchmark]
