"""What ``pave train --dry-run`` finds out about side streams that samples name a file for, by reading a few of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pave.data.acting import ActingWatch
from pave.data.dataset import PatchDataset
from pave.data.media import FrameSampling, MediaError, probe
from pave.data.samples import Sample
from pave.side_channels import SideEncoder
from pave.training.recipe import Recipe

MOST_LOOKED_AT = 8
"""Streams of a channel that are read."""
_FRAMES = 8
"""Frames that stand for those of a video, where their number is not set: only the ends count."""


def look_at_streams(
    recipe: Recipe, encoders: Mapping[str, SideEncoder[Any]], samples: Sequence[Sample]
) -> tuple[list[str], list[str]]:
    """Read some streams as training would, and see how much of them can act.

    Args:
        recipe: what would be run.
        encoders: by channel, those that need no weights.
        samples: of training.

    Returns:
        What keeps the run from starting (a stream that cannot be read, a channel of which nothing can act), and notes.
    """
    channels = {name: recipe.patch.side_channels[name] for name in encoders}
    data = PatchDataset((), recipe.data.frames, encoders, channels)
    watch = ActingWatch(channels, encoders, recipe.data.frames)
    missing: list[str] = []
    for name in encoders:
        first: dict[tuple[str, str], Sample] = {}
        for sample in samples:
            path = sample.side_channels.get(name)
            if path is not None and os.path.exists(path) and os.path.isfile(sample.video):
                first.setdefault((sample.video, path), sample)
        streams = list(first.values())
        count = min(MOST_LOOKED_AT, len(streams))
        for sample in (streams[(2 * i + 1) * len(streams) // (2 * count)] for i in range(count)):
            try:
                times_F = _frame_times(sample.video, recipe.data.frames)
                watch.note(sample.id, name, data.features(name, sample), times_F)
            except MediaError:
                continue  # pave doctor looks at videos
            except ValueError as error:
                missing.append(f"sample {sample.id!r}, side channel {name!r}: {error}")
    idle, said = watch.idle(), watch.sentences("samples looked at")
    missing += [text for name, text in said.items() if name in idle]
    return missing, [text for name, text in said.items() if name not in idle]


def _frame_times(video: str, sampling: FrameSampling) -> NDArray[np.float64]:
    """About where the frames of a video will lie, from its container alone."""
    info = probe(video).video
    if info is None:
        raise MediaError(f"{video}: there is no video stream")
    end = min(sampling.end or info.duration, info.duration)
    count = sampling.num_frames or _FRAMES
    return sampling.start + (np.arange(count) + 0.5) * (end - sampling.start) / count
