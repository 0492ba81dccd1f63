"""Programs of this library in processes of their own: what hangs or crashes there costs a process, not the run.

Parent and child talk in lines of JSON; bytes may follow a line that announces them. Nothing that comes from a child is unpickled: the
file that it reads may be hostile. A child does not import the script that called, so that the script needs no guard.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO

_PROGRAM = "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[1]); importlib.import_module(sys.argv[2]).main()"
"""What a child runs: modules come from where they come from in the parent, and from nowhere else."""
_BODY = "bytes behind this line"
"""The key under which a line announces them."""
_LEAVING_SECONDS = 2.0
"""That a child may take to leave by itself."""


class Child:
    """The ``main`` of a module in a process of its own, started by ``start`` and again after it ended. For one thread at a time.

    Args:
        module: whose ``main`` reads requests from ``requests`` and answers into ``answers``, both below.
        silent: what the child says on standard error is thrown away.
    """

    def __init__(self, module: str, *, silent: bool = False) -> None:
        self._module = module
        self._silent = silent
        self._process: subprocess.Popen[bytes] | None = None
        self._late = threading.Event()

    @property
    def late(self) -> bool:
        """Whether it was ended because its time was over."""
        return self._late.is_set()

    def start(self, first: Any) -> bool:
        """Start it unless it runs, and tell it what it has to know once. True if it did not run before."""
        if self._process is not None and self._process.poll() is None:
            return False
        if self._process is not None:
            self.end()
        self._late.clear()
        path = json.dumps([os.path.abspath(part) for part in sys.path])
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _PROGRAM, path, self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if self._silent else None,
        )
        self.send(first)
        return True

    def send(self, value: Any) -> None:
        """Send a line. That the child has ended is told by its missing answer."""
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(value).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            return

    def receive(self, seconds: float | None, most_bytes: int = 0) -> tuple[dict[str, Any], bytearray] | None:
        """The next line, with the bytes that it announces, or None where the child has ended.

        Args:
            seconds: after which it is ended (``late``); None waits.
            most_bytes: that may be announced; a child that announces more is ended.
        """
        assert self._process is not None and self._process.stdout is not None
        timer = None if seconds is None else threading.Timer(max(0.0, seconds), self._time_is_over, [self._process])
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            return self._read(self._process.stdout, most_bytes)
        finally:
            if timer is not None:
                timer.cancel()

    def _read(self, answers: Any, most_bytes: int) -> tuple[dict[str, Any], bytearray] | None:
        line = answers.readline()
        if not line.endswith(b"\n"):
            return None
        value: dict[str, Any] = json.loads(line)
        count = value.pop(_BODY, 0)
        if not 0 <= count <= most_bytes:
            self.kill()
            return None
        body = bytearray(count)
        view, filled = memoryview(body), 0
        while filled < count:
            got = answers.readinto(view[filled:])
            if not got:
                return None
            filled += got
        return value, body

    def _time_is_over(self, process: subprocess.Popen[bytes]) -> None:
        self._late.set()
        process.kill()

    def kill(self) -> None:
        """End what it is doing, at once; for any thread. ``receive`` then says that it has ended."""
        process = self._process
        if process is not None:
            process.kill()

    def end(self) -> int | None:
        """Clean up after it has ended, or let it end; its status, None if it was never started."""
        process = self._process
        if process is None:
            return None
        self._process = None
        for pipe in (process.stdin, process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:
                continue
        try:
            return process.wait(_LEAVING_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def requests() -> Iterator[Any]:
    """In a child: what it is sent, until the parent closes the pipe or is gone. The first is what it has to know once."""
    for line in iter(sys.stdin.buffer.readline, b""):
        yield json.loads(line)


class Answers:
    """In a child: the way back. From when it is made, whatever libraries print goes to standard error."""

    def __init__(self) -> None:
        self._out: BinaryIO = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)

    def send(self, value: dict[str, Any], *arrays: Any) -> None:
        """A line, and after it the bytes of contiguous arrays."""
        size = sum(array.nbytes for array in arrays)
        self._out.write(json.dumps({**value, _BODY: size} if arrays else value).encode() + b"\n")
        for array in arrays:
            self._out.write(memoryview(array).cast("B") if array.nbytes else b"")
        self._out.flush()
