"""Samples per second of processor time in training with and without the base's stored vision features, on the small base inside the package.

    python benchmarks/vision_store.py            # about two minutes on one core

Trains the demo's audio patch for a few steps, one run after the other in one process on one thread:

- nothing: videos are decoded, sound is encoded and the vision tower runs in every step;
- cache: decoded frames and side features are kept in memory (data.cache), the tower runs in every step;
- store: vision and side features come from a feature store on disk;
- memory: vision and side features are kept in memory.

The first pass over the clips is not counted. Time is that of the processor, which other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import tempfile
from pathlib import Path

import torch
import transformers

from pave.data.samples import read_samples
from pave.data.store import FeatureStore, extract, plan_features
from pave.data.store.plan import VISION
from pave.demo.plan import SHORT, audio_patch, recipe
from pave.playground import base_path
from pave.playground.clips import render_clips, write_samples
from pave.side_channels import build_encoder
from pave.training import run_recipe
from pave.training.run import base_vision
from pave.training.sampler import Stage

WAYS = {
    "nothing": {"cache": None, "vision": "tower"},
    "cache": {"cache": "memory", "vision": "tower"},
    "store": {"cache": None, "vision": "store"},
    "memory": {"cache": "memory", "vision": "memory"},
}
"""Settings of data in a recipe."""


class Clock(transformers.TrainerCallback):
    """Seconds of processor time that were used when each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        self.ends.append(sum(x.ru_utime + x.ru_stime for x in used))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4, help="steps that are counted")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="turns of all, to see how far one run is from another")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(measure(Path(name), arguments), indent=1))


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Samples per second of each round, ratios of the medians, and the size of the store."""
    for _ in render_clips(folder / "data", "train", arguments.clips, processes=0):
        pass
    write_samples(folder / "data" / "train.jsonl", "train", arguments.clips, [["sound"]])
    plain = recipe(audio_patch(), SHORT, base=str(base_path()), train="data/train.jsonl", output="run", seed=0)
    samples = read_samples(folder / "data" / "train.jsonl")
    store = FeatureStore(folder / "store", create=True)
    encoders = {name: build_encoder(channel.encoder) for name, channel in plain.patch.side_channels.items()}
    extract(plan_features(samples, {**encoders, VISION: base_vision(plain, base_path())}, store.hashes()), store, processes=0)
    passed = -(-len(samples) // arguments.batch_size)  # every clip was seen
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    stages = (Stage(steps=passed + arguments.steps),)
    training = dataclasses.replace(plain.training, batch_size=arguments.batch_size)
    for turn in range(arguments.rounds):
        for way, found in rates.items():
            settings = {**WAYS[way], **({"store": str(folder / "store")} if way == "store" else {})}
            data = dataclasses.replace(plain.data, **settings, stages=stages)
            run = dataclasses.replace(plain, data=data, training=training, output=str(folder / f"{way}{turn}"))
            clock = Clock()
            run_recipe(run, folder=folder, progress=False, callbacks=[clock])
            seconds = clock.ends[-1] - clock.ends[passed - 1]
            found.append(arguments.steps * arguments.batch_size / seconds)
    middle = {way: statistics.median(found) for way, found in rates.items()}
    return {
        "samples_per_second": {way: [round(x, 1) for x in found] for way, found in rates.items()},
        "ratio_to_nothing": {way: round(rate / middle["nothing"], 2) for way, rate in middle.items()},
        "ratio_to_cache": {way: round(rate / middle["cache"], 2) for way, rate in middle.items()},
        "store_megabytes": {size.name: round(size.num_bytes / 1e6, 2) for size in store.sizes()},
        "clips": arguments.clips,
    }


if __name__ == "__main__":
    main()
