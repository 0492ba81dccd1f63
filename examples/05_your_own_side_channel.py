"""Teach the model a stream of your own: the log of a sensor that runs beside the video, with its own uneven clock.

    python examples/05_your_own_side_channel.py [FOLDER]

Nothing has to be registered. A side channel is a tensor of features and the second at which each step was measured.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from pave import EncoderConfig, FusionConfig, PatchConfig, SideChannelConfig, attach_patch, save_patch
from pave.data.collator import PatchCollator
from pave.data.items import PatchItem
from pave.data.media import FrameSampling, read_frames
from pave.evaluation.generation import generate_texts
from pave.playground import base_path
from pave.playground.clips import clip_name, render_clips
from pave.side_channels import SideFeatures
from pave.training import PatchTrainer, TrainingConfig

QUESTION = "does the sensor reading increase or decrease ?"
TRENDS = {"increase": 0.4, "decrease": -0.4, "steady": 0.0}  # units a second
FUSION = FusionConfig(width=64, embed_width=64)
SENSOR = SideChannelConfig(kind="sensor", width=2, encoder=EncoderConfig(name="features", settings={"width": 2}), fusion=FUSION)


def record(trend: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A made-up log: 8 s of about 20 readings a second at uneven times; the sensor starts up to 1 s late."""
    seconds = np.sort(rng.uniform(rng.uniform(0, 1), 8, 160))
    return seconds, rng.normal() + TRENDS[trend] * seconds + 0.1 * rng.normal(size=seconds.size)


def encode(seconds: np.ndarray, values: np.ndarray) -> SideFeatures:
    """One step for every ten readings: their slope and spread, at their mean time. This is where your own encoder goes."""
    windows = list(zip(seconds.reshape(-1, 10), values.reshape(-1, 10)))
    steps = torch.tensor([[np.polyfit(t, v, 1)[0], v.std()] for t, v in windows]).float()
    return SideFeatures(steps, torch.tensor([t.mean() for t, _ in windows]))


def make_items(folder: Path, split: str, count: int, rng: np.random.Generator) -> list[PatchItem]:
    items = []
    for _ in render_clips(folder, split, count, silent=True, processes=0):
        pass
    for index in range(count):
        clip = read_frames(folder / clip_name(split, index), FrameSampling(num_frames=8))
        trend = list(TRENDS)[index % 3]
        side = {"sensor": encode(*record(trend, rng))}
        items.append(PatchItem(f"{split}-{index}", clip.frames_FHWC, clip.times_F, ((QUESTION, trend),), side))
    return items


def main(folder: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(base_path())
    processor = AutoProcessor.from_pretrained(base_path())
    attach_patch(model, PatchConfig(side_channels={"sensor": SENSOR}))
    rng = np.random.default_rng(0)
    train, test = make_items(folder, "train", 90, rng), make_items(folder, "test", 60, rng)

    numbers = TrainingConfig(batch_size=12, learning_rate=3e-3, lora_learning_rate=1e-3, trainer={"disable_tqdm": True})
    args = numbers.arguments(str(folder / "run"), num_steps=60)
    collator = PatchCollator(processor, model.config, {"sensor": SENSOR})
    PatchTrainer(model, args, data_collator=collator, train_dataset=train).train()

    batch = PatchCollator(processor, model.config, {"sensor": SENSOR}, train=False)(test)
    for name, patch in (("base", False), ("patch", True)):
        answers = generate_texts(model, processor, batch, patch=patch, max_new_tokens=3)
        right = sum(answer == item.turns[0][1] for answer, item in zip(answers, test))
        print(f"{name}: {right} of {len(test)} right, for example {answers[:3]}")
    save_patch(model, folder / "patch", processor=processor)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))
