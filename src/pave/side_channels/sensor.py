"""Sensors: columns of numbers with times, and windows of them described by statistics, without weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, isfinite
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from pave.config import EncoderConfig
from pave.side_channels.base import SideFeatures

if TYPE_CHECKING:
    from typing_extensions import Self

STATISTICS = ("mean", "std", "min", "max", "slope", "last", "share")
"""What a window can say of a column, in the order of the features."""
TIME_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
"""Seconds of a unit."""
_ROUNDING = 1e-9
"""Seconds by which a time may miss the beginning of a window, and still count as in it."""
_MOST_OVERLAP = 1000


@dataclass(frozen=True, eq=False)
class SensorSeries:
    """Readings of one or more columns on the video's clock. A NaN is a gap: a column that has no value at that time.

    Raises:
        ValueError: if the shapes do not agree, a value is infinite, times are not finite, or they do not strictly ascend.
    """

    values_nC: NDArray[np.float64]
    """(n, columns); a vector is one column."""
    times_n: NDArray[np.float64]
    """Seconds on the video's clock (0 = first frame), each later than the one before; any distance."""
    names: tuple[str, ...]
    """Of the columns."""
    read_as: tuple[str, ...] = ()
    """How the file was read where that had to be found out, in words."""

    def __post_init__(self) -> None:
        values = np.asarray(self.values_nC, dtype=np.float64)
        times = np.asarray(self.times_n, dtype=np.float64)
        values = values[:, None] if values.ndim == 1 else values
        if values.ndim != 2 or times.shape != values.shape[:1]:
            raise ValueError(f"SensorSeries: {times.shape} times do not fit values of shape {values.shape}")
        if len(self.names) != values.shape[1] or len(set(self.names)) < len(self.names):
            raise ValueError(f"SensorSeries: {values.shape[1]} columns need as many different names, got {list(self.names)}")
        if np.isinf(values).any():
            row, column = np.argwhere(np.isinf(values))[0]
            raise ValueError(f"SensorSeries: the value of {self.names[column]!r} in reading {row} is infinite")
        if not np.isfinite(times).all():
            raise ValueError(f"SensorSeries: the time of reading {int(np.argmin(np.isfinite(times)))} is not a finite number")
        late = np.flatnonzero(np.diff(times) <= 0)
        if len(late):
            i = int(late[0])
            raise ValueError(
                f"SensorSeries: times must ascend, but reading {i + 1} at {times[i + 1]:.9g} s comes after reading {i} at {times[i]:.9g} s; "
                "correct them, or set unsorted: sort"
            )
        object.__setattr__(self, "values_nC", values)
        object.__setattr__(self, "times_n", times)
        object.__setattr__(self, "names", tuple(self.names))

    def __len__(self) -> int:
        return len(self.times_n)

    def select(self, names: Sequence[str]) -> SensorSeries:
        """The given columns, in the given order.

        Raises:
            ValueError: if one is not there.
        """
        missing = [name for name in names if name not in self.names]
        if missing:
            raise ValueError(f"there is no column {missing[0]!r}; there are {', '.join(map(repr, self.names))}")
        return SensorSeries(
            self.values_nC[:, [self.names.index(name) for name in names]], self.times_n, tuple(names), self.read_as
        )


class SensorWindows:
    """Each column of a sensor, described window by window: one token a step, no weights.

    Window k lies from ``k * stride_seconds`` on the video's clock for ``window_seconds`` and is centred in between; a reading
    belongs to it from its beginning on and before its end. Of the values a column has there: their mean, std (population),
    min, max, slope (least squares, units a second; 0 for one value), last, and share (of the window's readings, how many have a
    value of this column). The numbers of a column stand together, columns in order.

    A window without a value makes no step; nothing is filled in. If some columns have values and others none, the window makes
    a step only if share is among the statistics: the other numbers of an empty column are 0 and its share 0 says so.

    Args:
        columns: names of the columns that are used, in order; of an array in a file without names, numbers from 0.
        window_seconds: length of a window.
        stride_seconds: distance of windows, at most their length; None puts them side by side.
        statistics: which of those above, in the order of the features.
        mean: per column, taken off its values first.
        scale: per column, its values are divided by it afterwards.
        offset_seconds: added to the times of the readings.
        time_column: where a file has its times.
        time_unit: s, ms, us or ns, of the times in a file; auto tells from their size in which unit they count from 1970, and takes
            others for seconds. Times written as HH:MM:SS or ISO 8601 need none.
        rate: readings a second, for a file without times: reading i was taken at ``start + i / rate``.
        start: seconds on the video's clock of the first reading, with ``rate`` or ``zero`` "first".
        zero: "clock": times are on the video's clock, or on one whose zero a .json file says. "first": a log begins at ``start``,
            whatever its clock says.
        unsorted: "error" refuses a file whose times do not ascend. "sort" sorts its readings, and of those with the same time
            keeps the last in the file.

    Raises:
        ValueError: if a setting is wrong.
    """

    source: ClassVar[str] = "sensor"
    sample_rate: int | None = None

    def __init__(
        self,
        *,
        columns: Sequence[str | int],
        window_seconds: float = 1.0,
        stride_seconds: float | None = None,
        statistics: Sequence[str] = STATISTICS,
        mean: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
        offset_seconds: float = 0.0,
        time_column: str = "time",
        time_unit: str = "s",
        rate: float | None = None,
        start: float = 0.0,
        zero: str = "clock",
        unsorted: str = "error",
    ) -> None:
        self.columns = tuple(map(str, columns))
        self.time_column, self.time_unit, self.rate, self.start = time_column, time_unit, rate, start
        self.zero, self.unsorted = zero, unsorted
        self._window = window_seconds
        self._stride = window_seconds if stride_seconds is None else stride_seconds
        self._statistics = tuple(statistics)
        self._offset = offset_seconds
        self._check()
        self._mean = self._per_column("mean", mean, 0.0)
        self._scale = self._per_column("scale", scale, 1.0)
        if not (self._scale > 0).all():
            raise ValueError(f"sensor_windows: every scale must be above 0, got {self._scale.tolist()}")
        self._device = torch.device("cpu")

    def _check(self) -> None:
        def wrong(text: str) -> None:
            raise ValueError(f"sensor_windows: {text}")

        if not self.columns or len(set(self.columns)) < len(self.columns):
            wrong(f"columns must name at least one column and none twice, got {list(self.columns)}")
        if self.time_column in self.columns:
            wrong(f"the time column {self.time_column!r} is also among the columns; set time_column")
        if not 0 < self._window < float("inf"):
            wrong(f"window_seconds must be a positive number, got {self._window}")
        if not 0 < self._stride <= self._window or self._window / self._stride > _MOST_OVERLAP:
            wrong(
                f"stride_seconds must be at most the window of {self._window:g} s, so that no reading is left out, and at least a thousandth "
                f"of it, got {self._stride:g}"
            )
        unknown = [name for name in self._statistics if name not in STATISTICS]
        if unknown or not self._statistics or len(set(self._statistics)) < len(self._statistics):
            wrong(f"statistics must be some of {', '.join(STATISTICS)}, none twice, got {list(self._statistics)}")
        if self.time_unit not in (*TIME_UNITS, "auto"):
            wrong(f"time_unit must be one of {', '.join(TIME_UNITS)}, auto, got {self.time_unit!r}")
        if self.zero not in ("clock", "first"):
            wrong(f"zero must be 'clock' or 'first', got {self.zero!r}")
        if self.unsorted not in ("error", "sort"):
            wrong(f"unsorted must be 'error' or 'sort', got {self.unsorted!r}")
        if self.rate is not None and not 0 < self.rate < float("inf"):
            wrong(f"rate must be a positive number of readings a second, got {self.rate}")
        if not isfinite(self._offset) or not isfinite(self.start):
            wrong(f"offset_seconds and start must be finite, got {self._offset} and {self.start}")

    def _per_column(self, name: str, values: Sequence[float] | None, default: float) -> NDArray[np.float64]:
        if values is None:
            return np.full(len(self.columns), default)
        array = np.asarray(values, dtype=np.float64)
        if array.shape != (len(self.columns),) or not np.isfinite(array).all():
            raise ValueError(
                f"sensor_windows: {name} must be a list of {len(self.columns)} numbers, one for each column, got {values}"
            )
        return array

    @property
    def width(self) -> int:
        """C: columns times statistics."""
        return len(self.columns) * len(self._statistics)

    @property
    def tokens_per_step(self) -> int:
        """M, always 1."""
        return 1

    def encode(self, source: SensorSeries) -> SideFeatures:
        """Features of a series: (K, 1, width) float32, K = 0 where it has no value at all.

        Raises:
            ValueError: if a column is not there.
        """
        series = source.select(self.columns)
        times_n = series.times_n + self._offset
        values_nC = (series.values_nC - self._mean) / self._scale
        first_K = self._windows_of(times_n)
        begins = np.searchsorted(times_n, first_K * self._stride - _ROUNDING)
        ends = np.searchsorted(times_n, first_K * self._stride + self._window - _ROUNDING)
        rows, kept = [], []
        for k, begin, end in zip(first_K.tolist(), begins.tolist(), ends.tolist(), strict=True):
            described = self._describe(times_n[begin:end], values_nC[begin:end])
            if described is not None:
                rows.append(described)
                kept.append(k * self._stride + self._window / 2)
        features_KC = np.array(rows, dtype=np.float32).reshape(len(rows), self.width)
        return SideFeatures(torch.from_numpy(features_KC).to(self._device), torch.tensor(kept, dtype=torch.float64))

    def _windows_of(self, times_n: NDArray[np.float64]) -> NDArray[np.int64]:
        """The numbers of all windows that hold a reading, ascending."""
        newest = np.unique(np.floor((times_n + _ROUNDING) / self._stride).astype(np.int64))
        reach = np.arange(ceil(self._window / self._stride), dtype=np.int64)
        return np.unique(newest[:, None] - reach)

    def _describe(self, times_w: NDArray[np.float64], values_wC: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """The numbers of one window, or None if it makes no step."""
        there_wC = ~np.isnan(values_wC)
        filled_C = there_wC.any(axis=0)
        if not filled_C.any() or ("share" not in self._statistics and not filled_C.all()):
            return None
        numbers = np.zeros((values_wC.shape[1], len(self._statistics)))
        for column in np.flatnonzero(filled_C):
            there = there_wC[:, column]
            found = _statistics(times_w[there], values_wC[there, column], float(there.mean()))
            numbers[column] = [found[name] for name in self._statistics]
        return numbers.reshape(-1)

    def encode_batch(self, sources: Sequence[SensorSeries]) -> list[SideFeatures]:
        """Features of several series, in order."""
        return [self.encode(source) for source in sources]

    def spec(self) -> EncoderConfig:
        """Every setting, also those left at their default."""
        settings: dict[str, Any] = {
            "columns": list(self.columns),
            "window_seconds": self._window,
            "stride_seconds": self._stride,
            "statistics": list(self._statistics),
            "mean": self._mean.tolist(),
            "scale": self._scale.tolist(),
            "offset_seconds": self._offset,
            "time_column": self.time_column,
            "time_unit": self.time_unit,
            "rate": self.rate,
            "start": self.start,
            "zero": self.zero,
            "unsorted": self.unsorted,
        }
        return EncoderConfig(name="sensor_windows", settings=settings)

    def to(self, device: torch.device | str) -> Self:
        """Put the features on this device; they are computed on the CPU."""
        self._device = torch.device(device)
        return self

    def __repr__(self) -> str:
        return f"SensorWindows({', '.join(f'{k}={v}' for k, v in self.spec().settings.items())})"


def _statistics(times: NDArray[np.float64], values: NDArray[np.float64], share: float) -> dict[str, float]:
    """Of the values that a column has in a window."""
    centred = times - times.mean()
    spread = float(centred @ centred)
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "min": float(values.min()),
        "max": float(values.max()),
        "slope": float(centred @ (values - values.mean())) / spread if spread > 0 else 0.0,
        "last": float(values[-1]),
        "share": share,
    }
