"""Teach the model a stream of your own: the log of a sensor that runs beside the video, with its own uneven clock.

    python examples/05_your_own_side_channel.py [FOLDER]

A log is a CSV file that a sample names. For other formats write an encoder of your own: docs/your_own_side_channel.md.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from transformers import AutoModelForImageTextToText, AutoProcessor

from pave import EncoderConfig, FusionConfig, PatchConfig, SideChannelConfig, attach_patch, save_patch
from pave.data.collator import PatchCollator
from pave.data.dataset import PatchDataset
from pave.data.media import FrameSampling
from pave.data.samples import Sample
from pave.evaluation.generation import generate_texts
from pave.playground import base_path
from pave.playground.clips import clip_name, render_clips
from pave.side_channels import build_encoder
from pave.training import PatchTrainer, TrainingConfig

QUESTION = "does the sensor reading increase or decrease ?"
TRENDS = {"increase": 0.4, "decrease": -0.4, "steady": 0.0}  # units a second
# One step for each second: how steeply the reading rises in it and how much it spreads, in units of about that size.
WINDOWS = EncoderConfig(
    name="sensor_windows", settings={"columns": ["reading"], "statistics": ["slope", "std"], "scale": [0.3]}
)
SENSOR = SideChannelConfig(kind="sensor", width=2, encoder=WINDOWS, fusion=FusionConfig(width=64, embed_width=64))


def write_log(path: Path, trend: str, rng: np.random.Generator) -> None:
    """8 s of about 20 readings a second at uneven times; the sensor starts up to 1 s late."""
    seconds = np.sort(rng.uniform(rng.uniform(0, 1), 8, 160))
    readings = rng.normal() + TRENDS[trend] * seconds + 0.1 * rng.normal(size=seconds.size)
    rows = [f"{second:.9f},{reading:.4f}" for second, reading in zip(seconds, readings)]
    path.write_text("\n".join(["time,reading", *rows]) + "\n")


def make_dataset(folder: Path, split: str, count: int, rng: np.random.Generator) -> PatchDataset:
    samples = []
    for _ in render_clips(folder, split, count, silent=True, processes=0):
        pass
    for index in range(count):
        clip, trend = folder / clip_name(split, index), list(TRENDS)[index % 3]
        log = clip.with_suffix(".csv")
        write_log(log, trend, rng)
        side = {"sensor": str(log)}
        samples.append(Sample(id=f"{split}-{index}", video=str(clip), question=QUESTION, answer=trend, side_channels=side))
    encoders = {"sensor": build_encoder(WINDOWS)}
    return PatchDataset(samples, FrameSampling(num_frames=8), encoders, {"sensor": SENSOR}, cache="memory")


def main(folder: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(base_path())
    processor = AutoProcessor.from_pretrained(base_path())
    attach_patch(model, PatchConfig(side_channels={"sensor": SENSOR}))
    rng = np.random.default_rng(0)
    train, test = make_dataset(folder, "train", 90, rng), make_dataset(folder, "test", 60, rng)

    rates = {"learning_rate": 1e-2, "lora_learning_rate": 3e-3, "output_norm_multiplier": 40}
    args = TrainingConfig(batch_size=12, **rates, trainer={"disable_tqdm": True}).arguments(str(folder / "run"), num_steps=100)
    collator = PatchCollator(processor, model.config, {"sensor": SENSOR})
    PatchTrainer(model, args, data_collator=collator, train_dataset=train).train()

    batch = PatchCollator(processor, model.config, {"sensor": SENSOR}, train=False)([test[i] for i in range(len(test))])
    for name, patch in (("base", False), ("patch", True)):
        answers = generate_texts(model, processor, batch, patch=patch, max_new_tokens=3)
        right = sum(answer == sample.answer for answer, sample in zip(answers, test.samples))
        print(f"{name}: {right} of {len(test)} right, for example {answers[:3]}")
    save_patch(model, folder / "patch", processor=processor)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))
