"""Train the base model of the playground from scratch on the silent world, measure it on unseen clips and save it.

    python -m pave.playground.train_base --out DIR --seed 0

Everything it sees are frames as they come back from real H.264 files. About half an hour of one processor core; the trained
result ships inside the package (``pave.playground.base_path()``).
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaOnevisionForConditionalGeneration

from pave.data.media import FrameSampling, read_frames
from pave.playground.base_model import build_model, build_processor
from pave.playground.base_training import SilentClips, cached_features, train_language, train_tower
from pave.playground.clips import clip_name, render_clips
from pave.playground.questions import SILENT_TYPES, ask
from pave.playground.world import NUM_MOMENTS, Split, draw_scene
from pave.utils.console import setup_logging, track
from pave.utils.files import atomic_folder, atomic_write_json, atomic_write_text

logger = logging.getLogger(__name__)

_WORLD_SEED = 1_000_000  # added to the seed, so that the base never sees a scene of a playground with a small seed


def load_clips(folder: Path, split: Split, count: int, *, seed: int, rng: np.random.Generator | None = None) -> SilentClips:
    """Render silent clips and decode eight frames of each: those the default sampling takes, or with ``rng`` one drawn from each second."""
    for _ in track(render_clips(folder, split, count, seed=seed, silent=True), f"rendering {split}", total=count):
        pass
    scenes = [draw_scene(seed, split, i, silent=True) for i in range(count)]
    frames, times = [], []
    for i in track(range(count), f"decoding {split}"):
        sampling = FrameSampling(num_frames=NUM_MOMENTS) if rng is None else None
        clip = read_frames(folder / clip_name(split, i), sampling)
        chosen = np.arange(len(clip.times_F))
        if rng is not None:
            each = len(chosen) // NUM_MOMENTS
            chosen = chosen[::each] + rng.integers(0, each, NUM_MOMENTS)
        frames.append(clip.frames_FHWC[chosen])
        times.append(clip.times_F[chosen])
    return SilentClips(scenes, np.stack(frames), np.stack(times))


def train(
    folder: Path, *, seed: int, clips: int, tower_steps: int, language_steps: int
) -> LlavaOnevisionForConditionalGeneration:
    """Train a fresh base on ``clips`` silent clips, rendered into ``folder``."""
    rng = np.random.default_rng(seed)
    sampled = load_clips(folder, "train", clips, seed=_WORLD_SEED + seed)
    shaken = load_clips(folder, "train", clips, seed=_WORLD_SEED + seed, rng=rng)
    model = build_model(seed)
    both = SilentClips(
        [*sampled.scenes, *shaken.scenes],
        np.concatenate([sampled.frames_VFHWC, shaken.frames_VFHWC]),
        np.concatenate([sampled.times_VF, shaken.times_VF]),
    )
    logger.info("vision tower: %s", train_tower(model, both, steps=tower_steps, seed=seed))
    features = [cached_features(model, sampled), cached_features(model, shaken)]
    losses = train_language(model, features, sampled.scenes, steps=language_steps, seed=seed)
    logger.info("language model: loss %.4f over the last hundred steps", float(np.mean(losses[-100:])))
    return model


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a rate, by default of 95 %."""
    rate, spread = right / count, z * z / count
    middle, half = rate + spread / 2, z * math.sqrt(rate * (1 - rate) / count + spread / (4 * count))
    return (middle - half) / (1 + spread), (middle + half) / (1 + spread)


def measure(base: Path, folder: Path, count: int, *, seed: int, batch: int = 50) -> dict[str, dict[str, Any]]:
    """Accuracy of a saved base by type of question, on unseen silent clips: free answers, exact match, the public way in."""
    processor = AutoProcessor.from_pretrained(base)
    model = AutoModelForImageTextToText.from_pretrained(base).eval()
    clips = load_clips(folder, "test", count, seed=_WORLD_SEED + seed)
    rng = np.random.default_rng(seed)
    table = {}
    for kind in track(SILENT_TYPES, "measuring"):
        asked = [ask(scene, kind, rng) for scene in clips.scenes]
        right = 0
        for start in range(0, count, batch):
            part = asked[start : start + batch]
            given = answers(model, processor, [q.text for q in part], list(clips.frames_VFHWC[start : start + batch]))
            right += sum(answer == question.answer for answer, question in zip(given, part, strict=True))
        low, high = wilson(right, count)
        table[kind] = {
            "right": right,
            "questions": count,
            "accuracy": right / count,
            "interval_95": [round(low, 4), round(high, 4)],
        }
    return table


def answers(model: Any, processor: Any, questions: Sequence[str], videos: Sequence[Any]) -> list[str]:
    """Greedy answers to one question on each video (F, H, W, 3)."""
    talks = [[{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": q}]}] for q in questions]
    texts = [processor.apply_chat_template(talk, add_generation_prompt=True) for talk in talks]
    batch = processor(text=texts, videos=list(videos), return_tensors="pt", padding=True)
    with torch.no_grad():
        ids = model.generate(**batch, max_new_tokens=6, do_sample=False)
    return [str(t).strip() for t in processor.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)]


def save_base(model: LlavaOnevisionForConditionalGeneration, folder: Path) -> None:
    """Model and processor as ``save_pretrained`` writes them: weights in float16, to be loaded as float32."""
    build_processor().save_pretrained(folder)
    model.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "float32"
    atomic_write_json(folder / "config.json", config)


def _readme(report: dict[str, Any]) -> str:
    lines = [
        "# The playground's base model",
        "",
        f"LLaVA-OneVision's architecture with {report['parameters']:,} parameters, trained from scratch on the silent world by",
        f"`{report['command']}`",
        f"({report['clips']} clips, {report['tower_steps']} + {report['language_steps']} steps). It has never heard anything.",
        "",
        f"Accuracy on {report['test_clips']} unseen clips, free answers, exact match, 95 % Wilson intervals:",
        "",
        "| questions | accuracy | interval |",
        "|---|---|---|",
    ]
    for kind, row in report["accuracy"].items():
        low, high = row["interval_95"]
        lines.append(f"| {kind} | {row['accuracy']:.3f} | {low:.3f} to {high:.3f} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pave.playground.train_base", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the base; an older one is replaced")
    parser.add_argument("--seed", type=int, default=0, help="of scenes, weights and order")
    parser.add_argument("--clips", type=int, default=4000, help="training clips")
    parser.add_argument("--tower-steps", type=int, default=900, help="steps of 64 frames")
    parser.add_argument("--language-steps", type=int, default=1500, help="steps of 16 clips")
    parser.add_argument("--test-clips", type=int, default=500, help="clips of the measurement")
    parser.add_argument("--work", type=Path, help="folder for rendered clips, kept; by default a temporary one")
    options = parser.parse_args(arguments)
    setup_logging()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary, atomic_folder(options.out) as out:
        folder = options.work or Path(temporary)
        model = train(
            folder,
            seed=options.seed,
            clips=options.clips,
            tower_steps=options.tower_steps,
            language_steps=options.language_steps,
        )
        save_base(model, out)
        settings = {k: getattr(options, k) for k in ("seed", "clips", "tower_steps", "language_steps", "test_clips")}
        report = {
            "command": f"python -m pave.playground.train_base --out DIR --seed {options.seed}",
            **settings,
            "parameters": sum(p.numel() for p in model.parameters()),
            "accuracy": measure(out, folder, options.test_clips, seed=options.seed),
        }
        atomic_write_json(out / "accuracy.json", report)
        atomic_write_text(out / "README.md", _readme(report))
    logger.info("saved %s after %.0f s", options.out, time.monotonic() - start)


if __name__ == "__main__":
    main(sys.argv[1:])
