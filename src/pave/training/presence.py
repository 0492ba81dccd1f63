"""Whether a run can learn anything from its samples: looked at before the first step."""

from __future__ import annotations

from typing import Any

from pave.data.dataset import PatchDataset
from pave.data.samples import Sample
from pave.patching import patch_slot


def check_channels_there(model: Any, data: PatchDataset) -> None:
    """Refuse a run in which no sample has a channel whose fusion is trained: it would be saved as it began, without a word.

    Sample after sample is read until one has the channel, as a rule the first.

    Args:
        model: with a patch attached; what is trained requires gradients.
        data: the training samples.

    Raises:
        ValueError: naming the channel.
    """
    for name, fusion in patch_slot(model).fusions.items():
        if not any(parameter.requires_grad for parameter in fusion.parameters()):
            continue
        streams = {(sample.video, sample.side_channels.get(name, "")): sample for sample in data.samples}
        if not any(_has(data, name, sample) for sample in streams.values()):
            raise ValueError(
                f"no training sample has the side channel {name!r} (of {len(streams)} videos looked at), so its fusion can learn "
                "nothing; look at the samples with pave doctor, or leave the channel out of patch.side_channels or training.train"
            )


def _has(data: PatchDataset, name: str, sample: Sample) -> bool:
    try:
        features = data.features(name, sample)
    except ValueError:  # a file that cannot be read is told of when its sample comes
        return True
    return features is not None and len(features.times_K) > 0
