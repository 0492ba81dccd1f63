"""Train an audio patch from a recipe, from real video files to a saved patch.

    python examples/02_train.py [FOLDER]

A few seconds of training: the loss falls, but the patch does not hear well yet. ``pave demo`` trains until it does. On the
command line the same run is ``pave train recipes/playground_audio.yaml data.train=... output=...``.
"""

import logging
import sys
import tempfile
from pathlib import Path

from pave.evaluation.inference import VideoQA
from pave.patching import read_record
from pave.playground import base_path
from pave.playground.clips import clip_name, render_clips, write_samples
from pave.training import read_recipe, run_recipe
from pave.utils.console import setup_logging

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "playground_audio.yaml"
CLIPS = 64


def main(folder: Path) -> None:
    setup_logging(logging.INFO)  # the losses, on standard error

    # 1. Data: video files with sound, and one JSON line for each question.
    for _ in render_clips(folder, "train", CLIPS, processes=0):
        pass
    samples = folder / "train.jsonl"
    write_samples(samples, "train", CLIPS, [["sound"]])
    print("a sample:", samples.read_text().splitlines()[0])

    # 2. The recipe says everything else. Any value can be overridden with its dotted path.
    changes = {
        "data.train": samples,
        "data.stages": "[{steps: 60, weights: {sound: 1}}]",
        "training.batch_size": 16,
        "output": folder / "run",
    }
    recipe = read_recipe(RECIPE, [f"{key}={value}" for key, value in changes.items()])
    result = run_recipe(recipe, base=base_path(), progress=True)
    print(f"{result.steps} steps, mean loss {result.train_loss:.3f}, {result.seconds:.0f} s")

    # 3. The patch is a folder that says where it came from.
    record = read_record(result.patch)
    size = sum(file.stat().st_size for file in result.patch.rglob("*.safetensors"))
    print(f"saved {size / 1e3:.0f} kB of tensors, trained on data {record.provenance['data']['train'][:23]}...")

    # 4. Use it, as it is in memory. From disk: VideoQA.from_pretrained(base_path(), result.patch).
    qa = VideoQA(result.model, result.processor, sampling=recipe.data.frames)
    video = folder / clip_name("train", 0)
    for name, patch in (("base", False), ("patch", True)):
        answer = qa.ask(video, "what sound is heard ?", patch=patch, max_new_tokens=4)
        print(f"{name}: {answer.text!r}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))
