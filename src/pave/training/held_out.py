"""The loss on held-out samples, over all and by task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate.utils import gather_object

from pave.training.callbacks import NonFiniteError, listed


class HeldOut:
    """The loss over the answer tokens of an evaluation.

    Args:
        tasks: task of every sample by its id; a sample that is not in it counts to the whole only.
    """

    def __init__(self, tasks: Mapping[str, str]) -> None:
        self._tasks = tasks
        self._rows: list[tuple[str | None, float, int]] = []

    def add(self, rows: Sequence[tuple[float, int]], sample_ids: Sequence[str]) -> None:
        """One batch: summed loss and number of answer tokens of every row."""
        ids: Sequence[str | None] = sample_ids or [None] * len(rows)
        self._rows += [(name, total, count) for name, (total, count) in zip(ids, rows, strict=True)]

    def means(self, accelerator: Any, samples: int) -> dict[str, float]:
        """Over all answer tokens of all processes, under the name "", and over those of each task; empty where there is none.

        Args:
            samples: how many were evaluated. Processes get equally many batches, for which some samples are handed out twice.

        Raises:
            NonFiniteError: naming the samples, if it is not finite.
        """
        rows = self._rows if accelerator.num_processes == 1 else gather_object(self._rows)
        if len(rows) > samples and all(name is not None for name, _, _ in rows):
            rows = list({name: (name, total, count) for name, total, count in rows}.values())
            if len(rows) < samples:
                raise ValueError(f"{samples} held-out samples have only {len(rows)} different ids; give each its own")
        bad = [str(name) for name, total, _ in rows if not math.isfinite(total)]
        if bad:
            raise NonFiniteError(
                f"the loss on held-out samples is not finite for {listed(bad)}; look at their features and answers"
            )
        groups: dict[str, list[tuple[float, int]]] = {"": [(total, count) for _, total, count in rows]}
        for task in dict.fromkeys(self._tasks.values()):
            groups[task] = [(total, count) for name, total, count in rows if self._tasks.get(str(name)) == task]
        counts = {task: sum(count for _, count in group) for task, group in groups.items()}
        return {task: math.fsum(t for t, _ in group) / counts[task] for task, group in groups.items() if counts[task]}
