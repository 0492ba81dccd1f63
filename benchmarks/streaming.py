"""What a streaming session keeps up with: frames a second, time to the first token, bytes held, staleness.

    python benchmarks/streaming.py --seconds 60                           # the small base inside the package, half a minute on one core
    python benchmarks/streaming.py --base 0.5b --layers 1 --vision-layers 1 --fps 1 --seconds 6 --keep-seconds 3 --every 3 --size 384
    python benchmarks/streaming.py --base 0.5b --device cuda --dtype bfloat16 --seconds 90 --keep-seconds 32 --size 384

A recording of random frames and side steps is replayed as fast as it goes, a question every few seconds of it. *ahead*: frames go through the
vision tower when they are pushed. *when asked*: only when a question needs them, each once. *anew*: no session; every question is one call on
the pixels of the same frames. Frames a second are those pushed over the seconds that this took; time to the first token and of the whole answer
are medians over the questions. Side steps arrive out of order and late by up to --delay; the session waits for --lateness.

0.5b has the sizes of LLaVA-OneVision 0.5B and random weights.
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table

from pave import PatchConfig, SideTokens, attach_patch
from pave.data.collator import PatchCollator
from pave.data.items import PatchItem
from pave.inference.generation import generate_ids
from pave.inference.session import Session, StreamAnswer
from pave.inference.session_streams import Lateness
from pave.playground import base_path
from pave.video_llms.known import KNOWN_CONFIGS
from pave.video_llms.loading import load_base

WIDTH, QUESTION = 64, "what sound is heard ?"


@dataclass
class Measured:
    """Of one way to answer."""

    pushing: float = 0.0
    """Seconds that all frames took."""
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    stale: list[float] = field(default_factory=list)
    most_bytes: int = 0
    late: int = 0
    reused: str = ""


def build(options: argparse.Namespace) -> tuple[Any, Any]:
    dtype = getattr(torch, options.dtype)
    model, processor = load_base(base_path())
    if options.base == "0.5b":
        values = copy.deepcopy(KNOWN_CONFIGS["llava-onevision-qwen2-0.5b"])
        vision, text = values["vision_config"], values["text_config"]
        vision["num_hidden_layers"] = options.vision_layers or vision["num_hidden_layers"]
        text.update(num_hidden_layers=options.layers or text["num_hidden_layers"], vocab_size=152000)
        tokens = {"video_token_id": model.config.video_token_id, "image_token_id": model.config.image_token_id}
        config = transformers.AutoConfig.for_model(**{**values, **tokens})
        torch.manual_seed(0)
        model = transformers.AutoModelForImageTextToText.from_config(config)
        processor.video_processor.size = {"height": vision["image_size"], "width": vision["image_size"]}
        processor.num_image_tokens = (vision["image_size"] // vision["patch_size"]) ** 2
    attach_patch(model, PatchConfig.compact(audio=WIDTH))
    return model.to(options.device, dtype).eval().requires_grad_(False), processor


def recording(options: argparse.Namespace) -> tuple[Any, list[tuple[float, str, int]], Any, Any]:
    """Frames, what comes in the order in which it comes, tokens and times of the side steps."""
    chance = random.Random(0)
    frames = np.random.default_rng(0).integers(0, 256, (16, options.size, options.size, 3), dtype=np.uint8)
    times = torch.arange(0.125, options.seconds, 1 / options.steps, dtype=torch.float64)
    tokens = torch.randn(len(times), 1, WIDTH, generator=torch.Generator().manual_seed(0))
    events = [(number / options.fps, "frame", number) for number in range(int(options.seconds * options.fps))]
    events += [(float(t) + chance.uniform(0, options.delay), "step", number) for number, t in enumerate(times)]
    questions = np.arange(options.every, options.seconds + 1e-9, options.every)
    return frames, sorted([*events, *((float(at), "question", 0) for at in questions)]), tokens, times


def wait(device: str) -> float:
    if device != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def stream(model: Any, processor: Any, options: argparse.Namespace, ahead: bool) -> tuple[Measured, list[StreamAnswer]]:
    frames, events, tokens, times = recording(options)
    measured, answers = Measured(), []
    lateness = Lateness(reorder_seconds=options.lateness)
    with Session(model, processor, keep_seconds=options.keep_seconds, lateness=lateness, encode_ahead=ahead) as session:
        for moment, what, number in events:
            if what == "step":
                session.push_side("audio", tokens[[number]], times[[number]])
            elif what == "frame":
                start = wait(options.device)
                session.push_frames(frames[[number % len(frames)]], [moment])
                measured.pushing += wait(options.device) - start
            else:
                answer = session.ask(QUESTION, at=moment, max_new_tokens=options.tokens)
                answers.append(answer)
                measured.first.append(answer.first_token_seconds)
                measured.whole.append(answer.seconds)
                measured.stale.append(answer.staleness)
                measured.most_bytes = max(measured.most_bytes, session.report().num_bytes)
        report = session.report()
    measured.late = report.side_channels["audio"].late
    measured.reused = f"{report.reused_steps} of {sum(len(answer.frame_times) for answer in answers)}"
    return measured, answers


def anew(model: Any, processor: Any, options: argparse.Namespace, answers: list[StreamAnswer]) -> Measured:
    frames, _, tokens, times = recording(options)
    measured = Measured()
    for answer in answers:
        start = wait(options.device)
        numbers = [round(t * options.fps) % len(frames) for t in answer.frame_times]
        item = PatchItem("video", frames[numbers], np.array(answer.frame_times), ((QUESTION, None),))
        batch = PatchCollator(processor, model.config, {}, train=False)([item])
        batch["side_channels"] = {"audio": SideTokens(tokens[None], times_BK=times[None])}
        generate_ids(model, batch, max_new_tokens=1)
        measured.first.append(wait(options.device) - start)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", choices=("small", "0.5b"), default="small")
    parser.add_argument("--layers", type=int, help="of the language model of 0.5b; default all")
    parser.add_argument("--vision-layers", type=int, help="of its vision tower; default all")
    parser.add_argument("--size", type=int, default=48, help="height and width of the frames")
    parser.add_argument("--fps", type=float, default=2.0)
    parser.add_argument("--steps", type=float, default=4.0, help="side steps a second")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--keep-seconds", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between questions")
    parser.add_argument("--tokens", type=int, default=8, help="of an answer")
    parser.add_argument("--delay", type=float, default=0.6, help="most seconds that a side step is under way")
    parser.add_argument("--lateness", type=float, default=0.5, help="seconds that side steps may be out of order")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    model, processor = build(options)
    stream(model, processor, argparse.Namespace(**{**vars(options), "seconds": 2 * options.every}), True)  # warm up
    found = {}
    for name, ahead in (("ahead", True), ("when asked", False)):
        found[name], answers = stream(model, processor, options, ahead)
    found["anew"] = anew(model, processor, options, answers)
    table = Table("way", "frames/s", "first token, s", "answer, s", "most held, MB", "staleness, s", "steps reused", "late")
    for name, m in found.items():
        rate = options.seconds * options.fps / m.pushing if m.pushing else 0.0
        first, whole, stale = (f"{statistics.median(x):.3f}" if x else "" for x in (m.first, m.whole, m.stale))
        held = f"{m.most_bytes / 1e6:.1f}" if m.most_bytes else ""
        table.add_row(name, f"{rate:.1f}" if rate else "", first, whole, held, stale, m.reused, str(m.late) if m.reused else "")
    print(
        f"{options.base}, {options.dtype}, {options.device}: {options.fps:g} frames and {options.steps:g} side steps a second"
    )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
