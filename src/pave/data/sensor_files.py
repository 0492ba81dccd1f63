"""Files of sensors: CSV, Parquet, numpy and HDF5, onto the clock of the video."""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pave.data.descriptors import beside, number, read_descriptor
from pave.data.sensor_csv import Column, Table, read_csv, times_of_texts
from pave.data.sensor_times import SensorClock
from pave.data.written import WrittenTime, time_of
from pave.side_channels.sensor import TIME_UNITS, SensorSeries
from pave.utils.optional import MissingExtraError, require

logger = logging.getLogger(__name__)

MAX_READINGS = 50_000_000
"""Longest file that is read, in numbers of one column."""
Reader = Callable[[str, Sequence[str], str], Table]
_said: set[tuple[str, ...]] = set()
"""What was said of a file before, so that a thousand files of one kind are not a thousand messages."""


@dataclass(frozen=True)
class SensorLink:
    """A .json file that stands for a log with a clock of its own: ``{"file": "imu.csv", "zero": 1700000000.25}``."""

    file: str
    """Path of the log; in the .json file, relative to that."""
    zero: float | WrittenTime | None
    """None: the log is on the video's clock. Else what the log's clock showed at the video's first frame: a number in the log's own unit of time (seconds, where its times are
    written as HH:MM:SS or ISO 8601), or such a text."""


def read_sensor(
    path: str | os.PathLike[str],
    *,
    columns: Sequence[str],
    time_column: str = "time",
    time_unit: str = "s",
    rate: float | None = None,
    start: float = 0.0,
    zero: str = "clock",
    unsorted: str = "error",
) -> SensorSeries:
    """Read columns of a file. Empty cells, nulls and NaN are gaps. What had to be found out about a file is logged, once for all
    files of one kind, and stands in ``SensorSeries.read_as``.

    ======================= ============================================================================================
    .csv, .tsv              a header and a row for each reading, in UTF-8; cells between commas, semicolons or tabs. Without commas
                            between cells, numbers may have a decimal comma
    .parquet                columns of numbers; times may also be of the types timestamp and time (extra ``sensor``)
    .npz, .h5, .hdf5        an array of one dimension for each column; ``imu.2`` is column 2 of a matrix ``imu`` (HDF5: extra
                            ``sensor``)
    .npy                    a vector or matrix; its columns are called 0, 1, 2, ...
    .json                   a ``SensorLink`` to one of these
    ======================= ============================================================================================

    Times are numbers, or texts: HH:MM:SS, or ISO 8601 with date and time; all of a file alike.

    Args:
        path: the file.
        columns: what is read, in order.
        time_column: where the times are.
        time_unit: s, ms, us or ns, of times that are numbers; auto tells from their size in which unit they count from 1970, and takes
            others for seconds.
        rate: readings a second, for a file without the time column: reading i was taken at ``start + i / rate``.
        start: seconds on the video's clock of the first reading, with ``rate`` or ``zero`` "first".
        zero: "clock": times are on the video's clock, or on one whose zero a ``SensorLink`` says. "first": the log begins at ``start``,
            whatever its clock says.
        unsorted: "error", or "sort": readings are sorted, and of those with the same time the last in the file is kept.

    Raises:
        ValueError: one sentence that names the file, if it is missing, damaged, lacks a column or its times, or a cell is no
            number.
        MissingExtraError: if a package that reads this kind of file is not installed.
    """
    name, origin = os.fspath(path), None
    if name.lower().endswith(".json"):
        link = _read_link(name)
        name, origin = link.file, link.zero
    reader = _READERS.get(os.path.splitext(name)[1].lower())
    if reader is None:
        raise ValueError(f"{name}: sensors are read from {', '.join(_READERS)} and .json files")
    if not os.path.isfile(name):
        raise ValueError(f"{name}: there is no such file of a sensor")
    try:
        table = reader(name, columns, time_column)
        values_nC = _matrix(table.columns, columns)
        clock = SensorClock(time_column, time_unit, rate, start, zero, origin)
        times_n, told = clock.seconds(table, len(values_nC))
        if unsorted == "sort":
            values_nC, times_n = _sorted(values_nC, times_n)
        return SensorSeries(values_nC, times_n, tuple(columns), _said_once(name, (*table.told, *told)))
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
    zero = content.get("zero")
    written = time_of(zero) if isinstance(zero, str) else None
    return SensorLink(log, written if written or zero is None else number(f"{path}, zero", zero))


def _said_once(name: str, told: tuple[str, ...]) -> tuple[str, ...]:
    if told and told not in _said:
        _said.add(told)
        logger.info("%s: read with %s (further files like it are read without a word)", name, ", ".join(told))
    return told


def _matrix(found: dict[str, Column], columns: Sequence[str]) -> NDArray[np.float64]:
    lengths = {name: len(column) for name, column in found.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"its columns are not of one length: {', '.join(f'{k!r} has {v}' for k, v in lengths.items())}")
    return np.stack([found[name].astype(np.float64) for name in columns], axis=1)


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


# --- kinds of files


def _csv(name: str, columns: Sequence[str], time_column: str) -> Table:
    return read_csv(name, columns, time_column, _wanted, MAX_READINGS)


def _wanted(names: Sequence[str], columns: Sequence[str], time_column: str) -> list[str]:
    for column in columns:
        if column not in names:
            raise _no_column(column, names)
    return [*columns, *([time_column] if time_column in names and time_column not in columns else [])]


def _parquet(name: str, columns: Sequence[str], time_column: str) -> Table:
    pyarrow = require("pyarrow", extra="sensor", purpose="A sensor in a Parquet file")
    parquet = require("pyarrow.parquet", extra="sensor", purpose="A sensor in a Parquet file")
    types = pyarrow.types
    found = Table({})
    with parquet.ParquetFile(name) as file:
        _check_count(file.metadata.num_rows)
        wanted = _wanted(file.schema_arrow.names, columns, time_column)
        table = file.read(columns=wanted)
    for column in wanted:
        values, kind = table.column(column), table.schema.field(column).type
        is_time = column == time_column and column not in columns
        if is_time and (types.is_string(kind) or types.is_large_string(kind)):
            _take_texts(found, column, [text or "" for text in values.to_pylist()])
            continue
        if is_time and (types.is_timestamp(kind) or types.is_time(kind)):
            found.unit = TIME_UNITS[kind.unit]
            values = values.cast(pyarrow.int64() if kind.bit_width == 64 else pyarrow.int32())
        elif not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
            raise ValueError(f"column {column!r} holds {kind}, not numbers")
        found.columns[column] = values.cast(pyarrow.float64(), safe=False).to_numpy()
    return found


def _take_texts(table: Table, column: str, texts: Sequence[str]) -> None:
    """Put a column of times that are texts into a table."""
    table.columns[column], table.times, told = times_of_texts(texts, column)
    table.told += told


def _npy(name: str, columns: Sequence[str], time_column: str) -> Table:
    with open(name, "rb") as file:
        array = np.load(file, allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.ndim not in (1, 2):
        raise ValueError(f"a vector or a matrix is expected, got an array of shape {getattr(array, 'shape', None)}")
    array = array[:, None] if array.ndim == 1 else array
    _check_numbers(array, "the array")
    wanted = _wanted([str(i) for i in range(array.shape[1])], columns, time_column)
    return Table({column: array[:, int(column)] for column in wanted})


def _npz(name: str, columns: Sequence[str], time_column: str) -> Table:
    with zipfile.ZipFile(name) as members:
        for member in members.infolist():
            _check_count(member.file_size // 8)  # a small file can unpack to a very large one
    with open(name, "rb") as file:
        archive = np.load(file, allow_pickle=False)
        return _arrays(lambda key: archive[key] if key in archive.files else None, archive.files, columns, time_column)


def _hdf5(name: str, columns: Sequence[str], time_column: str) -> Table:
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

        return _arrays(dataset, list(file.keys()), columns, time_column)


def _arrays(get: Callable[[str], Column | None], names: Sequence[str], columns: Sequence[str], time_column: str) -> Table:
    """Columns from named arrays; ``imu.2`` is column 2 of the matrix ``imu``."""
    found = Table({})
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
        if column == time_column and column not in columns and array.dtype.kind in "USOM":
            _check_count(len(array))
            _take_times(found, column, array)
            continue
        _check_numbers(array, repr(column))
        found.columns[column] = array
    return found


def _take_times(table: Table, column: str, array: Column) -> None:
    """Put a column of times that are no numbers into a table: dates of numpy, or texts."""
    if array.dtype.kind == "M":
        stamps = array.astype("datetime64[ns]")
        table.columns[column] = np.where(np.isnat(stamps), np.nan, stamps.astype(np.int64).astype(np.float64))
        table.unit = TIME_UNITS["ns"]
        return
    texts = [cell.decode("utf-8", "replace") if isinstance(cell, bytes) else str(cell) for cell in array.tolist()]
    _take_texts(table, column, texts)


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
