"""What matters: one thing about the audio patch is changed at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pave.config import PatchConfig
from pave.demo.plan import SILENT
from pave.evidence.charts import Point, Row, curve_chart, dot_chart
from pave.evidence.figures import on_page
from pave.evidence.own import OwnVariant, read_variants
from pave.evidence.runs import TRAINING, Run, facts_of
from pave.evidence.scores import accuracy, difference
from pave.evidence.sections.common import VIDEO_ONLY, Plan, Section, seeds, seeds_text, video_only
from pave.evidence.svg import SERIES
from pave.evidence.tables import cell, gain, linked, markdown_table
from pave.evidence.worlds import WORLDS

REFERENCE = "the demo's patch"
OWN = "your own"
"""The group of the variants that a reader adds."""
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
            "the final norm learns at the rate of the rest (published)": Variant(changed(), {"output_norm_multiplier": 1.0}),
            "at 10 times the rate": Variant(changed(), {"output_norm_multiplier": 10.0}),
            "no final norm, the last linear starts at zero": Variant(changed(output_norm=False)),
        },
        "trained parts": {
            "fusion only": Variant(replace(changed(), lora=None)),
            f"LoRA only ({VIDEO_ONLY})": Variant(video_only()),
        },
        "sound as further tokens of the prompt": {
            "concat": Variant(changed(kind="concat", gate=False)),
            "interleave": Variant(changed(kind="interleave", gate=False)),
        },
    }


def own_variants(texts: Iterable[str]) -> tuple[OwnVariant, ...]:
    """The rows that ``--variant`` adds (``pave.evidence.own.read_variants``)."""
    built_in = [name for group in variants().values() for name in group]
    return read_variants(texts, Run("audio", REFERENCE, _AUDIO.patch()), [REFERENCE, *built_in])


def _groups(plan: Plan) -> dict[str, dict[str, Variant]]:
    own = {variant.name: Variant(variant.patch, variant.training) for variant in plan.variants}
    return {**variants(), **({OWN: own} if own else {})}


def _added(plan: Plan) -> str:
    """What the reader's own variants change."""
    changes = "; ".join(f"*{variant.name}* with `{' '.join(variant.changes)}`" for variant in plan.variants)
    return f"Added by `--variant`: {changes}."


def _of(name: str, variant: Variant, plan: Plan) -> list[Run]:
    return seeds("audio", name, variant.patch, plan, training=variant.training)


def _runs(plan: Plan) -> list[Run]:
    named = {REFERENCE: Variant(_AUDIO.patch())} | {k: v for group in _groups(plan).values() for k, v in group.items()}
    return [run for name, variant in named.items() for run in _of(name, variant, plan)]


def llm_tokens(patch: PatchConfig) -> int:
    """Tokens of the language model for a playground prompt with this patch; steps of sound that become tokens count."""
    from transformers import AutoConfig

    from pave.patching.cost import patch_cost
    from pave.utils.embedded import PLAYGROUND, model_path

    config = AutoConfig.from_pretrained(model_path(PLAYGROUND))
    plain = replace(video_only(), newline=patch.newline)
    cost = patch_cost(config, plain, num_frames=8, text_tokens=_TEXT_TOKENS)
    longer = sum(_SIDE_STEPS for channel in patch.side_channels.values() if channel.fusion.adds_llm_tokens)
    return cost.llm_tokens + longer


def _losses(runs: list[Run], root: Path) -> list[str]:
    cells = []
    for step in _CURVE:
        values = []
        for run in runs:
            curve = [loss for at, loss in facts_of(run, root)["curve"] if at <= step][-5:]
            values += curve
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


def _curves(group: str, named: Mapping[str, list[Run]], root: Path) -> str:
    """The learning curves of a group, the reference in each chart where there are more than one has colours for."""
    curves = {name: mean_curve([facts_of(run, root)["curve"] for run in runs]) for name, runs in named.items()}
    reference, *others = curves
    charts: list[str] = []
    for start in range(0, len(others), SERIES - 1):
        chart = curve_chart(
            f"Training loss by step: {group}",
            {name: curves[name] for name in (reference, *others[start : start + SERIES - 1])},
            x_axis="optimizer steps",
            y_axis="training loss on a logarithmic scale, mean of ten steps and of all seeds",
        )
        number = f"-{len(charts) + 1}" if charts else ""
        charts.append(on_page(root, f"curves-{group.replace(' ', '-')}{number}", chart))
    return "\n\n".join(charts)


def _gains(charted: Mapping[str, Sequence[Row]], root: Path) -> str:
    """All differences to the reference at a glance."""
    chart = dot_chart(
        f"What each change gains over {REFERENCE}",
        charted,
        (_NEED, _SILENT),
        axis=f"difference to {REFERENCE} in points, with 95 % intervals",
        ends=(-10.0, 5.0),
    )
    return on_page(root, "parts", chart)


def _write(plan: Plan, root: Path) -> str:
    intro = (
        f"The audio patch of the demo with one thing changed at a time, the same questions, {plan.steps_of('audio')} steps and rates of learning for all. The rates "
        "are those chosen for the demo's patch (its final norm, which starts at zero, learns at "
        f"{TRAINING['output_norm_multiplier']:g} times the rate of the rest of the fusion): a row shows what a variant learns "
        "with them in these steps, not what it can reach. Accuracy in percent; *all on sound* is "
        f"`sound` and `sound vision` together, and the differences are those to {REFERENCE}, in points. *Loss* is the mean training loss of the 50 steps up to that one; "
        "the curves show every entry of the log, the mean of ten steps. *Tokens* is the length of the prompt that "
        f"the language model reads ({_TEXT_TOKENS} of text, {_SIDE_STEPS} steps of sound); *concat* and *interleave* turn every step of sound into one more of them, behind "
        f"the video and between its frames. Every row is {seeds_text(plan)}."
    )
    reference = _of(REFERENCE, Variant(_AUDIO.patch()), plan)
    losses = [f"loss at {s}" for s in _CURVE]
    header = ["", "sound", "sound vision", "all on sound", "difference", "silent", "difference", *losses, "tokens"]
    out: list[str] = []
    charted: dict[str, list[Row]] = {}
    for group, members in _groups(plan).items():
        rows, named = [], {}
        for name, variant in {REFERENCE: Variant(_AUDIO.patch()), **members}.items():
            named[name] = runs = _of(name, variant, plan)
            sound, vision, both, silent = (
                cell(accuracy(runs, root, kinds)) for kinds in (("sound",), ("sound_vision",), _AUDIO.own, SILENT)
            )
            against = ["", ""]
            if name != REFERENCE:
                by = {_NEED: difference(reference, runs, root, _AUDIO.own), _SILENT: difference(reference, runs, root, SILENT)}
                against = [gain(*points) for points in by.values()]
                points = {series: Point.percent(*points) for series, points in by.items()}
                charted.setdefault(group, []).append(Row(_SHORT.get(name, name), points))
            found = [sound, vision, both, against[0], silent, against[1]]
            rows.append([name, *found, *_losses(runs, root), str(llm_tokens(variant.patch))])
        out += [
            f"### {group[0].upper()}{group[1:]}",
            *([_added(plan)] if group == OWN else []),
            markdown_table(header, rows, f"parts {group}"),
            _curves(group, named, root),
        ]
    return "\n\n".join([intro, _gains(charted, root), *out])


def _in_short(plan: Plan, root: Path) -> list[str]:
    reference = _of(REFERENCE, Variant(_AUDIO.patch()), plan)
    found = []
    for group, members in variants().items():
        for name, variant in members.items():
            points = 100 * difference(reference, _of(name, variant, plan), root, _AUDIO.own)[0]
            found.append((points, f"{linked(_SHORT.get(name, name), f'parts {group}', name)} {points:+.1f}"))
    found.sort()
    return [
        f"One thing about the patch changed, on all questions about sound, in points against {REFERENCE}: "
        f"{', '.join(text for _, text in found)}."
    ]


SECTION = Section("What matters", _runs, _write, _in_short, long=True)
