"""Training samples that see the picture of another clip, for questions that a side channel answers alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from pave.data.dataset import PatchDataset
from pave.data.items import PatchItem


class SwappedPictures(PatchDataset):
    """A ``PatchDataset`` whose batches show some samples the picture of the next one in the batch that is of another clip.

    What is drawn into one batch changes from pass to pass, and so does the picture. Frames keep the times of the sample's own where
    there are as many, so that they stay in step with its side channels. ``read`` swaps nothing.

    Args:
        types: question types whose samples are concerned; None: all.
        arguments, options: as for ``PatchDataset``.
    """

    def __init__(self, *arguments: Any, types: Collection[str] | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._swapped_types = None if types is None else frozenset(types)
        unknown = sorted((self._swapped_types or frozenset()) - {sample.type for sample in self.samples})
        if unknown:
            known = ", ".join(sorted({sample.type or "''" for sample in self.samples}))
            raise ValueError(f"data.swap_pictures: no training sample is of the type {unknown[0]!r}; there are {known}")

    def __getitems__(self, indices: Sequence[int]) -> list[PatchItem]:
        items, samples = super().__getitems__(indices), [self.samples[index] for index in indices]
        shown = list(items)
        for place, sample in enumerate(samples):
            if self._swapped_types is not None and sample.type not in self._swapped_types:
                continue
            behind = [*range(place + 1, len(items)), *range(place)]
            other = next((items[i] for i in behind if samples[i].video != sample.video), None)
            if other is not None:  # else the batch is about one clip
                shown[place] = _with_picture_of(other, items[place])
        return shown


def _with_picture_of(other: PatchItem, own: PatchItem) -> PatchItem:
    times_F = own.times_F if len(own.times_F) == len(other.times_F) else other.times_F
    return replace(own, frames_FHWC=other.frames_FHWC, times_F=times_F, vision=other.vision)
