"""Work in a forked process that is killed without warning: at a line of the code that is watched, or after a while."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


class LineCounter:
    """A trace function that counts lines run in some files, and kills the process at one of them.

    Args:
        parts: what the file names contain, one of these.
        inside: count only while a function of this name runs; None: always.
        kill_at: the line; None only counts.
    """

    def __init__(self, parts: tuple[str, ...], inside: str | None = None, kill_at: int | None = None) -> None:
        self.parts, self.inside, self.kill_at = parts, inside, kill_at
        self.lines = 0
        self._watched: dict[str, bool] = {}
        self._depth = int(inside is None)

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        name = frame.f_code.co_filename
        if name not in self._watched:
            self._watched[name] = any(part in name for part in self.parts)
        if not self._watched[name]:
            return None
        self._depth += frame.f_code.co_name == self.inside
        return self._step

    def _step(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line" and self._depth:
            self.lines += 1
            if self.lines == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        elif event == "return" and frame.f_code.co_name == self.inside:
            self._depth -= 1
        return self._step


def write_in_pieces() -> None:
    """Let torch and safetensors write their files piece by piece, so that a process can be killed in the middle of one."""
    import safetensors.torch
    import torch

    save = torch.save

    def pieces(data: bytes, path: Any) -> None:
        with open(path, "wb", buffering=0) as file:
            for start in range(0, len(data), max(1, len(data) // 4)):
                file.write(data[start : start + max(1, len(data) // 4)])

    def torch_save(value: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        memory = io.BytesIO()
        save(value, memory, *args, **kwargs)
        pieces(memory.getvalue(), path)

    def safetensors_save(tensors: Any, path: Any, metadata: Any = None) -> None:
        pieces(safetensors.torch.save(tensors, metadata), path)

    torch.save, safetensors.torch.save_file = torch_save, safetensors_save


def in_fork(
    work: Callable[[], Any], counter: LineCounter | None = None, seconds: float | None = None, errors: bool = False
) -> int | str | None:
    """Run ``work`` in a forked process.

    Args:
        work: what to do there.
        counter: counts its lines, and may kill it.
        seconds: kill it after that long.
        errors: give back the text of an error instead of raising.

    Returns:
        How many lines it ran, None if it was killed, or the text of its error.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        answer = "error: it ended early"
        try:
            os.close(reading)
            write_in_pieces()
            sys.settrace(counter)
            work()
            sys.settrace(None)
            answer = str(counter.lines if counter else 0)
        except BaseException as error:
            sys.settrace(None)
            answer = f"error: {type(error).__name__}: {error}"
        finally:
            os.write(writing, answer.encode())
            os._exit(0)
    os.close(writing)
    timer = None if seconds is None else threading.Timer(seconds, os.kill, (child, signal.SIGKILL))
    if timer:
        timer.start()
    said = b""
    while piece := os.read(reading, 65536):
        said += piece
    os.close(reading)
    if timer:
        timer.cancel()
    status = os.waitpid(child, 0)[1]
    text = said.decode()
    if not text:
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
        return None
    if text.startswith("error: "):
        assert errors, text
        return text
    return int(text)
