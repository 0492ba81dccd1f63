"""Sensors in text: a header and a row for each reading. How it is written is found out, and said."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pave.data.written import TimeKind, number_of, time_of

Column = NDArray[Any]
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_KINDS = {
    "clock": "times as HH:MM:SS",
    "date": "times as ISO 8601",
    "date with a time zone": "times as ISO 8601 with a time zone",
}


@dataclass
class Table:
    """The columns that are asked for and, if the file has it, the time column."""

    columns: dict[str, Column]
    unit: float | None = None
    """Seconds of a unit of time, where the file itself says so."""
    times: TimeKind | None = None
    """How times are written that are no numbers; the column then holds their seconds."""
    told: list[str] = field(default_factory=list)
    """What had to be found out about the file, in words."""


def read_csv(name: str, columns: Sequence[str], time_column: str, wanted: Callable[..., list[str]], most: int) -> Table:
    """The columns of a file in UTF-8, between commas, semicolons or tabs: whichever the header has all columns with.

    In files without commas between cells, numbers may have a decimal comma; one file has one kind of decimal mark.

    Args:
        name: path.
        columns: that are asked for.
        time_column: that is read too, if it is there.
        wanted: of the header's names, ``columns`` and ``time_column``, those to read; raises for one that is not there.
        most: readings that are read.

    Raises:
        ValueError: one sentence that names the line.
    """
    usual = "\t" if name.lower().endswith(".tsv") else ","
    separator = next((s for s in (usual, *SEPARATORS) if set(columns) <= set(_header(name, s))), usual)
    with open(name, encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter=separator, strict=True)
        try:
            header = [cell.strip() for cell in next(rows, [])]
            names = wanted(header, columns, time_column)
            if len(set(header)) < len(header):
                raise ValueError(f"two columns have the name {next(n for n in header if header.count(n) > 1)!r}")
            cells = Cells("." if separator == "," else None)
            places = [(header.index(column), column) for column in names]
            numbers: list[list[float]] = [[] for _ in places]
            for row in rows:
                if not row:
                    continue
                if len(row) != len(header):
                    raise ValueError(f"line {rows.line_num} has {len(row)} cells, the header has {len(header)}")
                for (place, column), into in zip(places, numbers, strict=True):
                    is_time = column == time_column and column not in columns
                    into.append((cells.time if is_time else cells.number)(row[place], column, rows.line_num))
                if len(numbers[0]) > most:
                    raise ValueError(
                        f"it holds {len(numbers[0])} readings, more than the {most} that are read; cut it into shorter files"
                    )
        except csv.Error as error:
            raise ValueError(f"line {rows.line_num} is not CSV: {error}") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"it is not UTF-8 (byte {error.object[error.start]:#x}); save it as UTF-8") from None
    told = [*([] if separator == usual else [f"cells between {SEPARATORS[separator]}"]), *cells.told]
    found: dict[str, Column] = {column: np.array(values) for (_, column), values in zip(places, numbers, strict=True)}
    return Table(found, times=cells.kind, told=told)


def _header(name: str, separator: str) -> list[str]:
    with open(name, encoding="utf-8-sig", newline="") as file:
        try:
            return [cell.strip() for cell in next(csv.reader(file, delimiter=separator, strict=True), [])]
        except (csv.Error, UnicodeDecodeError):  # whoever reads the file says so
            return []


class Cells:
    """Reads the cells of one file, and remembers how its numbers and times are written.

    Args:
        mark: the decimal mark, or None where the first cell that has one decides.
    """

    def __init__(self, mark: str | None) -> None:
        self._mark = mark
        self._plain: int | None = None
        """Line of the first time that is a number."""
        self.kind: TimeKind | None = None
        """How times are written that are no numbers."""

    @property
    def told(self) -> list[str]:
        """What was found out, in words."""
        return [*(["decimal commas"] if self._mark == "," else []), *([] if self.kind is None else [_KINDS[self.kind]])]

    def number(self, cell: str, column: str, line: int) -> float:
        """The number in a cell; NaN where it is empty."""
        found = self._number(cell)
        if found is None:
            hint = " (the file has decimal commas)" if self._mark == "," else ""
            raise ValueError(
                f"line {line}, column {column!r}: {cell[:40]!r} is no number{hint}; leave the cell empty where there is no value"
            )
        return found

    def time(self, cell: str, column: str, line: int) -> float:
        """The time in a cell, as a number or in seconds; NaN where it is empty."""
        written = time_of(cell)
        if written is None:
            found = self._number(cell)
            if found is None:
                raise ValueError(
                    f"line {line}, column {column!r}: {cell[:40]!r} is no time; numbers, HH:MM:SS and ISO 8601 with date and time are "
                    "read"
                )
        else:
            found = written.seconds
        if cell.strip():
            self._plain = line if written is None and self._plain is None else self._plain
            kind = None if written is None else written.kind
            if (self.kind is not None and kind != self.kind) or (kind is not None and self._plain is not None):
                raise ValueError(
                    f"line {line}, column {column!r}: the time {cell[:40]!r} is written in another way than those before"
                )
            self.kind = kind
        return found

    def _number(self, cell: str) -> float | None:
        text = cell.strip()
        if not text:
            return float("nan")
        if self._mark is None and number_of(text.replace(",", ".")) is not None:
            self._mark = "," if "," in text else "." if "." in text else None
        if self._mark != ",":
            return number_of(text)
        return None if "." in text else number_of(text.replace(",", "."))


def times_of_texts(texts: Sequence[str], column: str) -> tuple[NDArray[np.float64], TimeKind | None, list[str]]:
    """A column of times that a file other than text holds as text: numbers or seconds, how they are written, and that in words.

    Raises:
        ValueError: naming the reading that is no time.
    """
    cells = Cells(".")
    values = np.array([cells.time(text, column, i) for i, text in enumerate(texts)], dtype=np.float64)
    return values, cells.kind, cells.told
