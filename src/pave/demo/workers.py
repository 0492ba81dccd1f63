"""Jobs that run side by side, each in a process of its own with one thread, with one bar (or log line) for each."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

logger = logging.getLogger(__name__)

Tell = Callable[[int, int], None]
"""Called by a job with the steps done and the steps there are."""


def _work(name: str, job: Callable[..., None], arguments: Mapping[str, Any], queue: Any) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        import torch

        torch.set_num_threads(1)
        job(**arguments, tell=lambda done, total: queue.put((name, "step", done, total)))
        queue.put((name, "done", 0, 0))
    except BaseException as error:
        queue.put((name, "failed", f"{type(error).__name__}: {error}", traceback.format_exc()))
        raise


def run_side_by_side(jobs: Mapping[str, tuple[Callable[..., None], Mapping[str, Any]]]) -> None:
    """Run functions in processes of their own until all are done.

    Args:
        jobs: by name, (function of a module, keyword arguments). The function is also given ``tell``.

    Raises:
        RuntimeError: if one of them fails or dies; the others are ended.
    """
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    processes = {
        name: context.Process(target=_work, args=(name, job, dict(arguments), queue), daemon=True)
        for name, (job, arguments) in jobs.items()
    }
    for process in processes.values():
        process.start()
    show = _Bars(list(jobs)) if sys.stderr.isatty() else _Lines()
    running = set(jobs)
    try:
        while running:
            message = _next(queue, {n: p for n, p in processes.items() if n in running})
            name, kind, first, second = message
            if kind == "failed":
                logger.debug("%s", second)
                raise RuntimeError(f"{name}: {first}")
            if kind == "done":
                running.discard(name)
            show.update(name, first, second, finished=kind == "done")
    finally:
        show.close()
        for process in processes.values():
            if process.is_alive() and running:
                process.terminate()
            process.join(timeout=30)


def _next(queue: Any, processes: Mapping[str, Any]) -> tuple[str, str, Any, Any]:
    import queue as queues

    while True:
        try:
            message: tuple[str, str, Any, Any] = queue.get(timeout=1.0)
            return message
        except queues.Empty:
            for name, process in processes.items():
                if process.exitcode is not None and queue.empty():
                    return name, "failed", f"the process ended with exit code {process.exitcode}", ""


class _Lines:
    """A log line for each job every ten seconds."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.last: dict[str, float] = {}

    def update(self, name: str, done: int, total: int, finished: bool) -> None:
        now = time.monotonic()
        if finished:
            logger.info("%s: done, %.0f s", name, now - self.start)
        elif now - self.last.get(name, self.start) >= 10:
            self.last[name] = now
            logger.info("%s: %d of %d, %.0f s", name, done, total, now - self.start)

    def close(self) -> None:
        pass


class _Bars:
    """A bar for each job."""

    def __init__(self, names: list[str]) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self.progress = Progress(console=Console(stderr=True), transient=True)
        self.tasks = {name: self.progress.add_task(name, total=None) for name in names}
        self.progress.start()

    def update(self, name: str, done: int, total: int, finished: bool) -> None:
        if finished:
            self.progress.update(self.tasks[name], total=1, completed=1)
        else:
            self.progress.update(self.tasks[name], total=total, completed=done)

    def close(self) -> None:
        self.progress.stop()
