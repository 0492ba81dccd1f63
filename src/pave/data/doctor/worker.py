"""Worker processes: a file that hangs or crashes its reader costs a process, not the run.

Both sides talk in lines of JSON; nothing is pickled. The first line to a worker is the setup, each further line a job: samples that
share a video. The worker writes down which file it reads next, and at last what it found.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from pave.data.doctor.setup import Setup
from pave.data.samples import Sample

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


class _Worker:
    """A process that inspects; it is started when it is first needed, and again after it was ended."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.process: subprocess.Popen[bytes] | None = None
        self.closed = False

    def inspect(self, job: Job) -> list[dict[str, Any]]:
        """Raw findings. A file that hangs or crashes the process is one, and the rest of the job is done without it."""
        lost: list[dict[str, Any]] = []
        while True:
            request = {"samples": [sample.to_dict() for sample in job], "skip": [finding["file"] for finding in lost]}
            file = job[0].video
            self._send(request)
            while True:
                answer, late = self._receive(self.setup.timeout)
                if answer is None:
                    break
                if "found" in answer:
                    return [*lost, *answer["found"]]
                file = answer["file"]
            code, message = self._end(late)
            uses = [place for place, sample in enumerate(job) if file in (sample.video, *sample.side_channels.values())]
            lost.append({"code": code, "message": message, "file": file, "channel": None, "places": uses})

    def close(self) -> None:
        """End the process, for good."""
        self.closed = True
        if self.process is not None:
            self.process.kill()
            self._end(False)

    def _send(self, request: dict[str, Any]) -> None:
        if self.process is None:
            self._start()
        self._write(request)

    def _start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pave.data.doctor.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self._write(self.setup.to_dict())
        answer, _ = self._receive(_START_SECONDS)
        if answer is None or "error" in answer:
            self._end(False)
            raise ValueError("the process that reads files did not start" if answer is None else answer["error"])

    def _write(self, value: Any) -> None:
        assert self.process is not None and self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(value).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:  # it crashed: the missing answer says so
            return

    def _receive(self, seconds: float) -> tuple[dict[str, Any] | None, bool]:
        """The next line, or None where there is none any more; and whether the time was over."""
        assert self.process is not None and self.process.stdout is not None
        late = threading.Event()
        process = self.process

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            line = self.process.stdout.readline()
        finally:
            timer.cancel()
        return (json.loads(line) if line.endswith(b"\n") else None), late.is_set()

    def _end(self, late: bool) -> tuple[str, str]:
        """Clean up after a process that ended; a code and a sentence on why."""
        if self.process is None:
            return "media-crash", "the process that read it is gone"
        assert self.process.stdin is not None and self.process.stdout is not None
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                pipe.close()
            except OSError:
                continue
        status = self.process.wait()
        self.process = None
        if late:
            return "media-timeout", f"reading took longer than the {self.setup.timeout:g} s allowed"
        return "media-crash", f"the process that read it ended with status {status}"


def main() -> None:
    """Answer jobs from standard input until it ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever libraries print must not be taken for an answer

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value).encode() + b"\n")
        answers.flush()

    lines = iter(sys.stdin.buffer.readline, b"")
    try:
        from pave.data.doctor.inspector import Inspector

        inspector = Inspector(Setup.from_dict(json.loads(next(lines))))
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        answer({"error": kind + " ".join(str(error).split())})
        return
    answer({"ready": True})
    for line in lines:
        request = json.loads(line)
        samples = [Sample(**values) for values in request["samples"]]
        found = inspector.inspect(samples, lambda file: answer({"file": file}), request["skip"])
        answer({"found": found})


if __name__ == "__main__":
    main()
