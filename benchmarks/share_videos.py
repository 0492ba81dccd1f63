"""What data.share_videos gains on the small base inside the package: samples per second of processor time, and memory.

    python benchmarks/share_videos.py            # a few minutes on one core

Trains the demo's audio patch without its gate, six questions a video, one run after the other in one process on one thread:

- alone: a row for each question;
- shared: six questions of one video in one row.

Each with the vision tower in every step (tower) and with its features kept in memory (memory); frames and side features are cached
in all of them. Both see the same samples in the same order. The first pass over the clips is not counted. Time is that of the
processor, which other programs on the machine disturb less. Memory is what the forward pass of a training step keeps for the backward
pass, parameters left out, the largest of the run: on a processor it is counted tensor by tensor.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
from pathlib import Path
from unittest import mock

import torch
import transformers
from torch import Tensor
from vision_store import Clock

import pave.data.collator
from pave.demo.plan import SHORT, audio_patch, recipe
from pave.playground import base_path
from pave.playground.clips import render_clips, write_samples
from pave.training import run_recipe
from pave.training.sampler import Stage

QUESTIONS = [["colour"], ["shape"], ["first_mover"], ["light"], ["sound"], ["sound_vision"]]


class Kept(transformers.TrainerCallback):
    """Bytes that a step keeps for its backward pass, each storage once, those of parameters left out."""

    def __init__(self) -> None:
        self.most = 0
        self._hooks: object = None

    def on_step_begin(self, *args: object, **kwargs: object) -> None:
        seen: dict[int, int] = {}
        model: torch.nn.Module = kwargs["model"]  # type: ignore[assignment]
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                seen[storage.data_ptr()] = storage.nbytes()
            self.most = max(self.most, sum(seen.values()))
            return tensor

        self._hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        self._hooks.__enter__()

    def on_pre_optimizer_step(self, *args: object, **kwargs: object) -> None:
        self._hooks.__exit__()  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4, help="steps that are counted")
    parser.add_argument("--videos", type=int, default=4, help="in a step, six questions each")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3, help="turns of all, to see how far one run is from another")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(measure(Path(name), arguments), indent=1))


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Samples per second of each round, megabytes, and ratios of shared to alone."""
    for _ in render_clips(folder / "data", "train", arguments.clips, processes=0):
        pass
    write_samples(folder / "data" / "train.jsonl", "train", arguments.clips, QUESTIONS)
    patch = audio_patch()
    audio = patch.side_channels["audio"]
    audio = dataclasses.replace(audio, fusion=dataclasses.replace(audio.fusion, gate=False))
    patch = dataclasses.replace(patch, side_channels={"audio": audio})
    plain = recipe(patch, SHORT, base=str(base_path()), train="data/train.jsonl", output="run", seed=0)
    batch, passed = 6 * arguments.videos, -(-arguments.clips // arguments.videos)
    frames = dataclasses.replace(plain.data.frames, num_frames=arguments.frames)
    stages = (Stage(steps=passed + arguments.steps),)
    rates: dict[str, list[float]] = {}
    kept: dict[str, float] = {}
    losses: dict[str, float | None] = {}
    for turn in range(arguments.rounds + 1):  # memory is counted in the first turn, which is not timed
        for way in ("alone, tower", "shared, tower", "alone, memory", "shared, memory"):
            data = dataclasses.replace(plain.data, vision=way.split()[1], stages=stages, share_videos=6, frames=frames)
            training = dataclasses.replace(plain.training, batch_size=batch)
            run = dataclasses.replace(plain, data=data, training=training, output=str(folder / f"{way}{turn}"))
            clock, counter = Clock(), Kept()
            with in_own_rows(way.startswith("alone")):
                result = run_recipe(run, folder=folder, progress=False, callbacks=[clock if turn else counter])
            losses[way] = result.train_loss
            if turn:
                rates.setdefault(way, []).append(arguments.steps * batch / (clock.ends[-1] - clock.ends[passed - 1]))
            else:
                kept[way] = counter.most / 1e6
    middle = {way: statistics.median(found) for way, found in rates.items()}
    return {
        "samples_per_second": {way: [round(x, 1) for x in found] for way, found in rates.items()},
        "speed_shared_to_alone": {v: round(middle[f"shared, {v}"] / middle[f"alone, {v}"], 2) for v in ("tower", "memory")},
        "megabytes_for_backward": {way: round(size, 1) for way, size in kept.items()},
        "memory_shared_to_alone": {v: round(kept[f"shared, {v}"] / kept[f"alone, {v}"], 3) for v in ("tower", "memory")},
        "train_loss": losses,
        "frames": arguments.frames,
        "questions_per_step": batch,
    }


def in_own_rows(alone: bool) -> mock._patch:
    """The samples in the same order, but a row for each."""
    rows: object = pave.data.collator.in_rows
    if alone:
        rows = _one_by_one
    return mock.patch.object(pave.data.collator, "in_rows", rows)


def _one_by_one(items: list[object], most: int) -> list[list[object]]:
    return [[item] for item in items]


if __name__ == "__main__":
    main()
