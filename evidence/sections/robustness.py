"""A channel that is damaged or gone at test time, for patches trained without and with channel dropout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from evidence.plan import BASE, PATCH, VIDEO_ONLY, Plan, Section, chance_text, compared_runs, seeds, seeds_text, spoken
from evidence.runs import AS_IT_IS, Run, silent
from evidence.scores import accuracy, difference
from evidence.tables import cell, gain, linked, markdown_table
from evidence.worlds import WORLDS
from pave.demo.plan import SILENT

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
LORA_ON = "the same, LoRA on without the channel"
DROPOUT = f"trained with channel dropout {RATE:g}"
_WORLDS = ("audio", "sensor")


def variants(world: str, plan: Plan) -> dict[str, list[Run]]:
    """The reference is the very run of the section on channels.

    Every sample has its channel in training, so ``missing_channel`` says nothing there, and the reference is asked with
    the other setting too. Dropout needs ``lora_only``: under ``base`` a video without its only channel is the base, and
    nothing is learnt from it.
    """
    patch = WORLDS[world].patch()
    gone = (REMOVED, silent(REMOVED))
    every = (*CHANGES, silent(REMOVED))
    lora_only = replace(patch, missing_channel="lora_only")
    dropout = {"channel_dropout": RATE}
    return {
        PATCH: seeds(world, PATCH, patch, plan, counterfactuals=every),
        LORA_ON: seeds(world, LORA_ON, patch, plan, counterfactuals=gone, asked_with={"missing_channel": "lora_only"}),
        DROPOUT: seeds(world, DROPOUT, lora_only, plan, training=dropout, counterfactuals=every),
    }


def without_channel(world: str, plan: Plan) -> dict[str, list[Run]]:
    """What never had the channel."""
    return {name: runs for name, runs in compared_runs(world, plan).items() if name != PATCH}


def _runs(plan: Plan) -> list[Run]:
    groups = [group for world in _WORLDS for group in (without_channel(world, plan), variants(world, plan))]
    return [run for group in groups for runs in group.values() for run in runs]


def _write(plan: Plan, root: Path) -> str:
    return "\n\n".join(
        [
            "The stream of every test clip is changed, after a training on streams as they are or with channel "
            "dropout. Accuracy in percent on the questions that need the channel, below it the difference to the same "
            f"patch on the stream as it is, in points; {seeds_text(plan)}. With the channel *removed* nobody can do "
            f"better than chance on these questions, and *{BASE}* does worse where it was never taught the words of "
            "the answers: what counts there is the second table. Noise is Gaussian, as large as the standard deviation "
            "of each feature over the stream. A stream that is *2 s late* has wrong times, so a patch that trusts them "
            "must fail where a question needs a frame and the channel at one moment (the types that end in *vision*): "
            "there that column is a check, not a loss. Of the other types it shows what is lost because the first "
            "frames have no step in reach, as in a gap, and the last steps have no frame any more. At twice its rate "
            "the stream still holds the same answer; with half of its steps missing a short event can lose all of its "
            "steps, and a frame all those in its reach.",
            _channel_questions(plan, root),
            "The silent questions with the channel there and with it removed, and the loss by removing it. The frames "
            f"answer them, so nothing needs to be lost. `missing_channel: base`, the default of the *{PATCH}*, must "
            f"give the answers of the *{BASE}* there. *{LORA_ON}* is the same weights with `missing_channel: "
            f"lora_only`, the authors' behaviour; *{DROPOUT}* has that setting and met clips without their channel in "
            f"training. Beside them is *{VIDEO_ONLY}*, which never had the channel.",
            _silent_questions(plan, root),
        ]
    )


def _channel_questions(plan: Plan, root: Path) -> str:
    rows = []
    for world in _WORLDS:
        for kind in WORLDS[world].own:
            chance = chance_text(world, kind)
            for variant, runs in variants(world, plan).items():
                cells = [cell(accuracy(runs, root, (kind,)))]
                for change in CHANGES:
                    cells.append(_changed(runs, root, kind, change))
                rows.append([_questions(world, kind), chance, variant, *cells])
            for variant, runs in without_channel(world, plan).items():
                rows.append(["", chance, f"*{variant}*", cell(accuracy(runs, root, (kind,))), *[""] * len(CHANGES)])
    return markdown_table(["questions", "chance", "", AS_IT_IS, *CHANGES.values()], rows, "robustness", named_by=3)


def _questions(world: str, kind: str) -> str:
    return f"{world}, {spoken(kind)}"


def _changed(runs: list[Run], root: Path, kind: str, change: str) -> str:
    if change not in runs[0].counterfactuals:
        return "as above"
    by = difference(runs, runs, root, (kind,), (AS_IT_IS, change))
    return f"{cell(accuracy(runs, root, (kind,), change))}<br>{gain(*by)}"


def _silent_questions(plan: Plan, root: Path) -> str:
    rows = []
    for world in _WORLDS:
        for variant, runs in without_channel(world, plan).items():
            rows.append([world, f"*{variant}*", cell(accuracy(runs, root, SILENT)), "", ""])
        for variant, runs in variants(world, plan).items():
            there, gone = (accuracy(runs, root, SILENT, name) for name in (AS_IT_IS, silent(REMOVED)))
            by = difference(runs, runs, root, SILENT, (AS_IT_IS, silent(REMOVED)))
            rows.append([world, variant, cell(there), cell(gone), gain(*by)])
    header = ["silent questions of", "", AS_IT_IS, "channel removed", "difference"]
    return markdown_table(header, rows, "removed", named_by=2)


def _in_short(plan: Plan, root: Path) -> list[str]:
    changes = {name: words for name, words in CHANGES.items() if name != REMOVED and not name.startswith("shifted")}
    by_world = {world: variants(world, plan) for world in _WORLDS}

    def points(first: str, second: str, names: tuple[str, str]) -> str:
        cells = []
        for world, runs in by_world.items():
            kinds = WORLDS[world].own
            by = 100 * difference(runs[first], runs[second], root, kinds, names)[0]
            row = (_questions(world, kinds[0]), chance_text(world, kinds[0]), second)
            cells.append(linked(f"{by:+.1f}", "robustness", *row))
        return " and ".join(cells)

    damaged = [f"{words} {points(PATCH, PATCH, (AS_IT_IS, change))}" for change, words in changes.items()]
    every = {AS_IT_IS: AS_IT_IS, **changes}
    dropout = [f"{words} {points(PATCH, DROPOUT, (change, change))}" for change, words in every.items()]
    return [
        f"A damaged stream ({' and '.join(_WORLDS)}), on all questions that need it, in points:"
        f"\n  - the patch against itself on the stream as it is: {'; '.join(damaged)}"
        f"\n  - {DROPOUT} against the patch on the same stream: {'; '.join(dropout)}"
    ]


SECTION = Section("A channel that is damaged or gone", _runs, _write, _in_short)
