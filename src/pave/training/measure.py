"""What training measures on its samples before the first step: mean and deviation of side features."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

import torch

from pave.data.dataset import PatchDataset
from pave.patching import patch_slot

logger = logging.getLogger(__name__)

MOST_STREAMS = 256
"""Streams (of different videos or files) that are measured; more are thinned out evenly."""


def measure_features(model: Any, data: PatchDataset, most: int = MOST_STREAMS, skip: Collection[str] = ()) -> None:
    """Measure the side features of every channel whose fusion has ``standardize``, and keep the numbers in the attached patch.

    ``pave train`` does this by itself; call it before the first step of a loop of your own. The choice of streams depends on the
    order of the samples alone, so that every process measures the same.

    Args:
        model: with a patch attached.
        data: the training samples.
        most: streams that are read.
        skip: channels that keep the numbers they have, because they were trained with them.

    Raises:
        ValueError: if none of the streams has any feature.
        SampleError: if one cannot be read.
    """
    for name, fusion in patch_slot(model).fusions.items():
        if name in skip or fusion.standardize is None:  # type: ignore[union-attr]
            continue
        first: dict[tuple[str, str | None], int] = {}
        for index, sample in enumerate(data.samples):
            if sample.side_channels.get(name, "") is not None:
                first.setdefault((sample.video, sample.side_channels.get(name)), index)
        streams = list(first.values())
        chosen = [streams[i * len(streams) // min(most, len(streams))] for i in range(min(most, len(streams)))]
        found = [features for i in chosen if (features := data[i].side[name]) is not None]
        rows = [torch.as_tensor(features.features_KMC).flatten(0, 1) for features in found]
        if not sum(map(len, rows)):
            raise ValueError(
                f"side channel {name!r}: standardize has nothing to measure, none of {len(chosen)} training samples has the channel; "
                "check the samples with pave doctor, or set fusion.standardize: false"
            )
        fusion.standardize.measure(torch.cat(rows))  # type: ignore[union-attr, operator]
        logger.info("measured the side channel %r on %d streams", name, len(found))
