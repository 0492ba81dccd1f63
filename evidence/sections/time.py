"""Alignment by timestamps, by index, and none, where the stream does not spread evenly over the video."""

from __future__ import annotations

from pathlib import Path

from evidence.charts import Point, Row, dot_chart
from evidence.figures import add_figure
from evidence.plan import Plan, Section, seeds, spoken
from evidence.runs import AS_IT_IS, Run
from evidence.scores import accuracy, difference
from evidence.sections.comparison import ACCURACY_AXIS
from evidence.tables import cell, gain, linked, markdown_table
from evidence.worlds import WORLDS

CHANGES = {
    "early=3": "the recorder was started 3 s early",
    "rerated=3": "its second half at 3 times the rate",
    "gap=0.2": "a gap of 20 %, clear of the event",
}
"""Streams with true times that no longer fit an even spread over the video."""
_BY_TIME, _NEAREST, _BY_INDEX = "by timestamps", "by timestamps, empty_frames: nearest", "by index"
_ALIGNED = {world: WORLDS[world].aligned or "" for world in ("audio", "sensor")}
"""By world, the question type that needs frame and channel at the same moment."""


def variants(world: str, plan: Plan) -> dict[str, list[Run]]:
    """While every frame has a step in reach, ``empty_frames`` changes nothing, so the first two share their weights."""
    patch = WORLDS[world].patch
    compared = {
        _BY_TIME: (patch(), {}),
        _NEAREST: (patch(), {"empty_frames": "nearest"}),
        _BY_INDEX: (patch(alignment="index"), {}),
        "none (every frame sees all)": (patch(neighbourhood_seconds=1000.0), {}),
    }
    return {
        variant: seeds(world, variant, config, plan, counterfactuals=tuple(CHANGES), asked_with=asked)
        for variant, (config, asked) in compared.items()
    }


def _runs(plan: Plan) -> list[Run]:
    return [run for world in _ALIGNED for runs in variants(world, plan).values() for run in runs]


def _write(plan: Plan, root: Path) -> str:
    introduction = (
        "Each patch is trained on streams as they are. Then the stream of every test clip is changed so that its steps "
        "keep their true times but no longer spread evenly over the video. Accuracy on the questions that need a frame "
        "and the channel at the same moment, in percent; below it the difference to the same patch on the stream as it "
        "is. A gap leaves frames without a step in reach: with `empty_frames: skip`, the default, they get no residual "
        "at all, which the patch has never met in training; with `nearest` they get the nearest step."
    )
    rows: list[list[str]] = []
    charted: dict[str, list[Row]] = {}
    for world, kind in _ALIGNED.items():
        for variant, runs in variants(world, plan).items():
            scores = {AS_IT_IS: accuracy(runs, root, (kind,))}
            cells = [cell(scores[AS_IT_IS])]
            for change, words in CHANGES.items():
                scores[words] = accuracy(runs, root, (kind,), change)
                by = difference(runs, runs, root, (kind,), (AS_IT_IS, change))
                cells.append(f"{cell(scores[words])}<br>{gain(*by)}")
            rows.append([_questions(world), variant, *cells])
            points = {words: Point.percent(score.mean, score.interval) for words, score in scores.items()}
            charted.setdefault(_questions(world), []).append(Row(variant, points, 100 * WORLDS[world].chance[kind]))
    title = "Accuracy by timestamps, by index and without alignment, on streams as they are and changed"
    series = (AS_IT_IS, *CHANGES.values())
    chart = dot_chart(title, charted, series, axis=ACCURACY_AXIS, mark="guessing")
    header = ["questions (guessing gives 50)", "alignment", *series]
    return "\n\n".join(
        [introduction, add_figure(root, "time", chart), markdown_table(header, rows, "time", named_by=2)]
    )


def _questions(world: str) -> str:
    return f"{world}, {spoken(_ALIGNED[world])}"


def _in_short(plan: Plan, root: Path) -> list[str]:
    runs = variants("audio", plan)
    costs = []
    for change, words in CHANGES.items():
        cells = []
        for variant in (_BY_TIME, _NEAREST, _BY_INDEX):
            by = difference(runs[variant], runs[variant], root, (_ALIGNED["audio"],), (AS_IT_IS, change))[0]
            cells.append(linked(f"{100 * by:+.1f}", "time", _questions("audio"), variant))
        costs.append(f"\n  - {words}: {', '.join(cells)}")
    return [
        "What it costs that sound no longer spreads evenly over the video, in points against the stream as it is: "
        f"aligned by timestamps, by timestamps with `empty_frames: nearest`, and by index.{''.join(costs)}"
    ]


SECTION = Section("Alignment by true times, by index, and none", _runs, _write, _in_short)
