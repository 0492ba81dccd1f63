"""One thread that generates: requests wait in one bounded queue and share batches where their videos allow it."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pave.serving.errors import ApiError
from pave.serving.limits import Limits

logger = logging.getLogger(__name__)

_LONGEST_RETRY = 60


class Generator(Protocol):
    """What the scheduler needs of ``pave.inference.Engine``."""

    def key(self, read: Any) -> Hashable:
        """Requests with equal keys may share a batch."""

    def generate(
        self,
        reads: Sequence[Any],
        *,
        on_text: Callable[[int, str], None] | None = None,
        cancelled: Callable[[int], bool] | None = None,
    ) -> list[Any]:
        """The answers of one batch."""


@dataclass(eq=False)
class Job:
    """One answer that is wanted."""

    read: Any
    """The request with everything that was read for it."""
    deadline: float
    """``time.monotonic()`` after which nobody waits for it."""
    done: Callable[[Any], None]
    """Called once from the scheduler's thread with the answer, or the exception that there is instead."""
    on_text: Callable[[str], None] | None = None
    """Called there with pieces of the text as they come."""
    work: Callable[[Any], Any] | None = None
    """What is done with ``read`` instead of answering it; it shares no batch."""
    frames: Any = None
    """That it holds while it waits: an array, or None."""
    key: Hashable = None
    arrived: float = field(default_factory=time.monotonic)
    told: int = 0
    """Characters that ``on_text`` was given."""
    cancelled: bool = False

    @property
    def late(self) -> bool:
        """Whether its deadline has passed."""
        return time.monotonic() > self.deadline

    @property
    def unwanted(self) -> bool:
        """Whether to stop working on it."""
        return self.cancelled or self.late


class Scheduler:
    """Puts jobs together and has the engine answer them.

    Args:
        engine: answers batches.
        limits: ``waiting``, ``batch``, ``wait_milliseconds``.
        on_batch: told the size of every batch and its seconds.
    """

    def __init__(
        self, engine: Generator, limits: Limits, on_batch: Callable[[int, float], None] = lambda size, seconds: None
    ) -> None:
        self._engine = engine
        self._limits = limits
        self._on_batch = on_batch
        self._queue: deque[Job] = deque()
        self._tasks: deque[Callable[[], None]] = deque()
        self._places = 0
        self._usual_seconds = 1.0
        self._changed = threading.Condition()
        self._draining = self._closed = False
        self._thread = threading.Thread(target=self._run, name="pave-inference", daemon=True)
        self._thread.start()

    # --- for requests

    @property
    def places(self) -> int:
        """Answers that are under way or waiting, from their admission on."""
        return self._places

    @property
    def alive(self) -> bool:
        """Whether answers still come."""
        return self._thread.is_alive()

    @property
    def draining(self) -> bool:
        """Whether nothing new is admitted."""
        return self._draining

    @contextlib.contextmanager
    def place(self, count: int = 1, *, admitted: bool = False) -> Iterator[None]:
        """Hold places for answers while the block runs.

        Args:
            count: of places.
            admitted: the request has a place already and needs more; it is answered also when the server is about to end.

        Raises:
            ApiError: 429 if there are not as many, 503 if the server is about to end.
        """
        with self._changed:
            if self._draining and not admitted:
                raise ApiError(
                    503,
                    "the server is about to end; ask again when it is back",
                    code="shutting_down",
                    headers={"Retry-After": "5"},
                )
            if self._places + count > self._limits.waiting:
                raise self._full(
                    f"{self._places} answers are under way or waiting, and at most {self._limits.waiting} may; try again later"
                )
            self._places += count
        try:
            yield
        finally:
            with self._changed:
                self._places -= count
                self._changed.notify_all()

    def submit(self, job: Job) -> None:
        """Queue a job, for which a place is held.

        Raises:
            ApiError: 429, if others wait and their frames with its own take more memory than all may.
        """
        job.key = self._engine.key(job.read) if job.work is None else job
        with self._changed:
            held = {id(one.frames): one.frames.nbytes for one in (*self._queue, job) if one.frames is not None}
            if self._queue and sum(held.values()) > self._limits.waiting_megabytes * 2**20:
                raise self._full(f"the frames of waiting answers take {self._limits.waiting_megabytes} MiB; try again later")
            self._queue.append(job)
            self._changed.notify_all()

    def between(self, task: Callable[[], None]) -> None:
        """Run something in the scheduler's thread, where no batch runs, and wait for it; what it raises is raised here."""
        done, raised = threading.Event(), []

        def run() -> None:
            try:
                task()
            except BaseException as error:
                raised.append(error)
            finally:
                done.set()

        with self._changed:
            if self._closed:
                raise RuntimeError("the scheduler is closed")
            self._tasks.append(run)
            self._changed.notify_all()
        done.wait()
        if raised:
            raise raised[0]

    def stop_admitting(self) -> None:
        """Admit nothing new from now on. What has its place is answered. A signal may call it: it takes no lock."""
        self._draining = True

    def close(self) -> None:
        """End the thread when everything that was submitted is answered."""
        with self._changed:
            self._draining = self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _full(self, message: str) -> ApiError:
        return ApiError(429, message, code="queue_full", headers={"Retry-After": str(self._retry_after())})

    def _retry_after(self) -> int:
        batches = self._places / self._limits.batch
        return min(_LONGEST_RETRY, max(1, math.ceil(self._usual_seconds * batches)))

    # --- in the thread

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._tasks or self._queue or self._closed)
                task = self._tasks.popleft() if self._tasks else None
                if task is None and not self._queue:
                    return
            if task is not None:
                task()
            else:
                self._answer(self._next_batch())

    def _next_batch(self) -> list[Job]:
        """The oldest job and those that may share its batch, after a short wait for more of them."""
        with self._changed:
            first = self._queue[0]
            until = first.arrived + self._limits.wait_milliseconds / 1000
            while True:
                batch = [job for job in self._queue if job.key == first.key][: self._limits.batch]
                left = until - time.monotonic()
                # where nobody else is on the way there is nothing to wait for
                if len(batch) == self._limits.batch or left <= 0 or self._closed or len(self._queue) >= self._places:
                    break
                self._changed.wait(left)
            for job in batch:
                self._queue.remove(job)
        return batch

    def _answer(self, batch: list[Job]) -> None:
        """Answer a batch. Where it fails, each of its jobs is tried alone, so that one of them harms no other."""
        wanted = [job for job in batch if not job.unwanted]
        for job in batch:
            if job not in wanted:
                self._finish(job, None)
        if not wanted:
            return
        began = time.monotonic()
        try:
            answers = self._generated(wanted)
        except Exception as error:
            if len(wanted) > 1:
                for job in wanted:
                    self._answer([job])
                return
            answers = [error]
        seconds = time.monotonic() - began
        self._usual_seconds += 0.2 * (seconds - self._usual_seconds)
        self._on_batch(len(wanted), seconds)
        for job, answer in zip(wanted, answers, strict=True):
            self._finish(job, answer)

    def _generated(self, jobs: Sequence[Job]) -> Sequence[Any]:
        if jobs[0].work is not None:
            return [jobs[0].work(jobs[0].read)]
        seen = [0] * len(jobs)

        def tell(row: int, text: str) -> None:
            job = jobs[row]
            piece = text[max(0, job.told - seen[row]) :]  # a job that is tried again says again what it said
            seen[row] += len(text)
            if piece and job.on_text is not None:
                job.told += len(piece)
                job.on_text(piece)

        return self._engine.generate([job.read for job in jobs], on_text=tell, cancelled=lambda row: jobs[row].unwanted)

    @staticmethod
    def _finish(job: Job, answer: Any) -> None:
        if job.late and (answer is None or getattr(answer, "finish_reason", "") == "cancelled"):
            answer = ApiError(504, "the answer took longer than the deadline allows; ask for less", code="deadline_exceeded")
        elif answer is None:
            answer = ApiError(499, "the request was given up", code="cancelled")
        try:
            job.done(answer)
        except Exception:  # whoever asked is gone
            logger.exception("an answer could not be handed over")
