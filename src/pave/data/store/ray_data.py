"""Filling chunks on the machines of a Ray cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from pave.data.store.plan import Wanted
from pave.data.store.workers import Worker, WorkerSettings, wanted_from
from pave.utils.optional import require


def fill_on_ray(chunks: Sequence[Sequence[Wanted]], settings: WorkerSettings, processes: int) -> Iterator[list[dict[str, Any]]]:
    """The events of each chunk, from ``processes`` actors of Ray Data. Each looks after a child of its own, as on one machine.

    Ray's own address and settings hold (``RAY_ADDRESS``, or a cluster that was joined before); without any it starts on this
    machine. An actor on "cuda" takes one GPU.

    Raises:
        MissingExtraError: without the extra ``ray``.
    """
    data = require("ray.data", extra="ray", purpose="Extraction on Ray")
    if not chunks:
        return
    rows = [{"chunk": json.dumps([asdict(want) for want in chunk])} for chunk in chunks]
    gpus = 1 if settings.device.startswith("cuda") else 0
    done = data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        FillChunks, fn_constructor_args=(settings,), batch_size=1, concurrency=min(processes, len(rows)), num_gpus=gpus
    )
    for row in done.iter_rows():
        yield json.loads(row["events"])


class FillChunks:
    """What Ray maps over the chunks."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._worker = Worker(settings)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """The events of the batch's chunks as JSON."""
        answers = []
        for text in batch["chunk"]:
            events: list[dict[str, Any]] = []
            self._worker.fill([wanted_from(row) for row in json.loads(text)], events.append)
            answers.append(json.dumps(events))
        return {"events": answers}
