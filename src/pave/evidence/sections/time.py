"""Alignment by timestamps, by index, and none, where the stream does not spread evenly over the video."""

from __future__ import annotations

from pathlib import Path

from pave.config import PatchConfig
from pave.evidence.charts import Point, Row, dot_chart
from pave.evidence.figures import on_page
from pave.evidence.runs import AS_IT_IS, Run
from pave.evidence.scores import accuracy, difference
from pave.evidence.sections.common import Plan, Section, seeds
from pave.evidence.tables import cell, gain, linked, markdown_table
from pave.evidence.worlds import WORLDS

CHANGES = {
    "early=3": "the recorder was started 3 s early",
    "rerated=3": "its second half at 3 times the rate",
    "gap=0.2": "a gap of 20 %, clear of the event",
}
"""Streams with true times that no longer fit an even spread over the video."""


_BY_TIME, _NEAREST, _BY_INDEX = "by timestamps", "by timestamps, empty_frames: nearest", "by index"
_TIMED = ("audio", "sensor")


def _time_variants(world: str) -> dict[str, tuple[PatchConfig, dict[str, str]]]:
    """Patches, and what is set when they are asked: while every frame has a step in reach, ``empty_frames`` changes nothing, so the
    first two share their weights."""
    patch = WORLDS[world].patch
    return {
        _BY_TIME: (patch(), {}),
        _NEAREST: (patch(), {"empty_frames": "nearest"}),
        _BY_INDEX: (patch(alignment="index"), {}),
        "none (every frame sees all)": (patch(neighbourhood_seconds=1000.0), {}),
    }


def _time_runs(plan: Plan) -> list[Run]:
    return [
        run
        for world in _TIMED
        for variant, (patch, asked) in _time_variants(world).items()
        for run in seeds(world, variant, patch, plan, counterfactuals=tuple(CHANGES), asked_with=asked)
    ]


def _write_time(plan: Plan, root: Path) -> str:
    parts = [
        "Each patch is trained on streams as they are. Then the stream of every test clip is changed so that its steps keep their true "
        "times but no longer spread evenly over the video. Accuracy on the questions that need a frame and the channel at the same "
        "moment, in percent; below it the difference to the same patch on the stream as it is. A gap leaves frames without a step in reach: "
        "with `empty_frames: skip`, the default, they get no residual at all, which the patch has never met in training; with `nearest` they "
        "get the nearest step."
    ]
    rows: list[list[str]] = []
    charted: dict[str, list[Row]] = {}
    for world in _TIMED:
        kind = WORLDS[world].aligned
        assert kind is not None
        for variant, (patch, asked) in _time_variants(world).items():
            runs = seeds(world, variant, patch, plan, asked_with=asked)
            scores = {AS_IT_IS: accuracy(runs, root, (kind,))} | {
                words: accuracy(runs, root, (kind,), change) for change, words in CHANGES.items()
            }
            cells = [cell(scores[AS_IT_IS])]
            for change, words in CHANGES.items():
                by = difference(runs, runs, root, (kind,), (AS_IT_IS, change))
                cells.append(f"{cell(scores[words])}<br>{gain(*by)}")
            questions = _questions(world)
            rows.append([questions, variant, *cells])
            points = {words: Point.percent(score.mean, score.interval) for words, score in scores.items()}
            charted.setdefault(questions, []).append(Row(variant, points, 100 * WORLDS[world].chance[kind]))
    header = ["questions (guessing gives 50)", "alignment", AS_IT_IS, *CHANGES.values()]
    chart = dot_chart(
        "Accuracy by timestamps, by index and without alignment, on streams as they are and changed",
        charted,
        (AS_IT_IS, *CHANGES.values()),
        axis="accuracy in percent, with 95 % intervals",
        mark="guessing",
    )
    return "\n\n".join([*parts, on_page(root, "time", chart), markdown_table(header, rows, "time", named_by=2)])


def _questions(world: str) -> str:
    return f"{world}, {(WORLDS[world].aligned or '').replace('_', ' ')}"


def _in_short(plan: Plan, root: Path) -> list[str]:
    lost = []
    for change, words in CHANGES.items():
        found = []
        for variant in (_BY_TIME, _NEAREST, _BY_INDEX):
            patch, asked = _time_variants("audio")[variant]
            runs = seeds("audio", variant, patch, plan, asked_with=asked)
            points = difference(runs, runs, root, (WORLDS["audio"].aligned or "",), (AS_IT_IS, change))[0]
            found.append(linked(f"{100 * points:+.1f}", "time", _questions("audio"), variant))
        lost.append(f"\n  - {words}: {', '.join(found)}")
    return [
        "What it costs that sound no longer spreads evenly over the video, in points against the stream as it is: aligned by timestamps, by "
        f"timestamps with `empty_frames: nearest`, and by index.{''.join(lost)}"
    ]


SECTION = Section("Alignment by true times, by index, and none", _time_runs, _write_time, _in_short)
