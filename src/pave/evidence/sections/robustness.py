"""A channel that is damaged or gone at test time, for patches trained without and with channel dropout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pave.demo.plan import SILENT
from pave.evidence.runs import AS_IT_IS, Run, silent
from pave.evidence.scores import accuracy, difference
from pave.evidence.sections.common import BASE, PATCH, VIDEO_ONLY, Plan, Section, seeds, seeds_text, video_only
from pave.evidence.tables import cell, gain, linked, markdown_table
from pave.evidence.worlds import WORLDS

RATE = 0.3
"""Channel dropout in training."""
REMOVED = "removed"
CHANGES = {
    REMOVED: "removed",
    "noised=1": "noise of 1 deviation",
    "shifted=2": "2 s late",
    "resampled=2": "at twice its rate",
    "thinned=0.5": "half of its steps missing",
}
"""What is done to the stream of every test clip."""
KEPT = "the same, LoRA on without the channel"
DROPOUT = f"trained with channel dropout {RATE:g}"
_WORLDS = ("audio", "sensor")


def _variants(world: str, plan: Plan) -> dict[str, list[Run]]:
    """The reference is the very run of the section on channels. Every sample has its channel in training, so ``missing_channel`` says
    nothing there, and the reference is asked with the other setting too. Dropout needs ``lora_only``: under ``base`` a video without its
    only channel is the base, and nothing is learnt from it."""
    patch = WORLDS[world].patch()
    lora_only = {"missing_channel": "lora_only"}
    return {
        PATCH: seeds(world, PATCH, patch, plan, counterfactuals=(*CHANGES, silent(REMOVED))),
        KEPT: seeds(world, KEPT, patch, plan, counterfactuals=(REMOVED, silent(REMOVED)), asked_with=lora_only),
        DROPOUT: seeds(
            world,
            DROPOUT,
            replace(patch, missing_channel="lora_only"),
            plan,
            training={"channel_dropout": RATE},
            counterfactuals=(*CHANGES, silent(REMOVED)),
        ),
    }


def _without_channel(world: str, plan: Plan) -> dict[str, list[Run]]:
    return {BASE: seeds(world, BASE, None, plan), VIDEO_ONLY: seeds(world, VIDEO_ONLY, video_only(), plan)}


def _runs(plan: Plan) -> list[Run]:
    return [
        made
        for world in _WORLDS
        for runs in (*_without_channel(world, plan).values(), *_variants(world, plan).values())
        for made in runs
    ]


def _write(plan: Plan, root: Path) -> str:
    return "\n\n".join(
        [
            "The stream of every test clip is changed, after a training on streams as they are or with channel dropout. Accuracy in percent on the questions "
            "that need the channel, below it the difference to the same patch on the stream as it is, in points; "
            f"{seeds_text(plan)}. With the channel *removed* nobody can do better than chance on these questions, and *{BASE}* does worse where "
            "it was never taught the words of the answers: what counts there is the second table. Noise is Gaussian, as large as the standard "
            "deviation of each feature over the stream. A stream that is *2 s late* has wrong times, so a patch that trusts them must fail where a question needs a frame and the "
            "channel at one moment (the types that end in *vision*): there that column is a check, not a loss. Of the other types it shows what is lost "
            "because the first frames have no step in reach, as in a gap, and the last steps have no frame any more. "
            "At twice its rate the stream still holds the same answer; with half of its steps missing a short event can lose all "
            "of its steps, and a frame all those in its reach.",
            _own_questions(plan, root),
            "The silent questions with the channel there and with it removed, and the loss by removing it. The frames answer them, so nothing "
            f"needs to be lost. `missing_channel: base`, the default of the *{PATCH}*, must give the answers of the *{BASE}* there. "
            f"*{KEPT}* is the same weights with `missing_channel: lora_only`, the authors' behaviour; *{DROPOUT}* has that setting and met "
            f"clips without their channel in training. Beside them is *{VIDEO_ONLY}*, which never had the channel.",
            _silent_questions(plan, root),
        ]
    )


def _own_questions(plan: Plan, root: Path) -> str:
    rows = []
    for world in _WORLDS:
        for kind in WORLDS[world].own:
            chance = _chance(world, kind)
            for variant, runs in _variants(world, plan).items():
                cells = [cell(accuracy(runs, root, (kind,)))]
                for change in CHANGES:
                    cells.append(_changed(runs, root, (kind,), change) if change in runs[0].counterfactuals else "as above")
                rows.append([f"{world}, {kind.replace('_', ' ')}", chance, variant, *cells])
            for variant, runs in _without_channel(world, plan).items():
                rows.append(["", chance, f"*{variant}*", cell(accuracy(runs, root, (kind,))), *[""] * len(CHANGES)])
    return markdown_table(["questions", "chance", "", AS_IT_IS, *CHANGES.values()], rows, "robustness", named_by=3)


def _chance(world: str, kind: str) -> str:
    return f"{100 * WORLDS[world].chance[kind]:.0f}"


def _changed(runs: list[Run], root: Path, kinds: tuple[str, ...], change: str) -> str:
    by = difference(runs, runs, root, kinds, (AS_IT_IS, change))
    return f"{cell(accuracy(runs, root, kinds, change))}<br>{gain(*by)}"


def _silent_questions(plan: Plan, root: Path) -> str:
    rows = []
    for world in _WORLDS:
        for variant, runs in _without_channel(world, plan).items():
            rows.append([world, f"*{variant}*", cell(accuracy(runs, root, SILENT)), "", ""])
        for variant, runs in _variants(world, plan).items():
            there, gone = (accuracy(runs, root, SILENT, name) for name in (AS_IT_IS, silent(REMOVED)))
            by = difference(runs, runs, root, SILENT, (AS_IT_IS, silent(REMOVED)))
            rows.append([world, variant, cell(there), cell(gone), gain(*by)])
    return markdown_table(["silent questions of", "", AS_IT_IS, "channel removed", "difference"], rows, "removed", named_by=2)


def _in_short(plan: Plan, root: Path) -> list[str]:
    changes = {change: words for change, words in CHANGES.items() if change != REMOVED and not change.startswith("shifted")}
    variants = {world: _variants(world, plan) for world in _WORLDS}

    def points(first: str, second: str, names: tuple[str, str]) -> str:
        found = []
        for world, by in variants.items():
            kind = WORLDS[world].own[0]
            difference_of = 100 * difference(by[first], by[second], root, WORLDS[world].own, names)[0]
            row = (f"{world}, {kind.replace('_', ' ')}", _chance(world, kind), second)
            found.append(linked(f"{difference_of:+.1f}", "robustness", *row))
        return " and ".join(found)

    damaged = "; ".join(f"{words} {points(PATCH, PATCH, (AS_IT_IS, change))}" for change, words in changes.items())
    dropped = "; ".join(
        f"{words} {points(PATCH, DROPOUT, (change, change))}" for change, words in {AS_IT_IS: AS_IT_IS, **changes}.items()
    )
    channels = " and ".join(_WORLDS)
    return [
        f"A damaged stream ({channels}), on all questions that need it, in points:"
        f"\n  - the patch against itself on the stream as it is: {damaged}"
        f"\n  - {DROPOUT} against the patch on the same stream: {dropped}"
    ]


SECTION = Section("A channel that is damaged or gone", _runs, _write, _in_short)
