"""Child processes that fill chunks: a file that hangs or crashes a decoder ends its process, never the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pave.config import EncoderConfig
from pave.data.store.filling import Report, fill_chunk
from pave.data.store.plan import Wanted
from pave.data.store.shards import FeatureStore, ShardLimits
from pave.data.vision import build
from pave.utils.children import Answers, Child, requests
from pave.utils.content import Stamp
from pave.utils.files import DiskError


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
        self._child = Child("pave.data.store.workers")
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
        self._child.start(asdict(self._settings))
        reading: list[str] = []
        known = {want.key for want in todo}
        limit = self._settings.timeout
        self._child.send({"batch_size": batch_size, "again": again, "chunk": [asdict(want) for want in todo]})
        while True:
            received = self._child.receive(None if limit is None or not reading else limit * len(reading))
            if received is None:
                status = self._child.end()
                if self._child.late:
                    return reading, f"reading and encoding took longer than the {limit:g} s allowed"
                if not reading or self._stopped:
                    raise RuntimeError(f"a process that extracts features ended with status {status} while it read no file")
                return reading, f"the process that read it ended with status {status}"
            event, _ = received
            if event["event"] == "end":
                return None
            if event["event"] in _STOPS:
                raise _STOPS[event["event"]](event["message"])
            if event["event"] == "failed" and event["key"] not in known:
                raise RuntimeError("a process that extracts features answered for a file that it was not given")
            reading = event["keys"] if event["event"] == "files" else [] if event["event"] == "shard" else reading
            report(event)

    def stop(self) -> None:
        """Give up what the child is doing; for other threads than the one that ``fill`` runs in, which then raises."""
        self._stopped = True
        self._child.kill()

    def close(self) -> None:
        """End the child."""
        self._child.kill()
        self._child.end()


_STOPS: dict[str, type[Exception]] = {"refused": ValueError, "disk": DiskError, "broken": RuntimeError}
"""Events that no file is to blame for, by which the run stops."""


def main() -> None:
    """What a child does: chunk after chunk, until the parent closes the pipe or is gone."""
    answers, orders = Answers(), requests()
    try:
        _serve(WorkerSettings(**next(orders)), orders, answers.send)
    except (StopIteration, BrokenPipeError, KeyboardInterrupt):
        return


def _serve(settings: WorkerSettings, orders: Iterator[dict[str, Any]], report: Report) -> None:
    import torch
    import transformers

    torch.set_num_threads(settings.threads)
    transformers.utils.logging.disable_progress_bar()  # of children they would mix
    store = FeatureStore(settings.store)
    limits = ShardLimits(settings.entries, settings.num_bytes)
    encoders: dict[str, Any] = {}
    for request in orders:
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
