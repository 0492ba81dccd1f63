"""Reading files in child processes: with limits of time and memory, and without harm if a decoder crashes.

A child runs ``child_main``. It answers with the fields of what it read, and behind them the bytes of their arrays. Nothing is pickled: the file may be hostile,
and so may what its decoder hands back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from contextvars import ContextVar
from queue import SimpleQueue
from typing import Any

import numpy as np

from pave.data.media import container
from pave.data.media.container import MediaError
from pave.utils.children import Child
from pave.utils.stops import current_stop

_MOST_BYTES = 32 * 2**30
"""Of arrays that a child may announce where no limit of memory is given: the readers' own limits are lower."""


@dataclasses.dataclass(frozen=True)
class ChildLimits:
    """What reading one file may cost."""

    seconds: float = 30.0
    """Most time."""
    memory: int = 2 * 2**30
    """Most bytes that a process takes for it."""
    pixels: int = container.MAX_PIXELS
    """Largest picture that is decoded."""
    packets: int = container.MAX_PACKETS
    """Longest stream of packets that is read."""


class MediaChildren:
    """Processes that read files for this one, started when they are first needed and again after they ended. For many threads.

    Args:
        count: of processes; more callers wait.
        limits: of each reading; None for the readers' own.
    """

    def __init__(self, count: int, limits: ChildLimits | None = None) -> None:
        self.limits = limits
        self._all = [Child("pave.data.media.child_main", silent=True) for _ in range(count)]
        self._free: SimpleQueue[Child] = SimpleQueue()
        for child in self._all:
            self._free.put(child)

    def call(self, function: str, path: str | os.PathLike[str], options: dict[str, Any], timeout: float) -> dict[str, Any]:
        """What ``run_in_child`` says."""
        name = os.fspath(path)
        stop = current_stop()
        if not stop.left:
            raise MediaError(f"{name}: reading was given up", "media-timeout")
        timeout = min(timeout, stop.left)
        child = self._free.get()
        try:
            child.start(None if self.limits is None else dataclasses.asdict(self.limits))
            with stop.cutting(child.kill):
                child.send({"function": function, "path": os.path.abspath(name), "options": options})
                received = child.receive(timeout, self.limits.memory if self.limits else _MOST_BYTES)
            if received is None:
                status = child.end()
                if not stop.left:
                    raise MediaError(f"{name}: reading was given up", "media-timeout")
                if child.late:
                    raise MediaError(f"{name}: reading took longer than the {timeout:g} s allowed", "media-timeout")
                raise MediaError(f"{name}: the process that read it ended with status {status}", "media-crash")
            if not stop.left:  # it may have been killed just behind its answer, and would be taken for one that runs
                child.end()
            answer, body = received
            if "error" in answer:
                if answer["code"] == "media-memory":  # what is left of it may be too much for the next file
                    child.end()
                raise MediaError(answer["error"].replace(os.path.abspath(name), name), answer["code"])
            return _with_arrays(answer, body)
        except BaseException as error:
            if not isinstance(error, MediaError):  # an interrupt: the answer that is still to come is nobody's
                child.kill()
                child.end()
            raise
        finally:
            self._free.put(child)

    def close(self) -> None:
        """End them all. Readings under way fail."""
        for child in self._all:
            child.kill()
        for _ in self._all:
            self._free.get().end()


_CHILDREN: ContextVar[MediaChildren | None] = ContextVar("pave_media_children", default=None)


@contextlib.contextmanager
def reading_in_children(children: MediaChildren) -> Iterator[None]:
    """Within the block, in this thread or task, every media file is read in one of these processes."""
    token = _CHILDREN.set(children)
    try:
        yield
    finally:
        _CHILDREN.reset(token)


def reads_in_child(timeout: float | None = None) -> bool:
    """Whether a reader has to hand over to ``run_in_child``."""
    return timeout is not None or _CHILDREN.get() is not None


def run_in_child(
    function: str, path: str | os.PathLike[str], options: dict[str, Any], timeout: float | None = None
) -> dict[str, Any]:
    """Call a reader in a child: one of ``reading_in_children``, else a fresh one.

    Args:
        function: its name, one of ``child_main``'s.
        path: the file.
        options: its keyword arguments, as JSON has them.
        timeout: seconds, of a fresh process the start included (about half a second).

    Returns:
        The fields of the dataclass that the reader returns; of an array "array"; empty where it returns None.

    Raises:
        MediaError: what the child raised, or that the time is over, or that the child crashed.
        ValueError: if ``timeout`` is not positive.
    """
    if timeout is not None and not timeout > 0:
        raise ValueError(f"{function}: timeout must be a positive number of seconds, got {timeout}")
    children = _CHILDREN.get()
    if children is not None and children.limits is not None:
        return children.call(function, path, options, min(timeout or children.limits.seconds, children.limits.seconds))
    assert timeout is not None
    alone = MediaChildren(1)
    try:
        return alone.call(function, path, options, timeout)
    finally:
        alone.close()


def _with_arrays(answer: dict[str, Any], body: bytearray) -> dict[str, Any]:
    fields: dict[str, Any] = answer["fields"]
    start = 0
    for field, (dtype, shape) in answer["arrays"].items():
        count = int(np.prod(shape, dtype=np.int64))
        array = np.frombuffer(body, dtype=dtype, count=count, offset=start).reshape(shape)
        fields[field] = array if start == 0 else array.copy()  # which lies where its numbers may lie
        start += array.nbytes
    return fields
