"""Says once in a training how much of the side streams can act, from the batches that pass."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import transformers

from pave.config import PatchConfig
from pave.data.acting import ActingWatch, rows_of

logger = logging.getLogger(__name__)

MOST_LOOKED_AT = 256
"""Samples that are looked at before it is said what was seen; at the latest that is at the end."""


class ActingReport(transformers.TrainerCallback):
    """Warns once, with the worst samples by name, where too little of a side channel can act (``pave.data.acting``).

    Args:
        config: of the patch.
        data: the training samples; their encoders and frame sampling are asked, where they have some.
        main: whether this process is the one that speaks.
    """

    def __init__(self, config: PatchConfig, data: Any, main: bool) -> None:
        self._names = list(config.side_channels) if main else []
        self._watch = ActingWatch(config.side_channels, getattr(data, "encoders", {}), getattr(data, "frame_sampling", None))
        self._seen: set[str] = set()
        self._most = min(MOST_LOOKED_AT, len(data)) if hasattr(data, "__len__") else MOST_LOOKED_AT

    def note(self, inputs: Mapping[str, Any], sample_ids: Sequence[str]) -> None:
        """Look at the samples of a batch, before anything is dropped from it."""
        if not self._names or not sample_ids or "frame_times" not in inputs:
            return
        ids = _first_of_rows(inputs, sample_ids)
        for name in self._names:
            for row in rows_of(inputs["side_channels"][name], inputs["frame_times"], ids):
                sample_id, features, times_F = row
                self._watch.note(sample_id, name, features, times_F)
        self._seen.update(sample_ids)
        if len(self._seen) >= self._most:
            self._say()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._say()

    def _say(self) -> None:
        if self._names:
            for sentence in self._watch.sentences("samples looked at so far").values():
                logger.warning("%s", sentence)
        self._names = []  # once


def _first_of_rows(inputs: Mapping[str, Any], sample_ids: Sequence[str]) -> list[str]:
    """The id of each row's first sample: questions about one video may share a row."""
    if "branches" not in inputs:
        return list(sample_ids)
    counts = inputs["branches"].max(dim=1).values.tolist()
    return [sample_ids[sum(counts[:row])] for row in range(len(counts))]
