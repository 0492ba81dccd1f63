"""Child processes that fill chunks: a file that hangs or crashes a decoder ends its process, never the run.

Parent and child talk in lines of JSON. Nothing that comes from a child is unpickled: the file that it reads may be hostile. A child
is a program of its own and does not import the script that called, so that the script needs no guard.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pave.config import EncoderConfig
from pave.data.store.filling import Report, fill_chunk
from pave.data.store.plan import Wanted
from pave.data.store.shards import FeatureStore, ShardLimits
from pave.data.vision import build
from pave.utils.content import Stamp
from pave.utils.files import DiskError

_PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from pave.data.store.workers import main; main()"
"""What a child runs: modules come from where they come from in the parent, and from nowhere else."""


@dataclass(frozen=True)
class WorkerSettings:
    """What a child needs to know once."""

    store: str
    specs: dict[str, dict[str, Any]]
    """By encoder id the fields of the ``EncoderConfig`` that builds it."""
    device: str
    threads: int
    """Of torch, on the CPU."""
    batch_size: int
    entries: int
    """Of ``ShardLimits``."""
    num_bytes: int
    """Of ``ShardLimits``."""
    timeout: float | None
    """Seconds that a file may take, reading and encoding together; times the number of files for a batch. None: no limit."""


class Worker:
    """A child process, started when it is first needed and again after it had to be ended. Usable from one thread at a time."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._late = threading.Event()
        self._stopped = False

    def fill(self, chunk: Sequence[Wanted], report: Report) -> None:
        """``fill_chunk`` in the child; a file that hangs or ends the process is reported as failed and the rest goes on.

        Raises:
            ValueError: if the child cannot build the encoder.
            DiskError: if the store cannot be written because of its disk.
            RuntimeError: if the child ends, or fails, for a reason that is no file's.
        """
        todo, batch_size, failed = {want.key: want for want in chunk}, self._settings.batch_size, set()

        def remember(event: dict[str, Any]) -> None:
            if event["event"] == "failed":
                failed.add(event["key"])
            report(event)

        again = False
        while todo:
            gone = self._attempt(list(todo.values()), batch_size, again, remember)
            if gone is None:
                return
            keys, reason = gone
            if len(keys) == 1:
                remember({"event": "failed", "key": keys[0], "message": f"{todo[keys[0]].file}: {reason}"})
            else:
                batch_size = 1  # to find out which file of the batch it was
            todo = {key: want for key, want in todo.items() if key not in failed}
            again = True

    def _attempt(self, todo: Sequence[Wanted], batch_size: int, again: bool, report: Report) -> tuple[list[str], str] | None:
        """None when done, else the keys at work when the child had to be ended or ended itself, and why."""
        self._start()
        reading: list[str] = []
        known = {want.key for want in todo}
        limit = self._settings.timeout
        self._send({"batch_size": batch_size, "again": again, "chunk": [asdict(want) for want in todo]})
        while True:
            event = self._receive(None if limit is None or not reading else limit * len(reading))
            if event is None and self._late.is_set():
                self.close()
                return reading, f"reading and encoding took longer than the {limit:g} s allowed"
            if event is None:
                status = self._end()
                if not reading or self._stopped:
                    raise RuntimeError(f"a process that extracts features ended with status {status} while it read no file")
                return reading, f"the process that read it ended with status {status}"
            if event["event"] == "end":
                return None
            if event["event"] in _STOPS:
                raise _STOPS[event["event"]](event["message"])
            if event["event"] == "failed" and event["key"] not in known:
                raise RuntimeError("a process that extracts features answered for a file that it was not given")
            reading = event["keys"] if event["event"] == "files" else [] if event["event"] == "shard" else reading
            report(event)

    def _start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        if self._process is not None:
            self._end()
        self._late.clear()
        command = [sys.executable, "-I", "-c", _PROGRAM, json.dumps([os.path.abspath(part) for part in sys.path])]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._send(asdict(self._settings))

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:  # it ended: the missing answer says so
            return

    def _receive(self, seconds: float | None) -> dict[str, Any] | None:
        """The next event, or None where the child has ended, which it also does when the time is over."""
        assert self._process is not None and self._process.stdout is not None
        timer = None if seconds is None else threading.Timer(seconds, self._time_is_over, [self._process])
        if timer is not None:
            timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            if timer is not None:
                timer.cancel()
        if not line.endswith(b"\n"):
            return None
        event: dict[str, Any] = json.loads(line)
        return event

    def _time_is_over(self, process: subprocess.Popen[bytes]) -> None:
        self._late.set()
        process.kill()

    def _end(self) -> int:
        """Clean up after a child that has ended; its status."""
        assert self._process is not None
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:
                continue
        status = self._process.wait()
        self._process = None
        return status

    def stop(self) -> None:
        """Give up what the child is doing; for other threads than the one that ``fill`` runs in, which then raises."""
        self._stopped = True
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """End the child."""
        if self._process is not None:
            self._process.kill()
            self._end()


_STOPS: dict[str, type[Exception]] = {"refused": ValueError, "disk": DiskError, "broken": RuntimeError}
"""Events that no file is to blame for, by which the run stops."""


def main() -> None:
    """What a child does: chunk after chunk, until the parent closes the pipe or is gone."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever libraries print must not be taken for an answer

    def report(event: dict[str, Any]) -> None:
        answers.write(json.dumps(event).encode() + b"\n")
        answers.flush()

    lines = iter(sys.stdin.buffer.readline, b"")
    try:
        _serve(WorkerSettings(**json.loads(next(lines))), lines, report)
    except (StopIteration, BrokenPipeError, KeyboardInterrupt):
        return


def _serve(settings: WorkerSettings, lines: Iterator[bytes], report: Report) -> None:
    import torch
    import transformers

    torch.set_num_threads(settings.threads)
    transformers.utils.logging.disable_progress_bar()  # of children they would mix
    store = FeatureStore(settings.store)
    limits = ShardLimits(settings.entries, settings.num_bytes)
    encoders: dict[str, Any] = {}
    for line in lines:
        request = json.loads(line)
        chunk = [wanted_from(row) for row in request["chunk"]]
        name = chunk[0].encoder
        try:
            if name not in encoders:
                encoders[name] = build(EncoderConfig.from_dict(settings.specs[name])).to(settings.device)
        except Exception as error:
            report({"event": "refused", "message": " ".join(str(error).split())})
            continue
        try:
            if request["again"]:  # shards of this chunk may have been written before a file ended the process
                have = store.index(name, fresh=True)
                chunk = [want for want in chunk if want.key not in have]
            if chunk:
                fill_chunk(store, encoders[name], chunk, report, batch_size=request["batch_size"], limits=limits)
        except DiskError as error:
            report({"event": "disk", "message": str(error)})
        except Exception as error:  # what a file is to blame for was reported as its failure
            report({"event": "broken", "message": f"{type(error).__name__}: {' '.join(str(error).split())}"})
        else:
            report({"event": "end"})


def wanted_from(row: Mapping[str, Any]) -> Wanted:
    """A ``Wanted`` that went through JSON."""
    stamps = tuple((file, None if stamp is None else Stamp(*map(int, stamp))) for file, stamp in row["stamps"])
    return Wanted(row["key"], row["encoder"], row["video"], row["path"], stamps)
