"""Which samples each stage of a training run sees."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch.utils.data import Sampler

from pave.config import Strict
from pave.training.sharing import VideoGrouping


@dataclass(frozen=True, kw_only=True)
class Stage(Strict):
    """A stretch of training with its own mixture of questions."""

    steps: int
    """Optimizer steps."""
    weights: dict[str, float] = field(default_factory=dict)
    """Share of each sample type, in any unit; a type that is not named is left out. Empty: every sample equally often."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if any(not 0 <= w < float("inf") for w in self.weights.values()) or (self.weights and not sum(self.weights.values())):
            raise ValueError(f"weights must not be negative and at least one must be positive, got {self.weights}")


class StagedSampler(Sampler[int]):
    """Indices of the samples of a whole run: stage by stage, each stage with its own shares of the sample types.

    Within a type every sample is seen once, in a shuffled order, before any is seen again; the passes go on across stages.
    The order is a function of the arguments alone, so a resumed run skips to its place and goes on as if never stopped.

    Args:
        types: type of every sample.
        stages: what to draw, in order.
        samples_per_step: samples in one optimizer step, over accumulation and all processes.
        seed: of the order.
        grouping: what stands together in a forward pass, samples of similar length or questions about one video; None: the order
            drawn.

    Raises:
        ValueError: if a stage names a type that no sample has.
    """

    def __init__(
        self,
        types: Sequence[str],
        stages: Sequence[Stage],
        samples_per_step: int,
        seed: int,
        grouping: LengthGrouping | VideoGrouping | None = None,
    ) -> None:
        self.stages = tuple(stages)
        self.samples_per_step = samples_per_step
        self.seed = seed
        self.grouping = grouping
        self._members: dict[str, list[int]] = {}
        for index, kind in enumerate(types):
            self._members.setdefault(kind, []).append(index)
        for number, stage in enumerate(self.stages, start=1):
            unknown = [kind for kind in stage.weights if kind not in self._members]
            if unknown:
                raise ValueError(
                    f"stage {number}: no training sample has the type {unknown[0]!r}; the types are {sorted(self._members)}"
                )

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return sum(stage.steps for stage in self.stages)

    def __len__(self) -> int:
        return self.num_steps * self.samples_per_step

    def __iter__(self) -> Iterator[int]:
        shuffling = torch.Generator().manual_seed(self.seed)
        for drawn in self._drawn_by_stage():
            if self.grouping is None:
                yield from drawn
            else:
                yield from self.grouping.arranged(drawn, self.samples_per_step, shuffling)

    def _drawn_by_stage(self) -> Iterator[Iterator[int]]:
        generator = torch.Generator().manual_seed(self.seed)
        everything = sorted(index for members in self._members.values() for index in members)
        over = self.grouping.passes if isinstance(self.grouping, VideoGrouping) else _passes
        all_passes = over(everything, generator)
        passes = {kind: over(members, generator) for kind, members in self._members.items()}
        for stage in self.stages:
            yield self._drawn(stage, passes, all_passes, generator)

    def _drawn(
        self, stage: Stage, passes: dict[str, Iterator[int]], all_passes: Iterator[int], generator: torch.Generator
    ) -> Iterator[int]:
        kinds = list(stage.weights)
        weights = torch.tensor([stage.weights[kind] for kind in kinds], dtype=torch.float64)
        for _ in range(stage.steps * self.samples_per_step):
            if kinds:
                yield next(passes[kinds[int(torch.multinomial(weights, 1, generator=generator))]])
            else:
                yield next(all_passes)


@dataclass(frozen=True)
class LengthGrouping:
    """Puts samples of similar length into one forward pass, so that less is padded.

    The samples of a window of steps are sorted by length and cut into forward passes, whose order is shuffled. The samples that
    are drawn stay the same; with a window of one step, those of every step do.
    """

    lengths: Sequence[int]
    """Of every sample."""
    window: int
    """Optimizer steps."""
    passes: int
    """Forward passes in a step: the accumulation."""

    def arranged(self, drawn: Iterator[int], samples_per_step: int, generator: torch.Generator) -> Iterator[int]:
        """The drawn samples, window by window."""
        size = samples_per_step // self.passes  # those of all processes, which wait for each other
        while window := list(itertools.islice(drawn, self.window * samples_per_step)):
            ordered = sorted(window, key=lambda index: self.lengths[index])
            for place in torch.randperm(len(ordered) // size, generator=generator).tolist():
                yield from ordered[place * size : (place + 1) * size]


def _passes(members: list[int], generator: torch.Generator) -> Iterator[int]:
    """Shuffled passes over ``members`` without end."""
    while True:
        for place in torch.randperm(len(members), generator=generator).tolist():
            yield members[place]
