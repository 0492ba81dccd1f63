"""Giving up what waits for something outside of this process: at a deadline, or from another thread."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar


class Stop:
    """Ends what is done for one request.

    Args:
        deadline: ``time.monotonic()`` after which nothing is begun any more, and nothing should last.
    """

    def __init__(self, deadline: float = math.inf) -> None:
        self._deadline = deadline
        self._stopped = False
        self._cut: Callable[[], None] | None = None
        self._lock = threading.Lock()

    @property
    def left(self) -> float:
        """Seconds until the deadline; 0 where it has passed or ``stop`` was called."""
        return 0.0 if self._stopped else max(0.0, self._deadline - time.monotonic())

    def stop(self) -> None:
        """End it; for any thread."""
        with self._lock:
            self._stopped = True
            if self._cut is not None:
                self._cut()

    @contextlib.contextmanager
    def cutting(self, cut: Callable[[], None]) -> Iterator[None]:
        """While the block runs, ``stop`` calls ``cut``, from its own thread; at once where it was called before."""
        with self._lock:
            self._cut = cut
            if self._stopped:
                cut()
        try:
            yield
        finally:
            with self._lock:
                self._cut = None


_STOP: ContextVar[Stop | None] = ContextVar("pave_stop", default=None)


@contextlib.contextmanager
def stopped_by(stop: Stop) -> Iterator[None]:
    """Within the block, in this thread or task, readings and fetches end when ``stop`` says so."""
    token = _STOP.set(stop)
    try:
        yield
    finally:
        _STOP.reset(token)


def current_stop() -> Stop:
    """What ends the work of this thread or task; without ``stopped_by`` nothing does."""
    return _STOP.get() or Stop()
