"""Files of sensors: CSV, Parquet, numpy and HDF5, onto the clock of the video."""

from __future__ import annotations

import csv
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pave.data.descriptors import beside, number, read_descriptor
from pave.side_channels.sensor import TIME_UNITS, SensorSeries
from pave.utils.optional import MissingExtraError, require

MAX_READINGS = 50_000_000
"""Longest file that is read, in numbers of one column."""
_CALENDAR = 1e7
"""A video does not last a third of a year: times that begin beyond that are counted from another zero."""

Column = NDArray[Any]
Reader = Callable[[str, Sequence[str], str], tuple[dict[str, Column], float | None]]


@dataclass(frozen=True)
class SensorLink:
    """A .json file that stands for a log with a clock of its own: ``{"file": "imu.csv", "zero": 1700000000.25}``."""

    file: str
    """Path of the log; in the .json file, relative to that."""
    zero: float
    """What the log's clock showed at the video's first frame, in the log's own unit of time."""


def read_sensor(
    path: str | os.PathLike[str],
    *,
    columns: Sequence[str],
    time_column: str = "time",
    time_unit: str = "s",
    rate: float | None = None,
    start: float = 0.0,
    unsorted: str = "error",
) -> SensorSeries:
    """Read columns of a file. Empty cells, nulls and NaN are gaps.

    ======================= ============================================================================================
    .csv, .tsv              a header and a row for each reading, in UTF-8; cells between commas, or tabs
    .parquet                columns of numbers; times may be of the type timestamp (extra ``sensor``)
    .npz, .h5, .hdf5        an array of one dimension for each column; ``imu.2`` is column 2 of a matrix ``imu`` (HDF5: extra
                            ``sensor``)
    .npy                    a vector or matrix; its columns are called 0, 1, 2, ...
    .json                   a ``SensorLink`` to one of these
    ======================= ============================================================================================

    Args:
        path: the file.
        columns: what is read, in order.
        time_column: where the times are.
        time_unit: s, ms, us or ns.
        rate: readings a second, for a file without the time column: reading i was taken at ``start + i / rate``.
        start: seconds on the video's clock of the first reading, with ``rate``.
        unsorted: "error", or "sort": readings are sorted, and of those with the same time the last in the file is kept.

    Raises:
        ValueError: one sentence that names the file, if it is missing, damaged, lacks a column or its times, or a cell is no
            number.
        MissingExtraError: if a package that reads this kind of file is not installed.
    """
    name, zero = os.fspath(path), 0.0
    if name.lower().endswith(".json"):
        link = _read_link(name)
        name, zero = link.file, link.zero
    reader = _READERS.get(os.path.splitext(name)[1].lower())
    if reader is None:
        raise ValueError(f"{name}: sensors are read from {', '.join(_READERS)} and .json files")
    if not os.path.isfile(name):
        raise ValueError(f"{name}: there is no such file of a sensor")
    try:
        found, own_unit = reader(name, columns, time_column)
        values_nC = _matrix(found, columns)
        unit = TIME_UNITS[time_unit] if own_unit is None else own_unit
        times_n = _times(found.get(time_column), len(values_nC), time_column, unit, zero, rate, start)
        if unsorted == "sort":
            values_nC, times_n = _sorted(values_nC, times_n)
        return SensorSeries(values_nC, times_n, tuple(columns))
    except MissingExtraError:
        raise
    except ValueError as error:
        raise ValueError(f"{name}: {' '.join(str(error).removeprefix('SensorSeries: ').split())}") from None
    except Exception as error:  # a damaged file makes these libraries raise almost anything
        reason = " ".join(str(error).split())[:150]
        raise ValueError(f"{name}: the file is damaged or of another kind than its ending says ({reason})") from error


def _read_link(path: str) -> SensorLink:
    content = read_descriptor(path, known=("file", "zero"), required=("file",))
    log = beside(path, f"{path}, file", content["file"])
    if log.lower().endswith(".json"):
        raise ValueError(f"{path}, file: a log is needed, not another .json file, got {content['file']!r}")
    return SensorLink(log, number(f"{path}, zero", content.get("zero", 0)))


def _matrix(found: dict[str, Column], columns: Sequence[str]) -> NDArray[np.float64]:
    lengths = {name: len(column) for name, column in found.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"its columns are not of one length: {', '.join(f'{k!r} has {v}' for k, v in lengths.items())}")
    return np.stack([found[name].astype(np.float64) for name in columns], axis=1)


def _times(
    raw: Column | None, count: int, time_column: str, unit: float, zero: float, rate: float | None, start: float
) -> NDArray[np.float64]:
    """Seconds on the video's clock."""
    if raw is None:
        if rate is None:
            raise ValueError(f"there is no time column {time_column!r}; set time_column, or rate (readings a second)")
        return start + np.arange(count, dtype=np.float64) / rate
    times: NDArray[np.float64] = (raw.astype(np.float64) - zero) * unit
    far = times[np.abs(times) > _CALENDAR]
    if len(far):
        raise ValueError(
            f"it has a time of {far[0]:.6g} s on the video's clock; set time_unit, or name a .json file that says what the log's "
            "clock showed at the first frame ('zero')"
        )
    return times


def _sorted(values_nC: NDArray[np.float64], times_n: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    order = np.argsort(times_n, kind="stable")
    values_nC, times_n = values_nC[order], times_n[order]
    last_n = np.append(times_n[1:] != times_n[:-1], True)[: len(times_n)]
    return values_nC[last_n], times_n[last_n]


def _no_column(name: str, names: Sequence[str]) -> ValueError:
    shown = ", ".join(repr(name[:60]) for name in names[:20]) + (", ..." if len(names) > 20 else "")
    return ValueError(f"there is no column {name!r}; there are {shown or 'none'}")


def _check_count(count: int) -> None:
    if count > MAX_READINGS:
        raise ValueError(f"it holds {count} readings, more than the {MAX_READINGS} that are read; cut it into shorter files")


# --- kinds of files. Each gives the columns that are asked for and, if it has one, the time column, as they are in the file, and
# the seconds of a unit of time where the file itself says them.


def _csv(name: str, columns: Sequence[str], time_column: str) -> tuple[dict[str, Column], float | None]:
    with open(name, encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter="\t" if name.lower().endswith(".tsv") else ",", strict=True)
        try:
            header = [cell.strip() for cell in next(rows, [])]
            wanted = _wanted(header, columns, time_column)
            if len(set(header)) < len(header):
                raise ValueError(f"two columns have the name {next(n for n in header if header.count(n) > 1)!r}")
            places = [(header.index(column), column) for column in wanted]
            numbers: list[list[float]] = [[] for _ in places]
            for row in rows:
                if not row:
                    continue
                if len(row) != len(header):
                    raise ValueError(f"line {rows.line_num} has {len(row)} cells, the header has {len(header)}")
                for (place, column), into in zip(places, numbers, strict=True):
                    into.append(_number(row[place], column, rows.line_num))
                _check_count(len(numbers[0]))
        except csv.Error as error:
            raise ValueError(f"line {rows.line_num} is not CSV: {error}") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"it is not UTF-8 (byte {error.object[error.start]:#x}); save it as UTF-8") from None
    return {column: np.array(values) for (_, column), values in zip(places, numbers, strict=True)}, None


def _number(cell: str, column: str, line: int) -> float:
    if not cell.strip():
        return float("nan")
    try:
        return float(cell)
    except ValueError:
        raise ValueError(
            f"line {line}, column {column!r}: {cell[:40]!r} is no number; leave the cell empty where there is no value"
        ) from None


def _wanted(names: Sequence[str], columns: Sequence[str], time_column: str) -> list[str]:
    for column in columns:
        if column not in names:
            raise _no_column(column, names)
    return [*columns, *([time_column] if time_column in names and time_column not in columns else [])]


def _parquet(name: str, columns: Sequence[str], time_column: str) -> tuple[dict[str, Column], float | None]:
    pyarrow = require("pyarrow", extra="sensor", purpose="A sensor in a Parquet file")
    parquet = require("pyarrow.parquet", extra="sensor", purpose="A sensor in a Parquet file")
    unit = None
    found: dict[str, Column] = {}
    with parquet.ParquetFile(name) as file:
        _check_count(file.metadata.num_rows)
        wanted = _wanted(file.schema_arrow.names, columns, time_column)
        table = file.read(columns=wanted)
    for column in wanted:
        values, kind = table.column(column), table.schema.field(column).type
        if column == time_column and pyarrow.types.is_timestamp(kind):
            unit = TIME_UNITS[kind.unit]
            values = values.cast(pyarrow.int64())
        elif not (pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_boolean(kind)):
            raise ValueError(f"column {column!r} holds {kind}, not numbers")
        found[column] = values.cast(pyarrow.float64(), safe=False).to_numpy()
    return found, unit


def _npy(name: str, columns: Sequence[str], time_column: str) -> tuple[dict[str, Column], float | None]:
    with open(name, "rb") as file:
        array = np.load(file, allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.ndim not in (1, 2):
        raise ValueError(f"a vector or a matrix is expected, got an array of shape {getattr(array, 'shape', None)}")
    array = array[:, None] if array.ndim == 1 else array
    _check_numbers(array, "the array")
    wanted = _wanted([str(i) for i in range(array.shape[1])], columns, time_column)
    return {column: array[:, int(column)] for column in wanted}, None


def _npz(name: str, columns: Sequence[str], time_column: str) -> tuple[dict[str, Column], float | None]:
    with zipfile.ZipFile(name) as members:
        for member in members.infolist():
            _check_count(member.file_size // 8)  # a small file can unpack to a very large one
    with open(name, "rb") as file:
        archive = np.load(file, allow_pickle=False)
        return _arrays(lambda key: archive[key] if key in archive.files else None, archive.files, columns, time_column), None


def _hdf5(name: str, columns: Sequence[str], time_column: str) -> tuple[dict[str, Column], float | None]:
    h5py = require("h5py", extra="sensor", purpose="A sensor in an HDF5 file")
    with h5py.File(name, "r") as file:

        def dataset(key: str) -> Column | None:
            node: Any = file
            for part in filter(None, key.split("/")):
                link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
                if link is None:
                    return None
                if not isinstance(link, h5py.HardLink):
                    raise ValueError(f"{key!r} is a link; only datasets of the file itself are read")
                node = node[part]
            if not isinstance(node, h5py.Dataset):
                return None
            if node.is_virtual or node.external:
                raise ValueError(f"{key!r} lies in other files; only datasets of the file itself are read")
            _check_count(node.size or 0)
            array: Column = node[()]
            return array

        return _arrays(dataset, list(file.keys()), columns, time_column), None


def _arrays(
    get: Callable[[str], Column | None], names: Sequence[str], columns: Sequence[str], time_column: str
) -> dict[str, Column]:
    """Columns from named arrays; ``imu.2`` is column 2 of the matrix ``imu``."""
    found = {}
    for column in dict.fromkeys([*columns, time_column]):
        array = get(column)
        stem, _, place = column.rpartition(".")
        if array is None and stem and place.isdecimal():
            matrix = get(stem)
            if matrix is not None and matrix.ndim == 2 and int(place) < matrix.shape[1]:
                array = matrix[:, int(place)]
        if array is None:
            if column in columns:
                raise _no_column(column, names)
            continue
        if array.ndim != 1:
            raise ValueError(
                f"{column!r} must have one dimension, got shape {array.shape}; a column of a matrix is {column + '.0'!r}"
            )
        _check_numbers(array, repr(column))
        found[column] = array
    return found


def _check_numbers(array: Column, what: str) -> None:
    if array.dtype.kind not in "iufb":
        raise ValueError(f"{what} holds {array.dtype}, not numbers")
    _check_count(len(array))


_READERS: dict[str, Reader] = {
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
    ".npy": _npy,
    ".npz": _npz,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
}
