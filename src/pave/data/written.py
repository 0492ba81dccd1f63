"""Numbers and times as people and programs write them into text files, read strictly."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from math import isinf
from typing import Literal

_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?:inf|infinity|nan)", re.IGNORECASE)
_CLOCK = re.compile(r"([0-9]{1,4}):([0-5][0-9]):([0-5][0-9])(?:[.,]([0-9]{1,12}))?")
_DATE = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:[.,]([0-9]{1,12}))?)?"
    r" ?(?:([Zz])|([+-])([0-9]{2}):?([0-9]{2}))?"
)
_ZERO = datetime.datetime(1970, 1, 1)

TimeKind = Literal["clock", "date", "date with a time zone"]


@dataclass(frozen=True)
class WrittenTime:
    """A time that is no plain number."""

    kind: TimeKind
    """clock: HH:MM:SS, counted from 00:00:00. The others: ISO 8601, counted from 1970 (without a time zone: of its own zone)."""
    seconds: float


def number_of(text: str) -> float | None:
    """The number that a text is, NaN and infinity among them, or None. Nothing but ASCII digits, sign, point and exponent: what
    Python's ``float`` takes beyond that (``1_000``, digits of other scripts) is no number of a data file, and neither is one that is
    too large for it."""
    text = text.strip()
    found = float(text) if _NUMBER.fullmatch(text) else None
    return None if found is not None and isinf(found) and text[-1] in "0123456789." else found


def time_of(text: str) -> WrittenTime | None:
    """The time that a text is, HH:MM:SS or ISO 8601 with date and time, or None."""
    text = text.strip()
    clock = _CLOCK.fullmatch(text)
    if clock:
        hours, minutes, seconds, fraction = clock.groups()
        return WrittenTime("clock", int(hours) * 3600 + int(minutes) * 60 + int(seconds) + _fraction(fraction))
    found = _DATE.fullmatch(text)
    if found is None:
        return None
    *parts, fraction, utc, sign, zone_hours, zone_minutes = found.groups()
    try:
        moment = datetime.datetime(*(int(part or 0) for part in parts))  # type: ignore[arg-type]
    except ValueError:  # the 30th of February
        return None
    whole = (moment - _ZERO) // datetime.timedelta(seconds=1)
    if sign:
        whole -= (1 if sign == "+" else -1) * (int(zone_hours) * 3600 + int(zone_minutes) * 60)
    return WrittenTime("date with a time zone" if utc or sign else "date", whole + _fraction(fraction))


def _fraction(digits: str | None) -> float:
    return float(f"0.{digits}") if digits else 0.0
