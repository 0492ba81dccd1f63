"""Filling a store with everything that samples need: plan, chunks, workers, and what came of it."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pave.data.store.filling import fill_chunk
from pave.data.store.plan import Failure, Plan, Wanted, chunked
from pave.data.store.shards import FeatureStore, ShardLimits
from pave.data.store.workers import Worker, WorkerSettings
from pave.utils.console import track


@dataclass
class ExtractReport:
    """What a run did."""

    wanted: int
    """Different features that the samples need, of files that could be hashed."""
    present: int
    """Of these, how many the store had before."""
    foreign: int = 0
    """Of the others, how many another rank makes."""
    extracted: int = 0
    """How many were made."""
    without_channel: int = 0
    """Of these, files that do not have the channel."""
    num_bytes: int = 0
    """Of the features that were made."""
    failures: list[Failure] = field(default_factory=list)
    """Everything that could not be made."""
    seconds: float = 0.0
    """Of making them, without planning."""
    decode_seconds: float = 0.0
    """Spent reading and decoding files, all processes together."""
    encode_seconds: float = 0.0
    """Spent in the encoders, all processes together."""

    @property
    def per_second(self) -> float:
        """Videos (or files of a channel) a second."""
        return self.extracted / self.seconds if self.seconds else 0.0

    @property
    def decode_share(self) -> float:
        """Share of the work that was decoding."""
        total = self.decode_seconds + self.encode_seconds
        return self.decode_seconds / total if total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "per_second": self.per_second, "decode_share": self.decode_share}

    def take(self, event: dict[str, Any], plan: Plan) -> None:
        """Add what a worker reported."""
        if event["event"] == "failed":
            self.failures.append(plan.failed(event["key"], event["message"]))
        elif event["event"] == "shard":
            self.extracted += event["entries"]
            self.without_channel += event["missing"]
            self.num_bytes += event["bytes"]
            self.decode_seconds += event["decode"]
            self.encode_seconds += event["encode"]


def extract(
    plan: Plan,
    store: FeatureStore,
    *,
    processes: int = 1,
    devices: Sequence[str] = ("cpu",),
    timeout: float | None = 300.0,
    batch_size: int = 1,
    rank: int = 0,
    world_size: int = 1,
    limits: ShardLimits | None = None,
    ray: bool = False,
    progress: bool = True,
) -> ExtractReport:
    """Make every feature of a plan that the store lacks.

    The chunks are cut from the sorted keys of the plan, so that neither the number of processes or ranks nor an interruption
    changes the shards that come out.

    Args:
        plan: of ``plan_features``.
        store: that gets them.
        processes: child processes; 0 works in this one, without the time limit.
        devices: of the children in turn, such as ("cuda:0", "cuda:1").
        timeout: seconds that one file may take; None: no limit.
        batch_size: streams that are encoded together. Other than 1 may change the features within rounding.
        rank: of this process among several runs that share the work.
        world_size: how many those are.
        limits: of a shard.
        ray: let Ray Data run the processes, on this machine or a cluster. All machines must see files and store under the
            same paths.
        progress: show it.

    Raises:
        ValueError: if an argument is out of range, or a child cannot build an encoder.
        DiskError: if the store cannot be written because of its disk.
        RuntimeError: if a child ends or fails for no reason that a file explains.
    """
    if processes < 0 or batch_size < 1 or not 0 <= rank < world_size or (timeout is not None and not timeout > 0):
        raise ValueError(
            "extract: processes must be at least 0, batch_size at least 1, rank from 0 to below world_size, and timeout positive; got "
            f"{processes}, {batch_size}, {rank} of {world_size}, {timeout}"
        )
    limits = limits or ShardLimits()
    store.remove_leftovers()
    for name, identity in plan.identities.items():
        store.describe(name, identity.facts)
        store.drop_damaged(name)
    everything, chunks = _chunks(plan, store, limits, rank, world_size)
    report = ExtractReport(len(plan.wanted), len(plan.wanted) - everything, failures=list(plan.failures) if rank == 0 else [])
    report.foreign = everything - sum(map(len, chunks))
    settings = WorkerSettings(
        store=os.path.abspath(store.folder),
        specs={name: encoder.spec().to_dict() for name, encoder in plan.encoders.items()},
        device=devices[0],
        threads=max(1, (os.cpu_count() or 1) // max(1, processes)),
        batch_size=batch_size,
        entries=limits.entries,
        num_bytes=limits.num_bytes,
        timeout=timeout,
    )
    start = time.monotonic()
    if processes == 0:
        events = _here(plan, store, chunks, batch_size, limits)
    elif ray:
        from pave.data.store.ray_data import fill_on_ray

        events = fill_on_ray(chunks, settings, processes)
    else:
        events = _in_children(chunks, settings, min(processes, max(1, len(chunks))), devices)
    for batch in track(events, f"Extracting {sum(map(len, chunks))} features", total=len(chunks), enabled=progress):
        for event in batch:
            report.take(event, plan)
    report.seconds = time.monotonic() - start
    report.failures.sort(key=lambda failure: (failure.file, failure.channel))
    return report


def _chunks(plan: Plan, store: FeatureStore, limits: ShardLimits, rank: int, world_size: int) -> tuple[int, list[list[Wanted]]]:
    """How many features all ranks together have to make, and the chunks of this one."""
    total, chunks, number = 0, [], 0
    for encoder in sorted(plan.encoders):
        have = store.index(encoder, fresh=True)
        for keys in chunked(plan.keys_of(encoder), limits.entries):
            todo = [plan.wanted[key] for key in keys if key not in have]
            total += len(todo)
            if todo and number % world_size == rank:
                chunks.append(todo)
            number += 1
    return total, chunks


def _here(
    plan: Plan, store: FeatureStore, chunks: Sequence[list[Wanted]], batch_size: int, limits: ShardLimits
) -> Iterator[list[dict[str, Any]]]:
    for chunk in chunks:
        events: list[dict[str, Any]] = []
        fill_chunk(store, plan.encoders[chunk[0].encoder], chunk, events.append, batch_size=batch_size, limits=limits)
        yield events


def _in_children(
    chunks: Sequence[list[Wanted]], settings: WorkerSettings, processes: int, devices: Sequence[str]
) -> Iterator[list[dict[str, Any]]]:
    """The events of each chunk, as chunks are finished. A thread looks after each child."""
    todo: queue.SimpleQueue[list[Wanted]] = queue.SimpleQueue()
    done: queue.SimpleQueue[list[dict[str, Any]] | BaseException] = queue.SimpleQueue()
    for chunk in chunks:
        todo.put(chunk)
    workers = [Worker(_on(settings, devices[number % len(devices)])) for number in range(processes)]
    stopped = threading.Event()

    def look_after(worker: Worker) -> None:
        try:
            while not stopped.is_set():
                events: list[dict[str, Any]] = []
                worker.fill(todo.get_nowait(), events.append)
                done.put(events)
        except queue.Empty:
            pass
        except BaseException as error:
            done.put(error)
        finally:
            worker.close()

    threads = [threading.Thread(target=look_after, args=(worker,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        for _ in chunks:
            events = done.get()
            if isinstance(events, BaseException):
                raise events
            yield events
    finally:
        stopped.set()
        for worker in workers:
            worker.stop()
        for thread in threads:
            thread.join()


def _on(settings: WorkerSettings, device: str) -> WorkerSettings:
    return WorkerSettings(**{**settings.__dict__, "device": device})
