"""From the times in a sensor's file to seconds on the video's clock."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pave.data.sensor_csv import Table
from pave.data.written import WrittenTime
from pave.side_channels.sensor import TIME_UNITS

_CALENDAR = 1e7
"""A video does not last a third of a year: times beyond that are counted from another zero."""
_EPOCH = 1e8
"""Numbers from here on, up to a thousand times that, count seconds since 1970 (from March 1973 on); the next three orders of
magnitude milliseconds, and so on."""
_UNIT_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


@dataclass(frozen=True)
class SensorClock:
    """How the times of a file are to be understood; the settings are those of ``SensorWindows``."""

    time_column: str
    time_unit: str
    rate: float | None
    start: float
    zero: str
    origin: float | WrittenTime | None = None
    """What the log's clock showed at the video's first frame, where a ``SensorLink`` says so."""

    def seconds(self, table: Table, count: int) -> tuple[NDArray[np.float64], list[str]]:
        """Seconds of ``count`` readings on the video's clock, and what was found out about the times, in words.

        Raises:
            ValueError: if there are no times, or they lie where no video is.
        """
        if self.zero == "first" and self.origin is not None:
            raise ValueError("the .json file gives a zero, and the setting zero 'first' another; take one of them away")
        raw = table.columns.get(self.time_column)
        if raw is None:
            if self.rate is None:
                raise ValueError(f"there is no time column {self.time_column!r}; set time_column, or rate (readings a second)")
            return self.start + np.arange(count, dtype=np.float64) / self.rate, []
        numbers_n = raw.astype(np.float64)
        unit, told = self._unit(table, numbers_n)
        if self.zero == "first" and count:
            told.append(f"the first reading at {self.start:g} s of the video")
            return (numbers_n - numbers_n.min()) * unit + self.start, told
        times_n: NDArray[np.float64] = (numbers_n - self._origin(table, unit)) * unit
        far = times_n[np.abs(times_n) > _CALENDAR]
        if len(far):
            raise ValueError(self._far(float(far[0]), numbers_n, table))
        return times_n, told

    def _unit(self, table: Table, numbers_n: NDArray[np.float64]) -> tuple[float, list[str]]:
        """Seconds of a unit, and that in words where it was found out."""
        if table.times is not None:
            return 1.0, []
        if table.unit is not None or self.time_unit != "auto":
            return (TIME_UNITS[self.time_unit] if table.unit is None else table.unit), []
        name = _epoch_unit(numbers_n)
        told = "times as seconds" if name is None else f"times as {_UNIT_NAMES[name]} since 1970"
        return TIME_UNITS[name or "s"], [told]

    def _origin(self, table: Table, unit: float) -> float:
        """The zero of the log's clock, in the unit of its times."""
        if not isinstance(self.origin, WrittenTime):
            return self.origin or 0.0
        if table.times is None and self.origin.kind == "date with a time zone":  # numbers since 1970
            return self.origin.seconds / unit
        if table.times != self.origin.kind:
            times = (
                "numbers"
                if table.times is None
                else f"of the kind {table.times!r} (as HH:MM:SS, or as ISO 8601 with or without zone)"
            )
            raise ValueError(
                f"the zero in the .json file is of the kind {self.origin.kind!r}, which cannot be taken off its times, which are {times}; "
                "write the zero as the log writes its times"
            )
        return self.origin.seconds

    def _far(self, seconds: float, numbers_n: NDArray[np.float64], table: Table) -> str:
        looks = _epoch_unit(numbers_n)
        hint = "set time_unit"
        if table.times is None and table.unit is None and looks not in (None, self.time_unit) and self.time_unit != "auto":
            hint = f"it looks like {_UNIT_NAMES[looks or 's']} since 1970: set time_unit to {looks} or auto"
        return (
            f"it has a time of {seconds:.6g} s on the video's clock; {hint}, or name a .json file that says what the log's clock showed "
            "at the first frame ('zero'), or set zero: first where the log begins with the video"
        )


def _epoch_unit(numbers_n: NDArray[np.float64]) -> str | None:
    """The unit in which numbers count from 1970, None where they do not."""
    finite_n = numbers_n[np.isfinite(numbers_n)]
    if not len(finite_n):
        return None
    return next((name for i, name in enumerate(TIME_UNITS) if _EPOCH <= finite_n[0] / 1000**i < 1000 * _EPOCH), None)
