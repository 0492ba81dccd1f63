"""What ``pave train --dry-run`` finds out about side streams that samples name a file for, by reading a few of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pave.data.acting import ActingWatch
from pave.data.answer_probe import probe_samples
from pave.data.dataset import PatchDataset
from pave.data.media import FrameSampling, MediaError, probe
from pave.data.samples import Sample
from pave.side_channels import SideEncoder
from pave.training.recipe import Recipe

MOST_LOOKED_AT = 8
"""Streams of a channel that are read."""
MOST_PROBED = 100
"""Streams of a channel whose features are probed for the answers."""
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
        What keeps the run from starting (a stream that cannot be read, a channel of which nothing can act), and notes, also of a channel
        from whose features a probe surely reads the answers of no type of question (``pave.data.answer_probe``).
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
    notes = [text for name, text in said.items() if name not in idle]
    if not missing:
        notes += _probe(data, [sample for sample in samples if os.path.isfile(sample.video)])
    return missing, notes


def _probe(data: PatchDataset, samples: Sequence[Sample]) -> list[str]:
    """A sentence for each channel from whose features no answer is surely read. Videos themselves are not decoded for it."""
    read = [sample for sample in samples if all(map(os.path.exists, filter(None, sample.side_channels.values())))]
    named = [sample for sample in read if any(sample.side_channels.get(name) for name in data.encoders)]
    try:
        scores = probe_samples(named, data, most=MOST_PROBED)
    except ValueError as error:  # looked at above: a few streams only
        return [f"the features were not probed: {error}"]
    said = []
    for name in data.encoders:
        own = [score for score in scores if score.channel == name and not score.several]
        if own and all(score.near_chance or score.unsure for score in own):
            found = ", ".join(
                f"{score.name} {100 * score.accuracy:.0f} % (guessing {100 * score.chance:.0f} %)" for score in own
            )
            follows = "these features do not hold the answer, unless the question needs the picture too"
            if any(score.unsure for score in own):
                follows = "too few streams to tell whether these features hold the answer"
            said.append(
                f"side channel {name!r}: a linear probe on {max(score.streams for score in own)} streams reads no answer for sure from its "
                f"features: {found}; {follows} (pave probe)"
            )
    return said


def _frame_times(video: str, sampling: FrameSampling) -> NDArray[np.float64]:
    """About where the frames of a video will lie, from its container alone."""
    info = probe(video).video
    if info is None:
        raise MediaError(f"{video}: there is no video stream")
    end = min(sampling.end or info.duration, info.duration)
    count = sampling.num_frames or _FRAMES
    return sampling.start + (np.arange(count) + 0.5) * (end - sampling.start) / count
