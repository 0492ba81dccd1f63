"""Child processes that fill chunks: a file that hangs or crashes a decoder ends its process, never the run.

Parent and child talk in JSON. Nothing that comes from a child is unpickled: the file that it reads may be hostile.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

from pave.config import EncoderConfig
from pave.data.store.filling import Report, fill_chunk
from pave.data.store.plan import Wanted
from pave.data.store.shards import FeatureStore, ShardLimits
from pave.data.vision import build
from pave.utils.content import Stamp


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
        self._process: Any = None
        self._connection: Connection | None = None
        self._stopped = False

    def fill(self, chunk: Sequence[Wanted], report: Report) -> None:
        """``fill_chunk`` in the child; a file that hangs or ends the process is reported as failed and the rest goes on.

        Raises:
            ValueError: if the child cannot build the encoder.
            RuntimeError: if the child ends while it reads no file.
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
        assert self._connection is not None
        reading: list[str] = []
        known = {want.key for want in todo}
        limit = self._settings.timeout
        try:
            rows = [asdict(want) for want in todo]
            _send(self._connection, {"batch_size": batch_size, "again": again, "chunk": rows})
            while True:
                if reading and limit is not None and not self._connection.poll(limit * len(reading)):
                    self.close()
                    return reading, f"reading and encoding took longer than the {limit:g} s allowed"
                event = json.loads(self._connection.recv_bytes())
                if event["event"] == "end":
                    return None
                if event["event"] == "refused":
                    raise ValueError(event["message"])
                if event["event"] == "failed" and event["key"] not in known:
                    raise RuntimeError("a process that extracts features answered for a file that it was not given")
                reading = event["keys"] if event["event"] == "files" else [] if event["event"] == "shard" else reading
                report(event)
        except (EOFError, ConnectionError, BrokenPipeError):
            self._process.join()
            status = self._process.exitcode
            self.close()
            if not reading or self._stopped:
                raise RuntimeError(
                    f"a process that extracts features ended with status {status} while it read no file"
                ) from None
            return reading, f"the process that read it ended with status {status}"

    def _start(self) -> None:
        if self._process is not None and self._process.is_alive():
            return
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._settings), daemon=True)
        self._process.start()
        theirs.close()  # so that the end of the child is the end of the pipe

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
            self._process.join()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None


def _serve(connection: Connection, settings: WorkerSettings) -> None:
    """What a child does: chunk after chunk, until the parent closes the pipe or is gone."""
    import torch
    import transformers

    torch.set_num_threads(settings.threads)
    transformers.utils.logging.disable_progress_bar()  # of children they would mix
    store = FeatureStore(settings.store)
    limits = ShardLimits(settings.entries, settings.num_bytes)
    encoders: dict[str, Any] = {}

    def report(event: dict[str, Any]) -> None:
        _send(connection, event)

    while True:
        try:
            request = json.loads(connection.recv_bytes())
            chunk = [wanted_from(row) for row in request["chunk"]]
            name = chunk[0].encoder
            try:
                if name not in encoders:
                    encoders[name] = build(EncoderConfig.from_dict(settings.specs[name])).to(settings.device)
            except Exception as error:
                report({"event": "refused", "message": " ".join(str(error).split())})
                continue
            if request["again"]:  # shards of this chunk may have been written before a file ended the process
                have = store.index(name, fresh=True)
                chunk = [want for want in chunk if want.key not in have]
            if chunk:
                fill_chunk(store, encoders[name], chunk, report, batch_size=request["batch_size"], limits=limits)
            report({"event": "end"})
        except (EOFError, ConnectionError, BrokenPipeError, KeyboardInterrupt):
            return


def wanted_from(row: Mapping[str, Any]) -> Wanted:
    """A ``Wanted`` that went through JSON."""
    stamps = tuple((file, None if stamp is None else Stamp(*map(int, stamp))) for file, stamp in row["stamps"])
    return Wanted(row["key"], row["encoder"], row["video"], row["path"], stamps)


def _send(connection: Connection, message: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(message).encode())
