"""What matters: one thing about the audio patch is changed at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evidence.charts import SERIES, Point, Row, curve_chart, dot_chart
from evidence.figures import add_figure
from evidence.plan import VIDEO_ONLY, Plan, Section, seeds, seeds_text
from evidence.runs import Run
from evidence.scores import accuracy, difference
from evidence.tables import cell, gain, linked, markdown_table
from evidence.worlds import WORLDS
from pave.config import PatchConfig
from pave.demo.plan import SILENT, video_only_patch

REFERENCE = "the demo's patch"
_AUDIO = WORLDS["audio"]
_TEXT_TOKENS, _SIDE_STEPS = 20, 32
_CURVE = (50, 100, 200, 350)
"""Steps at which the training loss is shown, the mean of the five entries of the log up to there."""
_NEED, _SILENT = "all that need the sound", "silent questions"
_SHORT = {
    "none, every frame attends to the whole sound": "no alignment",
    "the final norm learns at the rate of the rest (published)": "final norm at the rate of the rest",
    "at 10 times the rate": "final norm at 10 times the rate",
    "no final norm, the last linear starts at zero": "no final norm",
    "keys also make the values (released code)": "keys also make the values",
}
"""Names that are too long for a chart."""


@dataclass(frozen=True)
class Variant:
    """A patch with what is changed in how it is trained."""

    patch: PatchConfig
    training: dict[str, Any] = field(default_factory=dict)


def variants() -> dict[str, dict[str, Variant]]:
    """By group, the variants by name. The reference stands in front of each group when the tables are written."""
    changed = _AUDIO.patch
    return {
        "alignment": {
            "by index": Variant(changed(alignment="index")),
            "none, every frame attends to the whole sound": Variant(changed(neighbourhood_seconds=1000.0)),
        },
        "fusion": {
            "1 layer instead of 2": Variant(changed(num_layers=1)),
            "3 layers": Variant(changed(num_layers=3)),
            "rotary positions": Variant(changed(rope=True)),
            "queries from before the projector": Variant(changed(query_source="pre_projector")),
            "learnt queries": Variant(changed(query_source="learnable", num_frames=8, tokens_per_frame=9)),
            "keys also make the values (released code)": Variant(changed(share_key_value_projection=True)),
            "no gate": Variant(changed(gate=False)),
        },
        "opening": {
            "the final norm learns at the rate of the rest (published)": Variant(
                changed(), {"output_norm_multiplier": 1.0}
            ),
            "at 10 times the rate": Variant(changed(), {"output_norm_multiplier": 10.0}),
            "no final norm, the last linear starts at zero": Variant(changed(output_norm=False)),
        },
        "trained parts": {
            "fusion only": Variant(replace(changed(), lora=None)),
            f"LoRA only ({VIDEO_ONLY})": Variant(video_only_patch()),
        },
        "sound as further tokens of the prompt": {
            "concat": Variant(changed(kind="concat", gate=False)),
            "interleave": Variant(changed(kind="interleave", gate=False)),
        },
    }


def runs_of(members: Mapping[str, Variant], plan: Plan) -> dict[str, list[Run]]:
    """The runs of the reference and of variants, by name."""
    return {
        name: seeds("audio", name, variant.patch, plan, training=variant.training)
        for name, variant in {REFERENCE: Variant(_AUDIO.patch()), **members}.items()
    }


def _runs(plan: Plan) -> list[Run]:
    members = {name: variant for group in variants().values() for name, variant in group.items()}
    return [run for runs in runs_of(members, plan).values() for run in runs]


def llm_tokens(patch: PatchConfig) -> int:
    """Tokens of the language model for a playground prompt with this patch; steps of sound that become tokens count."""
    from transformers import AutoConfig

    from pave.patching.cost import patch_cost
    from pave.utils.embedded import PLAYGROUND, model_path

    config = AutoConfig.from_pretrained(model_path(PLAYGROUND))
    plain = replace(video_only_patch(), newline=patch.newline)
    cost = patch_cost(config, plain, num_frames=8, text_tokens=_TEXT_TOKENS)
    longer = sum(_SIDE_STEPS for channel in patch.side_channels.values() if channel.fusion.adds_llm_tokens)
    return cost.llm_tokens + longer


def _losses(runs: list[Run], root: Path) -> list[str]:
    curves = [run.facts(root)["curve"] for run in runs]
    cells = []
    for last in _CURVE:
        values = [loss for curve in curves for _, loss in [entry for entry in curve if entry[0] <= last][-5:]]
        cells.append(f"{sum(values) / len(values):.2f}" if values else "")
    return cells


def mean_curve(curves: Sequence[Sequence[Sequence[float]]]) -> list[tuple[float, float]]:
    """Losses by step, the mean over seeds at the steps that all of them logged.

    Args:
        curves: (step, loss) pairs of each seed.
    """
    by_step = [{float(step): float(loss) for step, loss in curve} for curve in curves]
    common = sorted(set.intersection(*(set(losses) for losses in by_step)))
    return [(step, sum(losses[step] for losses in by_step) / len(by_step)) for step in common]


def _curves(group: str, runs: Mapping[str, list[Run]], root: Path) -> str:
    """The learning curves of a group; more curves than there are colours are drawn in several charts, the reference
    in each."""
    curves = {name: mean_curve([run.facts(root)["curve"] for run in seeds]) for name, seeds in runs.items()}
    reference, *others = curves
    charts: list[str] = []
    for start in range(0, len(others), len(SERIES) - 1):
        shown = (reference, *others[start : start + len(SERIES) - 1])
        chart = curve_chart(
            f"Training loss by step: {group}",
            {name: curves[name] for name in shown},
            x_axis="optimizer steps",
            y_axis="training loss, mean of ten steps",
        )
        number = f"-{len(charts) + 1}" if charts else ""
        charts.append(add_figure(root, f"curves-{group.replace(' ', '-')}{number}", chart))
    return "\n\n".join(charts)


def gains(charted: Mapping[str, Sequence[Row]], root: Path, file: str) -> str:
    """All differences to the reference at a glance; ``file`` is the name of the chart's."""
    chart = dot_chart(
        f"What each change gains over {REFERENCE}",
        charted,
        (_NEED, _SILENT),
        axis=f"difference to {REFERENCE} in points, with 95 % intervals",
        ends=(-10.0, 5.0),
    )
    return add_figure(root, file, chart)


def explained(plan: Plan) -> str:
    """What the columns are, and what is the same in all rows."""
    return (
        f"The same questions and {plan.steps_of('audio')} steps for all, and where a row does not say otherwise the "
        "same rates of learning. They are those chosen for the demo's patch (its final norm, which starts at zero, "
        f"learns at {_AUDIO.recipe.training.output_norm_multiplier:g} times the rate of the rest of the fusion): a row "
        "shows what a variant learns with them in these steps, not what it can reach. Accuracy in percent; *all on "
        f"sound* is `sound` and `sound vision` together, and the differences are those to {REFERENCE}, in points. "
        "*Loss* is the mean training loss of the 50 steps up to that one; the curves show every entry of the log, the "
        "mean of ten steps. *Tokens* is the length of the prompt that the language model reads "
        f"({_TEXT_TOKENS} of text, {_SIDE_STEPS} steps of sound); *concat* and *interleave* turn every step of sound "
        f"into one more of them, behind the video and between its frames. Every row is {seeds_text(plan)}."
    )


def against_reference(
    group: str, members: Mapping[str, Variant], plan: Plan, root: Path, anchors: str
) -> tuple[list[str], list[Row]]:
    """A table and learning curves of variants under the reference, and rows for the chart of all differences.

    Args:
        group: what the curves are called.
        members: variants by name.
        plan: size of the reproduction.
        root: folder of all runs.
        anchors: what the anchors of the rows begin with.
    """
    losses = [f"loss at {step}" for step in _CURVE]
    header = ["", "sound", "sound vision", "all on sound", "difference", "silent", "difference", *losses, "tokens"]
    by_name = runs_of(members, plan)
    patches = {REFERENCE: _AUDIO.patch(), **{name: variant.patch for name, variant in members.items()}}
    rows, charted = [], []
    for name, runs in by_name.items():
        groups = (("sound",), ("sound_vision",), _AUDIO.own, SILENT)
        sound, vision, both, silent = (cell(accuracy(runs, root, kinds)) for kinds in groups)
        on_need, on_silent = "", ""
        if name != REFERENCE:
            by = {
                _NEED: difference(by_name[REFERENCE], runs, root, _AUDIO.own),
                _SILENT: difference(by_name[REFERENCE], runs, root, SILENT),
            }
            on_need, on_silent = (gain(*points) for points in by.values())
            points = {series: Point.percent(*points) for series, points in by.items()}
            charted.append(Row(_SHORT.get(name, name), points))
        cells = [name, sound, vision, both, on_need, silent, on_silent]
        rows.append([*cells, *_losses(runs, root), str(llm_tokens(patches[name]))])
    return [markdown_table(header, rows, anchors), _curves(group, by_name, root)], charted


def _write(plan: Plan, root: Path) -> str:
    out: list[str] = []
    charted: dict[str, list[Row]] = {}
    for group, members in variants().items():
        parts, charted[group] = against_reference(group, members, plan, root, f"parts {group}")
        out += [f"### {group[0].upper()}{group[1:]}", *parts]
    intro = f"The audio patch of the demo with one thing changed at a time. {explained(plan)}"
    return "\n\n".join([intro, gains(charted, root, "parts"), *out])


def in_points(members: Mapping[str, Variant], plan: Plan, root: Path, anchors: str) -> list[tuple[float, str]]:
    """By how much each variant differs from the reference on all questions about sound, and that in words."""
    by_name = runs_of(members, plan)
    out = []
    for name in members:
        points = 100 * difference(by_name[REFERENCE], by_name[name], root, _AUDIO.own)[0]
        out.append((points, f"{linked(_SHORT.get(name, name), anchors, name)} {points:+.1f}"))
    return out


def _in_short(plan: Plan, root: Path) -> list[str]:
    lines = [line for group, members in variants().items() for line in in_points(members, plan, root, f"parts {group}")]
    return [
        f"One thing about the patch changed, on all questions about sound, in points against {REFERENCE}: "
        f"{', '.join(text for _, text in sorted(lines))}."
    ]


SECTION = Section("What matters", _runs, _write, _in_short, long=True)
