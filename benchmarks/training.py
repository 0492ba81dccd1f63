"""Samples per second and peak memory of training: the plain way against ours, on the same samples in the same order.

    python benchmarks/training.py                    # the base inside the package, about a minute on two cores
    python benchmarks/training.py --base 0.5b        # a randomly initialised LLaVA-OneVision 0.5B, 4 frames, bfloat16; 14 GB, eight minutes
    python benchmarks/training.py --base 0.5b --device cuda --frames 32

- plain: the vision tower runs in every step, logits are made for every token of the prompt, every question has a row of its own;
- ours: vision features of the frozen base kept in memory (data.vision), the language model's head on answers only, the questions of a
  video in one row (data.share_videos).

Both keep decoded frames and side features in memory, so neither decodes in the steps that are counted, and the first pass over the clips is
not counted. The patch is that of the demo without its gate (a gate needs one question a row) on the small base, and the compact preset on the
0.5B. Each way runs in a process of its own. *Step memory* is the process's peak in the counted steps beyond what it held when training
began (on a GPU, what torch had allocated); *peak* is all of it. The losses are means over all steps and differ by rounding only.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
import transformers
from prefill import forget_peak, peak_bytes
from share_videos import QUESTIONS, in_own_rows

import pave.training.trainer
from pave import PatchConfig
from pave.demo.plan import SHORT, audio_patch, recipe
from pave.playground import base_path
from pave.playground.clips import render_clips, write_samples
from pave.training import Recipe, run_recipe
from pave.training.loss import plain_loss
from pave.training.sampler import Stage
from pave.video_llms.known import load_config


class Meter(transformers.TrainerCallback):
    """Seconds and memory of the steps after the first ``skip``."""

    def __init__(self, skip: int, device: str) -> None:
        self.skip, self.device = skip, device
        self.seconds: list[float] = []
        self.before = self.peak = 0
        self._start = 0.0

    def on_train_begin(self, *args: object, **kwargs: object) -> None:
        forget_peak(self.device)
        self.before = self._most()

    def on_step_begin(self, args: object, state: transformers.TrainerState, *rest: object, **kwargs: object) -> None:
        if state.global_step == self.skip:
            forget_peak(self.device)
        self._start = time.perf_counter()

    def on_step_end(self, args: object, state: transformers.TrainerState, *rest: object, **kwargs: object) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()
        if state.global_step > self.skip:
            self.seconds.append(time.perf_counter() - self._start)
            self.peak = self._most()

    def _most(self) -> int:
        held = peak_bytes(self.device)
        if held is None:
            raise SystemExit("memory on a processor is measured on Linux only")
        return held


def make_base(folder: Path, dtype: torch.dtype) -> Path:
    """A LLaVA-OneVision 0.5B with random weights and the small base's tokenizer, as a folder that ``from_pretrained`` loads."""
    config = load_config("llava-onevision-qwen2-0.5b")
    small = transformers.AutoConfig.from_pretrained(base_path())
    config.image_token_index, config.video_token_index = small.image_token_index, small.video_token_index
    config.text_config.eos_token_id, config.text_config.pad_token_id = (
        small.text_config.eos_token_id,
        small.text_config.pad_token_id,
    )
    torch.manual_seed(0)
    transformers.AutoModelForImageTextToText.from_config(config, dtype=dtype).save_pretrained(folder)
    processor = transformers.AutoProcessor.from_pretrained(base_path())
    size = config.vision_config.image_size
    processor.video_processor.size = {"height": size, "width": size}
    processor.num_image_tokens = (size // config.vision_config.patch_size) ** 2
    processor.save_pretrained(folder)
    return folder


def recipe_of(given: argparse.Namespace, folder: Path) -> Recipe:
    """What both ways train."""
    if given.base == "playground":
        patch = audio_patch()
        audio = patch.side_channels["audio"]
        audio = dataclasses.replace(audio, fusion=dataclasses.replace(audio.fusion, gate=False))
        patch, base, dtype = dataclasses.replace(patch, side_channels={"audio": audio}), str(base_path()), "float32"
    else:
        small = audio_patch().side_channels["audio"]
        patch = PatchConfig.compact(audio=small.width)
        channel = dataclasses.replace(patch.side_channels["audio"], encoder=small.encoder)
        patch, base, dtype = dataclasses.replace(patch, side_channels={"audio": channel}), str(folder / "base"), "bfloat16"
    plain = recipe(patch, SHORT, base=base, train="data/train.jsonl", output="run", seed=0)
    ours = given.way == "ours"
    data = dataclasses.replace(
        plain.data,
        vision="memory" if ours else "tower",
        share_videos=given.questions,
        stages=(Stage(steps=_passes(given) + given.steps),),
        frames=dataclasses.replace(plain.data.frames, num_frames=given.frames),
    )
    training = dataclasses.replace(plain.training, batch_size=given.questions * given.videos)
    return dataclasses.replace(
        plain, base=dataclasses.replace(plain.base, dtype=dtype), data=data, training=training, output=str(folder / given.way)
    )


def _passes(given: argparse.Namespace) -> int:
    """Steps until every clip was seen."""
    return -(-given.clips // given.videos)


@contextlib.contextmanager
def whole_logits(plain: bool) -> Iterator[None]:
    """The model's own loss, over logits of the whole prompt."""
    if not plain:
        yield
        return

    def loss(model: torch.nn.Module, head: torch.nn.Module, inputs: dict[str, object], items: object = None) -> object:
        return plain_loss(model, inputs, items)  # type: ignore[arg-type]

    with mock.patch.object(pave.training.trainer, "answer_loss", loss):
        yield


def one_way(given: argparse.Namespace) -> None:
    """In a process of its own: train and print one line of JSON."""
    torch.set_num_threads(given.threads)
    folder = Path(given.folder)
    meter = Meter(_passes(given), given.device)
    plain = given.way == "plain"
    with in_own_rows(plain), whole_logits(plain):
        done = run_recipe(recipe_of(given, folder), folder=folder, progress=False, callbacks=[meter])
    samples = given.questions * given.videos
    row = {
        "samples_per_second": samples / statistics.median(meter.seconds),
        "seconds": [round(s, 3) for s in meter.seconds],
        "step_memory": meter.peak - meter.before,
        "peak": meter.peak,
        "train_loss": done.train_loss,
    }
    print("\n" + json.dumps(row))


def measure(given: argparse.Namespace) -> dict[str, object]:
    """Both ways in turn, ``rounds`` times, and what lies between them."""
    rows: dict[str, list[dict[str, float]]] = {"plain": [], "ours": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in render_clips(folder / "data", "train", given.clips, processes=0):
            pass
        write_samples(folder / "data" / "train.jsonl", "train", given.clips, QUESTIONS[: given.questions])
        if given.base != "playground":
            make_base(folder / "base", torch.bfloat16)
        for turn in range(given.rounds):
            for way in rows:
                command = [sys.executable, __file__, *sys.argv[1:], "--way", way, "--folder", str(folder)]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(done.stderr)
                rows[way].append(json.loads(done.stdout.splitlines()[-1]))
                print(f"round {turn + 1}, {way}: {rows[way][-1]}", file=sys.stderr, flush=True)
    middle = {
        way: {key: statistics.median([row[key] for row in found]) for key in found[0] if key != "seconds"}
        for way, found in rows.items()
    }
    return {
        **{way: {**{k: round(v, 4) for k, v in values.items() if k in ("samples_per_second", "train_loss")},
                 **{f"{k}_GB": round(v / 1e9, 3) for k, v in values.items() if k in ("step_memory", "peak")}} for way, values in middle.items()},
        "speed": round(middle["ours"]["samples_per_second"] / middle["plain"]["samples_per_second"], 2),
        "step_memory": round(middle["ours"]["step_memory"] / middle["plain"]["step_memory"], 3),
        "peak_memory": round(middle["ours"]["peak"] / middle["plain"]["peak"], 3),
        "speed_of_each_round": [round(b["samples_per_second"] / a["samples_per_second"], 2) for a, b in zip(rows["plain"], rows["ours"], strict=True)],
        "base": given.base, "frames": given.frames, "questions_a_step": given.questions * given.videos, "threads": given.threads,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", choices=["playground", "0.5b"], default="playground")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--clips", type=int, help="16, or 2 for the 0.5B")
    parser.add_argument("--videos", type=int, help="in a step; 4, or 1")
    parser.add_argument("--questions", type=int, help="of a video; 6, or 4")
    parser.add_argument("--frames", type=int, help="8, or 4")
    parser.add_argument("--steps", type=int, help="that are counted; 6, or 2")
    parser.add_argument("--rounds", type=int, help="3, or 1")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--way", choices=["plain", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    defaults = {"clips": (16, 2), "videos": (4, 1), "questions": (6, 4), "frames": (8, 4), "steps": (6, 2), "rounds": (3, 1)}
    for name, pair in defaults.items():
        if getattr(given, name) is None:
            setattr(given, name, pair[given.base != "playground"])
    if given.way:
        one_way(given)
    else:
        print(json.dumps(measure(given), indent=1))


if __name__ == "__main__":
    main()
