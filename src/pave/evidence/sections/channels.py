"""Every channel: the base, LoRA on video only, the patch."""

from __future__ import annotations

from pathlib import Path

from pave.config import PatchConfig
from pave.data.samples import Sample, read_samples
from pave.demo.plan import SILENT
from pave.evidence.runs import Run
from pave.evidence.scores import accuracy, difference
from pave.evidence.sections.common import (
    BASE,
    PATCH,
    VIDEO_ONLY,
    Plan,
    Section,
    data_folder,
    seeds,
    seeds_text,
    video_only,
)
from pave.evidence.sections.comparison import chart_and_table, compare
from pave.evidence.tables import linked, markdown_table
from pave.evidence.worlds import WORLDS


def _channel_runs(plan: Plan) -> list[Run]:
    return [
        run
        for world in WORLDS
        for variant, patch in _channel_variants(world).items()
        for run in seeds(world, variant, patch, plan)
    ]


def _channel_variants(world: str) -> dict[str, PatchConfig | None]:
    return {BASE: None, VIDEO_ONLY: video_only(), PATCH: WORLDS[world].patch()}


def _steps(plan: Plan) -> str:
    """``350 steps of training, 700 for multiview``."""
    steps = {world: plan.steps_of(world) for world in WORLDS}
    usual = min(steps.values())
    others = [f", {count} for {world}" for world, count in steps.items() if count != usual]
    return f"{usual} steps of training{''.join(others)}; LoRA on video only gets as many as the patch"


def _write_channels(plan: Plan, root: Path) -> str:
    parts = [
        "Accuracy in percent with 95 % intervals clustered by video, "
        f"{seeds_text(plan)} ({plan.train_clips} clips to train on, {plan.test_clips} others to test on, the same for "
        f"all; {_steps(plan)}). *Gain* is the patch minus LoRA on video only, question by question, in points. The base is never trained here: it was never asked "
        "questions that need a channel, nor taught their answers, so where these are words of their own it scores below guessing, 0 % at times. "
        "Where an object is asked for, it mostly names the one that goes with the light, as if asked "
        "about that: a guess, which can come out below one half. Neither says anything about the patch. What guessing alone reaches is *chance*; what a "
        "training on the same questions and steps reaches without the channel is LoRA on video only, which has the patch's LoRA and lacks its fusion module. "
        "The questions themselves are listed [below](#the-questions)."
    ]
    compared = {}
    for name, world in WORLDS.items():
        made = {variant: seeds(name, variant, patch, plan) for variant, patch in _channel_variants(name).items()}
        groups: dict[str, tuple[str, ...]] = {kind: (kind,) for kind in world.own}
        groups |= {"all that need the channel": world.own} if len(world.own) > 1 else {}
        compared[name] = (name, compare(world, {**groups, "silent questions": SILENT}, made, root))
    title = "Accuracy of the base, of LoRA on video only and of the patch, for every channel"
    parts += chart_and_table(root, "channels", title, "channel", compared)
    return "\n\n".join([*parts, *_questions(plan, root)])


def _questions(plan: Plan, root: Path) -> list[str]:
    """One question of each type, and how many were asked."""
    rows: list[list[str]] = []
    silent: list[list[str]] = []
    for name, world in WORLDS.items():
        asked: dict[str, list[Sample]] = {}
        for sample in read_samples(data_folder(name, root, plan) / "test.jsonl"):
            asked.setdefault(sample.type, []).append(sample)
        for kind in world.own:
            rows.append([name if kind == world.own[0] else "", *_question(kind, asked[kind])])
        silent = silent or [["every channel" if kind == SILENT[0] else "", *_question(kind, asked[kind])] for kind in SILENT]
    return [
        "### The questions",
        "The first question of every type in the test set, its answer, and how many different answers there are and how many questions were asked. The silent "
        "questions are asked about the clips of every channel, here about those with sound; each channel has a world of clips of its own. In a type of a channel whose name "
        "ends in *vision* the channel tells when, and the frames at that moment tell what.",
        markdown_table(["channel", "type", "question", "answer", "answers", "asked"], [*rows, *silent]),
    ]


def _question(kind: str, samples: list[Sample]) -> list[str]:
    first = samples[0]
    return [
        kind.replace("_", " "),
        str(first.question),
        str(first.answer),
        str(len({str(s.answer) for s in samples})),
        str(len(samples)),
    ]


def _in_short(plan: Plan, root: Path) -> list[str]:
    gains: list[str] = []
    silent: dict[str, list[float]] = {BASE: [], VIDEO_ONLY: []}
    weak: list[str] = []
    for name, world in WORLDS.items():
        base, lora, patch = (seeds(name, variant, made, plan) for variant, made in _channel_variants(name).items())
        points = difference(lora, patch, root, world.own)[0]
        gains.append(f"{linked(name, 'channels', name)} {100 * points:+.1f}")
        silent[BASE].append(100 * difference(base * len(plan.seeds), patch, root, SILENT)[0])
        silent[VIDEO_ONLY].append(100 * difference(lora, patch, root, SILENT)[0])
        for kind, chance in world.chance.items():
            reached = accuracy(patch, root, (kind,)).mean
            if reached < (1 + chance) / 2:
                weak.append(f"{kind.replace('_', ' ')} {100 * reached:.1f} (guessing {100 * chance:.0f})")
    lines = [
        f"On questions that need the channel, the patch against LoRA on video only, in points: {', '.join(gains)}. On the silent questions "
        f"about the same clips: {' and '.join(f'{min(by):+.1f} to {max(by):+.1f} against {of}' for of, by in silent.items())}."
    ]
    return [*lines, f"Closer to guessing than to all right after these steps: {', '.join(weak)}."] if weak else lines


SECTION = Section("Every channel against LoRA on video only", _channel_runs, _write_channels, _in_short)
