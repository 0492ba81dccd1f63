"""Every channel: the base, LoRA on video only, the patch."""

from __future__ import annotations

from pathlib import Path

from pave.config import PatchConfig
from pave.demo.plan import SILENT
from pave.evidence.charts import Point, Row, dot_chart
from pave.evidence.figures import on_page
from pave.evidence.runs import Run, accuracy, difference
from pave.evidence.sections.common import BASE, PATCH, VIDEO_ONLY, Plan, Section, seeds, seeds_text, video_only
from pave.evidence.tables import cell, gain, markdown_table
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


def _write_channels(plan: Plan, root: Path) -> str:
    parts = [
        "Accuracy in percent with 95 % intervals clustered by video, "
        f"{seeds_text(plan)} ({plan.train_clips} clips to train on, {plan.test_clips} others to test on, the same for "
        "all). *Gain* is the patch minus LoRA on video only, question by question, in points. The base is never trained here."
    ]
    rows: list[list[str]] = []
    charted: dict[str, list[Row]] = {}
    for name, world in WORLDS.items():
        made = {variant: seeds(name, variant, patch, plan) for variant, patch in _channel_variants(name).items()}
        groups: dict[str, tuple[str, ...]] = {kind: (kind,) for kind in world.own}
        groups |= {"all that need the channel": world.own} if len(world.own) > 1 else {}
        for kind, kinds in {**groups, "silent questions": SILENT}.items():
            scores = {variant: accuracy(runs, root, kinds) for variant, runs in made.items()}
            apart = scores[PATCH].interval.low > scores[VIDEO_ONLY].interval.high
            by = difference(made[VIDEO_ONLY], made[PATCH], root, kinds)
            chance = world.chance.get(kind)
            points = {variant: Point.percent(score.mean, score.interval) for variant, score in scores.items()}
            mark = None if chance is None else 100 * chance
            charted.setdefault(name, []).append(Row(kind.replace("_", " "), points, mark))
            rows.append(
                [
                    name if kind == world.own[0] else "",
                    kind.replace("_", " "),
                    "" if chance is None else f"{100 * chance:.0f}",
                    *(cell(scores[variant]) for variant in made),
                    gain(*by) + (" *" if apart else ""),
                ]
            )
    chart = dot_chart(
        "Accuracy of the base, of LoRA on video only and of the patch, for every channel",
        charted,
        (BASE, VIDEO_ONLY, PATCH),
        axis="accuracy in percent, with 95 % intervals",
        mark="guessing",
    )
    header = ["channel", "questions", "chance", BASE, VIDEO_ONLY, PATCH, "gain"]
    parts += [on_page(root, "channels", chart), markdown_table(header, rows), "\\* the intervals of the two do not overlap."]
    return "\n\n".join(parts)


SECTION = Section("Every channel teaches what the frames do not show", _channel_runs, _write_channels)
