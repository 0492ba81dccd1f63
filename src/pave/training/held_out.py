"""The loss on held-out samples and the share of right answers, over all and by task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from accelerate.utils import gather_object

from pave.data.dataset import PatchDataset
from pave.data.samples import Sample
from pave.training.callbacks import NonFiniteError, listed


class Judge(Protocol):
    """What answers held-out samples by generating and says which answers are right: ``pave.evaluation.judging``."""

    def check(self, samples: Sequence[Sample]) -> None:
        """Raise ValueError for a sample whose answer cannot be judged."""

    def judge(
        self, model: Any, processor: Any, data: PatchDataset, places: Sequence[int], *, batch_size: int, max_new_tokens: int
    ) -> Sequence[bool]:
        """Whether the answer is right, for each sample of ``data`` at these places."""


def accuracies(accelerator: Any, judged: Mapping[str, bool], tasks: Mapping[str, str]) -> dict[str, float]:
    """Share of right answers over all processes, under the name "", and of each task.

    Args:
        accelerator: what the processes talk through; each must call this.
        judged: of each sample of this process by its id, whether it was answered right.
        tasks: task of a sample by its id.
    """
    everything = [dict(judged)] if accelerator.num_processes == 1 else gather_object([dict(judged)])
    rights = {name: right for part in everything for name, right in part.items()}
    groups: dict[str, list[bool]] = {"": list(rights.values())}
    for name, right in rights.items():
        if name in tasks:
            groups.setdefault(tasks[name], []).append(right)
    return {task: sum(group) / len(group) for task, group in groups.items() if group}


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
