"""Logging and progress. Both go to standard error: standard output belongs to results."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import TypeVar

_T = TypeVar("_T")
_HANDLER_NAME = "pave"


def setup_logging(level: int = logging.INFO) -> None:
    """Send the messages of this package to standard error. For programs, not for the library; calling it twice is harmless."""
    logger = logging.getLogger("pave")
    logger.setLevel(level)
    logger.propagate = False
    for handler in [h for h in logger.handlers if h.get_name() == _HANDLER_NAME]:
        logger.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.set_name(_HANDLER_NAME)
    handler.setFormatter(logging.Formatter("%(message)s" if level >= logging.INFO else "%(asctime)s %(name)s: %(message)s"))
    logger.addHandler(handler)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines whose columns begin under each other, as wide as their widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def track(
    items: Iterable[_T], description: str, *, total: int | None = None, every_seconds: float = 10.0, enabled: bool = True
) -> Iterator[_T]:
    """Yield ``items`` and show how far the work is, with an estimate of the time left: a bar on a terminal, otherwise a log line
    now and then. Nothing is shown where only warnings are wanted.

    Args:
        items: what to go through.
        description: the work, such as ``"Scoring"``.
        total: how many items there are, where ``len(items)`` does not say.
        every_seconds: seconds between two log lines where standard error is not a terminal.
        enabled: False only yields.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if not enabled or logging.getLogger("pave").level > logging.INFO:
        yield from items
    elif sys.stderr.isatty():
        yield from _track_with_bar(items, description, total)
    else:
        yield from _track_with_lines(items, description, total, every_seconds)


def _track_with_bar(items: Iterable[_T], description: str, total: int | None) -> Iterator[_T]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=total)
        for item in items:
            yield item
            progress.advance(task)


def _track_with_lines(items: Iterable[_T], description: str, total: int | None, every_seconds: float) -> Iterator[_T]:
    logger = logging.getLogger("pave.progress")
    start = last = time.monotonic()
    of_total = f" of {total}" if total is not None else ""
    count = 0
    for count, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= every_seconds and count != total:
            last = now
            logger.info("%s: %d%s, %.0f s%s", description, count, of_total, now - start, _time_left(count, total, now - start))
    logger.info("%s: %d%s done, %.0f s", description, count, of_total, time.monotonic() - start)


def _time_left(done: int, total: int | None, seconds: float) -> str:
    """``, about 2 min left`` for what remains at the pace so far; nothing where the end is not known."""
    if total is None or not 0 < done < total:
        return ""
    left = seconds / done * (total - done)
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if left >= 1.5 * size:
            return f", about {left / size:.0f} {unit} left"
    return f", about {left:.0f} s left"
