"""Worker processes (``pave.utils.children``): a file that hangs or crashes its reader costs a process, not the run.

What a worker has to know once is the setup, each request is a job: samples that share a video. It answers with the file that it reads
next, and at last with what it found.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from pave.data.doctor.setup import Setup
from pave.data.samples import Sample
from pave.utils.children import Answers, Child, requests

Job = Sequence[Sample]
_START_SECONDS = 600.0
"""Most that the start of a worker may take: encoders and processors are loaded, perhaps from the hub."""


def inspect_all(setup: Setup, jobs: Sequence[Job], workers: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """The number of each job and its raw findings, as they are done.

    Args:
        setup: what to look for.
        jobs: samples that share a video.
        workers: processes; 0 reads in this one, without a time limit and without protection.

    Raises:
        ValueError: as ``Inspector``.
    """
    if workers == 0:
        from pave.data.doctor.inspector import Inspector

        inspector = Inspector(setup)
        for number, job in enumerate(jobs):
            yield number, inspector.inspect(job, lambda file: None)
        return
    crew: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    everyone = [_Worker(setup) for _ in range(min(workers, len(jobs)))]
    for worker in everyone:
        crew.put(worker)

    def done(number: int) -> tuple[int, list[dict[str, Any]]]:
        worker = crew.get()
        try:
            return number, worker.inspect(jobs[number])
        finally:
            crew.put(worker)

    pool = ThreadPoolExecutor(max(1, len(everyone)))
    try:
        for future in as_completed([pool.submit(done, number) for number in range(len(jobs))]):
            yield future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in everyone:
            worker.close()
        pool.shutdown()
        for worker in everyone:
            worker.child.end()


class _Worker:
    """A process that inspects; it is started when it is first needed, and again after it was ended."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.child = Child("pave.data.doctor.worker", silent=True)
        self.closed = False

    def inspect(self, job: Job) -> list[dict[str, Any]]:
        """Raw findings. A file that hangs or crashes the process is one, and the rest of the job is done without it."""
        lost: list[dict[str, Any]] = []
        while not self.closed:
            self._start()
            self.child.send({"samples": [sample.to_dict() for sample in job], "skip": [finding["file"] for finding in lost]})
            file = job[0].video
            while True:
                received = self.child.receive(self.setup.timeout)
                if received is None:
                    break
                answer, _ = received
                if "found" in answer:
                    return [*lost, *answer["found"]]
                file = answer["file"]
            code, message = self._why_it_ended()
            uses = [place for place, sample in enumerate(job) if file in (sample.video, *sample.side_channels.values())]
            lost.append({"code": code, "message": message, "file": file, "channel": None, "places": uses})
        return lost

    def close(self) -> None:
        """End what it is doing, for good."""
        self.closed = True
        self.child.kill()

    def _start(self) -> None:
        if not self.child.start(self.setup.to_dict()):
            return
        received = self.child.receive(_START_SECONDS)
        if received is None or "error" in received[0]:
            self.child.end()
            raise ValueError("the process that reads files did not start" if received is None else received[0]["error"])

    def _why_it_ended(self) -> tuple[str, str]:
        """A code and a sentence."""
        status = self.child.end()
        if self.child.late:
            return "media-timeout", f"reading took longer than the {self.setup.timeout:g} s allowed"
        return "media-crash", f"the process that read it ended with status {status}"


def main() -> None:
    """Answer jobs from standard input until it ends."""
    answers, jobs = Answers(), requests()
    try:
        from pave.data.doctor.inspector import Inspector

        inspector = Inspector(Setup.from_dict(next(jobs)))
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        answers.send({"error": kind + " ".join(str(error).split())})
        return
    answers.send({"ready": True})
    for request in jobs:
        samples = [Sample(**values) for values in request["samples"]]
        found = inspector.inspect(samples, lambda file: answers.send({"file": file}), request["skip"])
        answers.send({"found": found})
