"""An order of the samples in which questions about one video come together."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class VideoGrouping:
    """Puts questions about one video into one forward pass, where they may share its tokens.

    A pass over the samples goes through bundles of questions about one video, shuffled in themselves and among each other, and taken
    so that they fill forward passes where they can. Where types are drawn by weight, those of one step are put together
    afterwards; the samples of every step stay the drawn ones.

    Raises:
        ValueError: if a forward pass is smaller than a bundle.
    """

    videos: Sequence[Hashable]
    """Of every sample."""
    most: int
    """Questions about one video in a row."""
    batch: int
    """Samples in one forward pass of one process."""

    def __post_init__(self) -> None:
        if self.most > self.batch:
            raise ValueError(
                f"data.share_videos is {self.most}, but a forward pass has {self.batch} questions (training.batch_size); raise "
                "training.batch_size or lower data.share_videos"
            )

    def passes(self, members: Sequence[int], generator: torch.Generator) -> Iterator[int]:
        """Shuffled passes over ``members`` without end."""
        taken = 0
        while True:
            shuffled = [members[place] for place in torch.randperm(len(members), generator=generator).tolist()]
            bundles = self._bundles(shuffled)
            order = torch.randperm(len(bundles), generator=generator).tolist()
            yield from self._filling([bundles[place] for place in order], taken)
            taken += len(members)

    def arranged(self, drawn: Iterator[int], samples_per_step: int, generator: torch.Generator) -> Iterator[int]:
        """The drawn samples, those of each step put together by video."""
        while step := list(itertools.islice(drawn, samples_per_step)):
            yield from self._filling(self._bundles(step), 0)

    def rows(self, order: Iterable[int]) -> list[tuple[int, int]]:
        """Of every forward pass of an order: rows, and most questions in one of them.

        Args:
            order: of the samples; a last forward pass that is not full is left out.
        """
        found, drawn = [], iter(order)
        while len(samples := list(itertools.islice(drawn, self.batch))) == self.batch:
            counts = Counter(self.videos[index] for index in samples).values()
            found.append((sum(-(-count // self.most) for count in counts), min(self.most, max(counts))))
        return found

    def _bundles(self, samples: Sequence[int]) -> list[list[int]]:
        by_video: dict[Hashable, list[int]] = {}
        for index in samples:
            by_video.setdefault(self.videos[index], []).append(index)
        return [same[at : at + self.most] for same in by_video.values() for at in range(0, len(same), self.most)]

    def _filling(self, bundles: Sequence[list[int]], taken: int) -> Iterator[int]:
        """Bundle after bundle, the first that still fits into the forward pass; the next one where none does.

        Args:
            bundles: in order.
            taken: samples before them.
        """
        waiting: dict[int, deque[int]] = {}
        for place, bundle in enumerate(bundles):
            waiting.setdefault(len(bundle), deque()).append(place)
        while waiting:
            room = self.batch - taken % self.batch
            fitting = [size for size in waiting if size <= room] or list(waiting)
            size = min(fitting, key=lambda size: waiting[size][0])
            yield from bundles[waiting[size].popleft()]
            taken += size
            if not waiting[size]:
                del waiting[size]
