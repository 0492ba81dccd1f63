"""From nothing to a base model in a folder: clips, training on the silent world, accuracy on unseen clips."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from evidence.small_bases.families import KINDS, BaseInTraining
from evidence.small_bases.training import SilentClips, cached_features, train_language, train_tower
from pave.data.collator import PatchCollator
from pave.data.items import PatchItem
from pave.data.media import FrameSampling, read_frames
from pave.evaluation.metrics import wilson_interval
from pave.playground.clips import clip_name, render_clips
from pave.playground.questions import SILENT_TYPES, ask
from pave.playground.world import NUM_MOMENTS, Split, draw_scene
from pave.utils.console import track
from pave.utils.files import atomic_folder, atomic_path, atomic_write_json, atomic_write_text

logger = logging.getLogger(f"pave.{__name__}")

TEST_CLIPS = 500
"""Clips that a base is measured on."""
_WORLD_SEED = 1_000_000  # added to the seed, so that the base never sees a scene of a playground with a small seed


def load_clips(
    folder: Path, split: Split, count: int, *, seed: int, rng: np.random.Generator | None = None
) -> SilentClips:
    """Render silent clips and decode eight frames of each: those of the default sampling, or with ``rng`` one drawn
    from each second."""
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


def load_both(folder: Path, clips: int, *, seed: int) -> tuple[SilentClips, SilentClips]:
    """The same silent clips twice: as the default sampling sees them, and with the moments drawn.

    Decoded frames stay in the folder, for the next base that is trained on them.
    """
    decoded = folder / f"frames-{seed}-{clips}.npz"
    if not decoded.exists():
        rng = np.random.default_rng(seed)
        both = [load_clips(folder, "train", clips, seed=_WORLD_SEED + seed, rng=r) for r in (None, rng)]
        with atomic_path(decoded) as path:
            np.savez(path, frames=np.stack([c.frames_VFHWC for c in both]), times=np.stack([c.times_VF for c in both]))
        return both[0], both[1]
    scenes = [draw_scene(_WORLD_SEED + seed, "train", i, silent=True) for i in range(clips)]
    with np.load(decoded) as arrays:
        frames, times = arrays["frames"], arrays["times"]
    return SilentClips(scenes, frames[0], times[0]), SilentClips(scenes, frames[1], times[1])


def prepare(folder: Path, clips: int, test_clips: int, *, seed: int) -> None:
    """Render and decode what bases are trained and measured on, so that several can be trained on it side by side."""
    load_both(folder, clips, seed=seed)
    load_clips(folder, "test", test_clips, seed=_WORLD_SEED + seed)


def train(
    folder: Path, *, seed: int, clips: int, tower_steps: int, language_steps: int, kind: str = "playground"
) -> BaseInTraining:
    """Train a fresh base of a kind on ``clips`` silent clips, rendered into ``folder``."""
    sampled, shaken = load_both(folder, clips, seed=seed)
    base = KINDS[kind].build(seed)
    both = SilentClips(
        [*sampled.scenes, *shaken.scenes],
        np.concatenate([sampled.frames_VFHWC, shaken.frames_VFHWC]),
        np.concatenate([sampled.times_VF, shaken.times_VF]),
    )
    logger.info("vision tower: %s", train_tower(base, both, steps=tower_steps, seed=seed))
    features = [cached_features(base, sampled), cached_features(base, shaken)]
    losses = train_language(base, features, sampled.scenes, steps=language_steps, seed=seed)
    logger.info("language model: loss %.4f over the last hundred steps", float(np.mean(losses[-100:])))
    return base


def measure(base: Path, folder: Path, count: int, *, seed: int, batch: int = 50) -> dict[str, dict[str, Any]]:
    """Accuracy of a saved base by type of question, on unseen silent clips: free answers, exact match, the public way
    in."""
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
            given = answers(model, processor, [q.text for q in part], clips, start)
            right += sum(answer == question.answer for answer, question in zip(given, part, strict=True))
        interval = wilson_interval(right, count)
        table[kind] = {
            "right": right,
            "questions": count,
            "accuracy": right / count,
            "interval_95": [round(interval.low, 4), round(interval.high, 4)],
        }
    return table


def answers(model: Any, processor: Any, questions: Sequence[str], clips: SilentClips, first: int = 0) -> list[str]:
    """Greedy answers to one question on each clip, from clip ``first`` on."""
    collate = PatchCollator(processor, model.config, {}, train=False)
    batch = collate(
        [
            PatchItem(str(v), clips.frames_VFHWC[v], clips.times_VF[v], ((question, None),))
            for v, question in enumerate(questions, start=first)
        ]
    )
    del batch["side_channels"], batch["frame_times"]
    with torch.no_grad():
        ids = model.generate(**batch, max_new_tokens=6, do_sample=False)
    return [
        str(t).strip() for t in processor.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    ]


def save_base(base: BaseInTraining, folder: Path) -> None:
    """Model and processor as ``save_pretrained`` writes them: weights in float16, to be loaded as float32."""
    base.processor.save_pretrained(folder)
    base.model.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "float32"
    atomic_write_json(folder / "config.json", config)


def _readme(report: dict[str, Any]) -> str:
    kind = report["kind"]
    lines = [
        "# The playground's base model" if kind == "playground" else f"# A base model for the playground: {kind}",
        "",
        f"{report['architecture']} with {report['parameters']:,} parameters, trained on the silent world by",
        f"`{report['command']}`",
        f"({report['clips']} clips, {report['tower_steps']} + {report['language_steps']} steps). It has never heard "
        "anything.",
        "",
        f"Accuracy on {report['test_clips']} unseen clips, free answers, exact match, 95 % Wilson intervals:",
        "",
        "| questions | accuracy | interval |",
        "|---|---|---|",
    ]
    for question, row in report["accuracy"].items():
        low, high = row["interval_95"]
        lines.append(f"| {question} | {row['accuracy']:.3f} | {low:.3f} to {high:.3f} |")
    return "\n".join(lines) + "\n"


def make_base(
    out: Path,
    work: Path,
    *,
    kind: str = "playground",
    seed: int = 0,
    clips: int | None = None,
    tower_steps: int | None = None,
    language_steps: int | None = None,
    test_clips: int = TEST_CLIPS,
) -> dict[str, Any]:
    """Train a base of a kind, save it as a folder with its measured accuracy, and return what the measurement says.

    Args:
        out: folder of the base; an older one is replaced.
        work: folder for the rendered clips, used again where they are there.
        kind: key of ``KINDS``.
        seed: of scenes, weights and order.
        clips: training clips; this and the steps are the kind's own where they are None.
        tower_steps: steps of the vision tower.
        language_steps: steps of projector and language model.
        test_clips: clips of the measurement.

    Raises:
        ValueError: if the kind is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no kind of base {kind!r}; known: {', '.join(KINDS)}")
    default = KINDS[kind]
    settings = {
        "clips": default.clips if clips is None else clips,
        "tower_steps": default.tower_steps if tower_steps is None else tower_steps,
        "language_steps": default.language_steps if language_steps is None else language_steps,
    }
    option = "" if kind == "playground" else f" --kind {kind}"
    with atomic_folder(out) as folder:
        base = train(work, seed=seed, kind=kind, **settings)
        report = {
            "kind": kind,
            "command": f"python -m evidence.small_bases --out DIR --seed {seed}{option}",
            "seed": seed,
            **settings,
            "test_clips": test_clips,
        }
        return write_base(base, folder, work, report)


def write_base(base: BaseInTraining, folder: Path, work: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Save a trained base, measure it and write ``accuracy.json`` and a README beside it."""
    save_base(base, folder)
    report = {
        **report,
        "architecture": type(base.model).__name__.removesuffix("ForConditionalGeneration"),
        "parameters": sum(p.numel() for p in base.model.parameters()),
        "accuracy": measure(folder, work, report["test_clips"], seed=report["seed"]),
    }
    atomic_write_json(folder / "accuracy.json", report)
    atomic_write_text(folder / "README.md", _readme(report))
    return report
