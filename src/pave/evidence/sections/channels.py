"""Every channel: the base, LoRA on video only, the patch."""

from __future__ import annotations

from pathlib import Path

from pave.config import PatchConfig
from pave.demo.plan import SILENT
from pave.evidence.runs import Run
from pave.evidence.sections.common import BASE, PATCH, VIDEO_ONLY, Plan, Section, seeds, seeds_text, video_only
from pave.evidence.sections.comparison import chart_and_table, compare
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
    return f"{usual} steps of training{''.join(others)}, LoRA on video only as many as the patch"


def _write_channels(plan: Plan, root: Path) -> str:
    parts = [
        "Accuracy in percent with 95 % intervals clustered by video, "
        f"{seeds_text(plan)} ({plan.train_clips} clips to train on, {plan.test_clips} others to test on, the same for "
        f"all; {_steps(plan)}). *Gain* is the patch minus LoRA on video only, question by question, in points. The base is never trained here: it was never asked "
        "questions that need a channel, nor taught their answers, so where these are words of their own it scores below guessing, 0 % at times, "
        "and that says nothing about the patch. What guessing alone reaches is *chance*; what a training on the same questions and steps "
        "reaches without the channel is LoRA on video only, which has the patch's LoRA and lacks its fusion module."
    ]
    compared = {}
    for name, world in WORLDS.items():
        made = {variant: seeds(name, variant, patch, plan) for variant, patch in _channel_variants(name).items()}
        groups: dict[str, tuple[str, ...]] = {kind: (kind,) for kind in world.own}
        groups |= {"all that need the channel": world.own} if len(world.own) > 1 else {}
        compared[name] = (name, compare(world, {**groups, "silent questions": SILENT}, made, root))
    title = "Accuracy of the base, of LoRA on video only and of the patch, for every channel"
    parts += chart_and_table(root, "channels", title, "channel", compared)
    return "\n\n".join(parts)


SECTION = Section("Every channel teaches what the frames do not show", _channel_runs, _write_channels)
