"""Every channel: the base, LoRA on video only, the patch."""

from __future__ import annotations

from pathlib import Path

from evidence.plan import BASE, PATCH, VIDEO_ONLY, Plan, Section, compared_runs, seeds_text, spoken
from evidence.runs import Run
from evidence.scores import accuracy, difference
from evidence.sections.comparison import chart_and_table, compare
from evidence.tables import linked, markdown_table
from evidence.worlds import WORLDS
from pave.data.samples import Sample, read_samples
from pave.demo.plan import SILENT


def _runs(plan: Plan) -> list[Run]:
    return [run for world in WORLDS for runs in compared_runs(world, plan).values() for run in runs]


def _steps(plan: Plan) -> str:
    """``350 steps of training, 700 for multiview``."""
    steps = {world: plan.steps_of(world) for world in WORLDS}
    usual = min(steps.values())
    others = [f", {count} for {world}" for world, count in steps.items() if count != usual]
    return f"{usual} steps of training{''.join(others)}; LoRA on video only gets as many as the patch"


def _write(plan: Plan, root: Path) -> str:
    introduction = (
        "Accuracy in percent with 95 % intervals clustered by video, "
        f"{seeds_text(plan)} ({plan.train_clips} clips to train on, {plan.test_clips} others to test on, the same for "
        f"all; {_steps(plan)}). *Gain* is the patch minus LoRA on video only, question by question, in points. The "
        "base is never trained here: it was never asked questions that need a channel, nor taught their answers, so "
        "where these are words of their own it scores below guessing, 0 % at times. Where an object is asked for, it "
        "mostly names the one that goes with the light, as if asked about that: a guess, which can come out below one "
        "half. Neither says anything about the patch. What guessing alone reaches is *chance*; what a training on the "
        "same questions and steps reaches without the channel is LoRA on video only, which has the patch's LoRA and "
        "lacks its fusion module. The questions themselves are listed [below](#the-questions)."
    )
    compared = {}
    for name, world in WORLDS.items():
        groups: dict[str, tuple[str, ...]] = {kind: (kind,) for kind in world.own}
        groups |= {"all that need the channel": world.own} if len(world.own) > 1 else {}
        groups["silent questions"] = SILENT
        compared[name] = (name, compare(name, groups, compared_runs(name, plan), root))
    title = "Accuracy of the base, of LoRA on video only and of the patch, for every channel"
    parts = chart_and_table(root, "channels", title, "channel", compared)
    return "\n\n".join([introduction, *parts, *_questions(plan, root)])


def _questions(plan: Plan, root: Path) -> list[str]:
    """One question of each type, and how many were asked."""
    rows: list[list[str]] = []
    asked: dict[str, dict[str, list[Sample]]] = {}
    for name, world in WORLDS.items():
        asked[name] = {}
        for sample in read_samples(plan.data(name, root) / "test.jsonl"):
            asked[name].setdefault(sample.type, []).append(sample)
        rows += [_question(name if kind == world.own[0] else "", kind, asked[name][kind]) for kind in world.own]
    by_kind = next(iter(asked.values()))
    rows += [_question("every channel" if kind == SILENT[0] else "", kind, by_kind[kind]) for kind in SILENT]
    return [
        "### The questions",
        "The first question of every type in the test set, its answer, and how many different answers there are and "
        "how many questions were asked. The silent questions are asked about the clips of every channel, here about "
        "those with sound; each channel has a world of clips of its own. In a type of a channel whose name ends in "
        "*vision* the channel tells when, and the frames at that moment tell what.",
        markdown_table(["channel", "type", "question", "answer", "answers", "asked"], rows),
    ]


def _question(head: str, kind: str, samples: list[Sample]) -> list[str]:
    first, answers = samples[0], {str(sample.answer) for sample in samples}
    return [head, spoken(kind), str(first.question), str(first.answer), str(len(answers)), str(len(samples))]


def _in_short(plan: Plan, root: Path) -> list[str]:
    gains: list[str] = []
    silent: dict[str, list[float]] = {BASE: [], VIDEO_ONLY: []}
    weak: list[str] = []
    for name, world in WORLDS.items():
        runs = compared_runs(name, plan)
        points = difference(runs[VIDEO_ONLY], runs[PATCH], root, world.own)[0]
        gains.append(f"{linked(name, 'channels', name)} {100 * points:+.1f}")
        base = runs[BASE] * len(plan.seeds)
        silent[BASE].append(100 * difference(base, runs[PATCH], root, SILENT)[0])
        silent[VIDEO_ONLY].append(100 * difference(runs[VIDEO_ONLY], runs[PATCH], root, SILENT)[0])
        for kind, chance in world.chance.items():
            reached = accuracy(runs[PATCH], root, (kind,)).mean
            if reached < (1 + chance) / 2:
                weak.append(f"{spoken(kind)} {100 * reached:.1f} (guessing {100 * chance:.0f})")
    against = " and ".join(f"{min(by):+.1f} to {max(by):+.1f} against {name}" for name, by in silent.items())
    lines = [
        f"On questions that need the channel, the patch against LoRA on video only, in points: {', '.join(gains)}. On "
        f"the silent questions about the same clips: {against}."
    ]
    if weak:
        lines.append(f"Closer to guessing than to all right after these steps: {', '.join(weak)}.")
    return lines


SECTION = Section("Every channel against LoRA on video only", _runs, _write, _in_short)
