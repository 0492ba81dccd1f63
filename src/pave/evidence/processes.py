"""Work of a reproduction side by side, each piece in a process with one thread and without a GPU."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any


def side_by_side(work: Callable[..., object], pieces: Sequence[tuple[str, tuple[Any, ...]]], processes: int) -> Iterator[int]:
    """Call a function of a module once for each piece, and yield the place of each piece as it is finished.

    Args:
        work: what is called.
        pieces: what an error calls the piece, and the arguments.
        processes: at most.

    Raises:
        RuntimeError: naming the piece that failed; those that have not begun are not made.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=one_thread_no_gpu) as pool:
        futures = {pool.submit(work, *arguments): place for place, (_, arguments) in enumerate(pieces)}
        for future in as_completed(futures):
            try:
                future.result()
            except Exception as error:
                pool.shutdown(cancel_futures=True)
                raise _failure(pieces[futures[future]][0], error) from error
            yield futures[future]


def one_thread_no_gpu() -> None:
    """What every process of a reproduction does first; the Trainer would take a GPU where there is one."""
    os.environ.update({"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"})


def _failure(name: str, error: Exception) -> RuntimeError:
    """A process that was killed takes the others with it, so that none is named."""
    if isinstance(error, BrokenProcessPool):
        return RuntimeError(
            "a process was killed from outside, often for want of memory; what is finished is kept: run the command again, with "
            "--processes 1 if memory is short"
        )
    return RuntimeError(f"{name}: {error}")
