"""What ``pave train --dry-run`` finds out about the order of the samples, by drawing it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pave.data.samples import Sample
from pave.patching.training_memory import SharedRows
from pave.training.arguments import TrainingConfig
from pave.training.recipe import Recipe
from pave.training.run import video_grouping
from pave.training.sampler import Stage, StagedSampler
from pave.training.sharing import VideoGrouping
from pave.training.tasks import task_mix

MOST_LOOKED_AT = 100_000
"""Samples of the order that are looked at where questions share videos."""


@dataclass(frozen=True)
class Order:
    """Of the samples of a run."""

    shared: SharedRows | None = None
    """Rows of a forward pass, where questions share videos."""
    missing: list[str] = field(default_factory=list)
    """Why it cannot be drawn."""
    notes: list[str] = field(default_factory=list)


def look_at_order(
    recipe: Recipe, training: TrainingConfig, tasks: Mapping[str, Sequence[Sample]] | None, per_step: int, steps: int | None
) -> Order:
    """Draw the order of a run.

    Args:
        recipe: what would be run.
        training: its numbers, with those that the Trainer's own arguments change.
        tasks: the training samples of each task; None where they are not known.
        per_step: samples in an optimizer step, over all processes.
        steps: optimizer steps of the run; None where they are not known.
    """
    if tasks is None:
        return _without_samples(recipe.data.share_videos, training.batch_size)
    train = [sample for samples in tasks.values() for sample in samples]
    types = [sample.type for sample in train]
    strange = sorted({kind for stage in recipe.data.stages for kind in stage.weights} - set(types))
    if strange:
        return Order(
            missing=[f"data.stages draws samples of type {kind!r}, but no training sample is of it" for kind in strange]
        )
    weights = {name: task.weight for name, task in recipe.data.all_tasks().items()}
    counts = {name: len(samples) for name, samples in tasks.items()}
    mix = task_mix(weights, counts, recipe.data.mixing, per_step // training.accumulation)
    stages = recipe.data.stages or [Stage(steps=steps or 1)]
    try:
        grouping = video_grouping(recipe, train, training.batch_size)
        sampler = StagedSampler(types, stages, per_step, training.seed, grouping, mix)
    except ValueError as error:
        return Order(missing=[str(error)])
    if grouping is None:
        return Order()
    rows = grouping.rows(itertools.islice(sampler, MOST_LOOKED_AT))
    widest, longest = max(rows)
    return Order(SharedRows(rows=widest, longest=longest, mean_rows=sum(count for count, _ in rows) / len(rows)))


def _without_samples(most: int | None, batch: int) -> Order:
    if most is None:
        return Order()
    try:
        VideoGrouping([], most, batch)
    except ValueError as error:
        return Order(missing=[str(error)])
    full = SharedRows(rows=-(-batch // most), longest=most, mean_rows=batch / most)
    return Order(full, notes=["without the samples, every row is taken to be full (data.share_videos)"])
