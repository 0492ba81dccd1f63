"""Which samples each stage of a training run sees, and how several tasks are mixed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch.utils.data import Sampler

from pave.config import NullIsEmpty, Strict
from pave.training.sharing import VideoGrouping


@dataclass(frozen=True, kw_only=True)
class Stage(Strict):
    """A stretch of training with its own mixture of questions."""

    steps: int
    """Optimizer steps."""
    weights: Annotated[dict[str, float], NullIsEmpty()] = field(default_factory=dict)
    """Share of each sample type, in any unit; a type that is not named is left out. Empty: every sample equally often. With tasks
    that have shares of their own: inside each task."""
    tasks: Annotated[dict[str, float], NullIsEmpty()] = field(default_factory=dict)
    """Share of each task, in any unit; a task that is not named is left out. Empty: as data.tasks and data.mixing say."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        for name in ("weights", "tasks"):
            values = getattr(self, name)
            if any(not 0 <= w < float("inf") for w in values.values()) or (values and not any(values.values())):
                raise ValueError(f"{name} must not be negative and at least one must be positive, got {values}")


def shares_by_size(counts: Mapping[str, int], temperature: float = 1.0) -> dict[str, float]:
    """How often each task is drawn: n_i^(1/T) / sum of n_j^(1/T), with n_i the samples of task i and T the temperature.

    T = 1 draws every sample equally often; a larger T brings the tasks closer together (infinite: all alike), a smaller one favours
    the large tasks. Temperature-scaled mixing of T5 (Raffel et al. 2020, arXiv:1910.10683, section 3.5.2), without its limit on n.

    Args:
        counts: samples of each task.
        temperature: T, positive.
    """
    largest = max(counts.values())  # n may be large and 1/T too: powers of n / max never overflow
    raised = {name: (count / largest) ** (1.0 / temperature) for name, count in counts.items()}
    total = sum(raised.values())
    return {name: value / total for name, value in raised.items()}


@dataclass(frozen=True)
class TaskMix:
    """Which task each sample belongs to, and how tasks share the forward passes."""

    tasks: Sequence[str]
    """Of every sample."""
    shares: Mapping[str, float]
    """Of each task, where a stage gives none. Empty: every sample equally often, where ``run`` is 1 in shuffled passes over all."""
    run: int = 1
    """Samples in a row that are of one task: 1, or those of a forward pass over all processes."""


class StagedSampler(Sampler[int]):
    """Indices of the samples of a whole run: stage by stage, each stage with its own shares of the sample types.

    With several tasks, first a task is drawn by its share, then a sample of it. Within a type (and a task) every sample is seen once,
    in a shuffled order, before any is seen again; the passes go on across stages. The order is a function of the arguments alone, so
    a resumed run skips to its place and goes on as if never stopped.

    Args:
        types: type of every sample.
        stages: what to draw, in order.
        samples_per_step: samples in one optimizer step, over accumulation and all processes.
        seed: of the order.
        grouping: what stands together in a forward pass, samples of similar length or questions about one video; None: the order
            drawn.
        mix: the tasks; None: one.

    Raises:
        ValueError: if a stage names a type that no sample has, or a task that there is not or that has none of its types, or a step
            is no whole number of the mix's runs.
    """

    def __init__(
        self,
        types: Sequence[str],
        stages: Sequence[Stage],
        samples_per_step: int,
        seed: int,
        grouping: LengthGrouping | VideoGrouping | None = None,
        mix: TaskMix | None = None,
    ) -> None:
        self.stages = tuple(stages)
        self.samples_per_step = samples_per_step
        self.seed = seed
        self.grouping = grouping
        self.mix = mix or TaskMix([""] * len(types), {})
        if samples_per_step % self.mix.run:
            raise ValueError(f"a step of {samples_per_step} samples cannot be cut into runs of {self.mix.run} of one task")
        self._members: dict[tuple[str, str], list[int]] = {}
        for index, key in enumerate(zip(self.mix.tasks, types, strict=True)):
            self._members.setdefault(key, []).append(index)
        for number, stage in enumerate(self.stages, start=1):
            self._check(stage, f"stage {number}")

    def _check(self, stage: Stage, where: str) -> None:
        tasks, types = ({key[part] for key in self._members} for part in (0, 1))
        unknown = [kind for kind in stage.weights if kind not in types]
        if unknown:
            raise ValueError(f"{where}: no training sample has the type {unknown[0]!r}; the types are {sorted(types)}")
        strange = [task for task in stage.tasks if task not in tasks]
        if strange:
            named = f"the tasks are {sorted(tasks)}" if tasks != {""} else "data.tasks names none"
            raise ValueError(f"{where}: there is no task {strange[0]!r}; {named}")
        for task, share in self._shares(stage).items():
            if share and stage.weights and not self._weights(stage, task):
                raise ValueError(
                    f"{where}: the task {task!r} has no sample of the types {sorted(stage.weights)}; name one of its types in weights, "
                    "or leave the task out of the stage with tasks"
                )
        drawn = {task for task, share in self._shares(stage).items() if share} or tasks
        for kind, weight in stage.weights.items():
            if weight and not any((task, kind) in self._members for task in drawn):
                raise ValueError(
                    f"{where}: no task that it draws from ({', '.join(sorted(drawn))}) has a sample of the type {kind!r}; name a task "
                    "that has one in tasks, or leave the type out of weights"
                )

    def _shares(self, stage: Stage) -> Mapping[str, float]:
        """Of each task in a stage; empty where it draws from all of them alike."""
        if stage.tasks or self.mix.shares:
            return stage.tasks or self.mix.shares
        return {} if self.mix.run == 1 else shares_by_size(Counter(self.mix.tasks))

    def _weights(self, stage: Stage, task: str) -> dict[str, float]:
        """Positive shares of the types that a task has."""
        return {kind: weight for kind, weight in stage.weights.items() if weight and (task, kind) in self._members}

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
        over = self.grouping.passes if isinstance(self.grouping, VideoGrouping) else _passes
        passes = _Passes(self._members, over, generator)
        for stage in self.stages:
            yield self._drawn(stage, passes, generator)

    def _drawn(self, stage: Stage, passes: _Passes, generator: torch.Generator) -> Iterator[int]:
        shares = {task: share for task, share in self._shares(stage).items() if share}
        for _ in range(stage.steps * self.samples_per_step // self.mix.run):
            task = _one_of(shares, generator) if shares else None
            weights = stage.weights if task in (None, "") else self._weights(stage, task)
            for _ in range(self.mix.run):
                yield passes.next(task, _one_of(weights, generator) if weights else None)


class _Passes:
    """Shuffled passes without end over the samples of a task, of a type, of both, or over all."""

    def __init__(
        self,
        members: Mapping[tuple[str, str], list[int]],
        over: Callable[[list[int], torch.Generator], Iterator[int]],
        generator: torch.Generator,
    ) -> None:
        self._members = members
        self._over = over
        self._generator = generator
        self._running: dict[tuple[str | None, str | None], Iterator[int]] = {}

    def next(self, task: str | None, kind: str | None) -> int:
        """The next sample; None stands for any task, any type."""
        if (task, kind) not in self._running:
            found = [m for key, m in self._members.items() if task in (None, key[0]) and kind in (None, key[1])]
            self._running[task, kind] = self._over(sorted(itertools.chain(*found)), self._generator)
        return next(self._running[task, kind])


def _one_of(weights: Mapping[str, float], generator: torch.Generator) -> str:
    """A name by its weight."""
    values = torch.tensor(list(weights.values()), dtype=torch.float64)
    values /= values.max()  # their sum may overflow
    return list(weights)[int(torch.multinomial(values, 1, generator=generator))]


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
    tasks: Sequence[str] = ()
    """Of every sample, where a forward pass holds one task only."""

    def arranged(self, drawn: Iterator[int], samples_per_step: int, generator: torch.Generator) -> Iterator[int]:
        """The drawn samples, window by window."""
        size = samples_per_step // self.passes  # those of all processes, which wait for each other
        while window := list(itertools.islice(drawn, self.window * samples_per_step)):
            ordered = sorted(window, key=lambda index: (self.tasks[index] if self.tasks else "", self.lengths[index]))
            for place in torch.randperm(len(ordered) // size, generator=generator).tolist():
                yield from ordered[place * size : (place + 1) * size]


def _passes(members: list[int], generator: torch.Generator) -> Iterator[int]:
    """Shuffled passes over ``members`` without end."""
    while True:
        for place in torch.randperm(len(members), generator=generator).tolist():
            yield members[place]
