"""Pieces of work side by side, each in a process with one thread and without a GPU."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from queue import SimpleQueue
from typing import Any


def side_by_side(
    work: Callable[..., object],
    pieces: Sequence[tuple[str, tuple[Any, ...]]],
    processes: int,
    before: tuple[Callable[..., None], tuple[Any, ...]] | None = None,
) -> Iterator[int]:
    """Call a function of a module once for each piece, and yield the place of each piece as it is finished.

    Every process is a pool of its own, so that an error can name the piece whose process was killed.

    Args:
        work: the function to call.
        pieces: what an error calls the piece, and the arguments.
        processes: how many at most.
        before: a function with its arguments, called in every process before its first piece.

    Raises:
        RuntimeError: naming the piece that failed or whose process ended. Pieces that have begun are waited for,
            the others are not made.
    """
    context = multiprocessing.get_context("spawn")  # forking a process that runs torch's threads can hang
    free: SimpleQueue[ProcessPoolExecutor] = SimpleQueue()

    def in_a_process(arguments: tuple[Any, ...]) -> None:
        pool = free.get()
        try:
            pool.submit(work, *arguments).result()
        finally:
            free.put(pool)

    with ExitStack() as stack:
        for _ in range(processes):
            free.put(stack.enter_context(ProcessPoolExecutor(1, context, _begin, (before,))))
        threads = stack.enter_context(ThreadPoolExecutor(processes))
        futures = {threads.submit(in_a_process, arguments): place for place, (_, arguments) in enumerate(pieces)}
        for future in as_completed(futures):
            error = future.exception()
            if error is not None:
                threads.shutdown(cancel_futures=True)
                raise RuntimeError(f"{pieces[futures[future]][0]}: {_reason(error)}") from error
            yield futures[future]


def one_thread_no_gpu() -> None:
    """Settings for a process that shares the machine; the Trainer would take a GPU where there is one."""
    os.environ.update({"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"})


def _begin(before: tuple[Callable[..., None], tuple[Any, ...]] | None) -> None:
    one_thread_no_gpu()
    if before is not None:
        function, arguments = before
        function(*arguments)


def _reason(error: BaseException) -> str:
    if isinstance(error, BrokenProcessPool):
        return (
            "its process was ended from outside, often for want of memory; what is finished is kept: run the command "
            "again, with fewer processes if memory is short"
        )
    return f"{type(error).__name__}: {error}"
