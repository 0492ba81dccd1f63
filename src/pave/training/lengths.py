"""How long a sample's prompt will be, told without decoding its video."""

from __future__ import annotations

from math import ceil

from pave.data.collator import PatchCollator
from pave.data.dataset import PatchDataset
from pave.data.media import FrameSampling, probe
from pave.data.prompts import render_prompt


def token_lengths(dataset: PatchDataset, collator: PatchCollator) -> list[int]:
    """Tokens of every sample's prompt, for grouping; what all videos have in common may be left out.

    The text is counted exactly. Where videos have different numbers of frames, each counts as the first sample's do; another size
    of the picture is not looked at.

    Raises:
        ValueError: if a video cannot be read, or a conversation cannot be rendered.
    """
    tokenizer = collator.processor.tokenizer
    texts = [render_prompt(collator.processor, sample.turns).text for sample in dataset.samples]
    counts = [len(tokenizer(text)["input_ids"]) for text in texts]
    if dataset.frame_sampling.num_frames is not None:
        return counts
    first = dataset[0]
    per_frame = (int(collator([first])["attention_mask"].sum()) - counts[0]) / len(first.times_F)
    frames = {video: _num_frames(video, dataset.frame_sampling) for video in {sample.video for sample in dataset.samples}}
    return [count + round(per_frame * frames[sample.video]) for count, sample in zip(counts, dataset.samples, strict=True)]


def _num_frames(video: str, sampling: FrameSampling) -> int:
    """About how many frames are taken of a video of which only the container is read."""
    info = probe(video).video
    if info is None or not info.duration:
        return 1
    window = max(0.0, min(sampling.end or info.duration, info.duration) - sampling.start)
    count = ceil(window * (sampling.fps or info.average_rate))
    return count if sampling.max_frames is None else min(count, sampling.max_frames)
