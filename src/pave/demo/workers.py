"""The demo's trainings side by side, with one bar (or log line) for each."""

from __future__ import annotations

import logging
import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping
from threading import Thread
from typing import Any

from pave.utils.processes import side_by_side

logger = logging.getLogger(__name__)

Tell = Callable[[int, int], None]
"""Called by a job with the steps done and the steps there are."""
_EVERY_SECONDS = 10.0
_news: Any = None
"""In a process of a job, the queue that its news go into."""


def run_side_by_side(jobs: Mapping[str, tuple[Callable[..., None], Mapping[str, Any]]]) -> None:
    """Run functions in processes of their own until all are done.

    Args:
        jobs: by name, (function of a module, keyword arguments). The function is also given ``tell``.

    Raises:
        RuntimeError: naming the job that failed or whose process ended, after the others have ended.
    """
    news: Any = multiprocessing.get_context("spawn").Queue()
    watcher = Thread(target=_watch, args=(news, list(jobs)), daemon=True)
    watcher.start()
    names = list(jobs)
    try:
        pieces = [(name, (name, function, dict(arguments))) for name, (function, arguments) in jobs.items()]
        for place in side_by_side(_work, pieces, len(pieces), (_begin, (news,))):
            news.put((names[place], None, None))
    finally:
        news.put(None)
        watcher.join()


def _begin(news: Any) -> None:
    global _news
    _news = news


def _work(name: str, job: Callable[..., None], arguments: Mapping[str, Any]) -> None:
    import torch

    torch.set_num_threads(1)
    job(**arguments, tell=lambda done, total: _news.put((name, done, total)))


def _watch(news: Any, names: list[str]) -> None:
    """Show what the jobs tell, until the end is told: bars on a terminal, otherwise a log line now and then."""
    from rich.console import Console
    from rich.progress import Progress

    on_terminal = sys.stderr.isatty()
    start = time.monotonic()
    last = dict.fromkeys(names, start)
    with Progress(console=Console(stderr=True), transient=True, disable=not on_terminal) as progress:
        bars = {name: progress.add_task(name, total=None) for name in names}
        for name, done, total in iter(news.get, None):
            now = time.monotonic()
            if done is None:
                progress.update(bars[name], total=1, completed=1)
                logger.info("%s: done, %.0f s", name, now - start)
                continue
            progress.update(bars[name], total=total, completed=done)
            if not on_terminal and now - last[name] >= _EVERY_SECONDS:
                last[name] = now
                logger.info("%s: %d of %d, %.0f s", name, done, total, now - start)
