"""Several channels: one patch trained on two of them, and two patches simply added, against a patch for each."""

from __future__ import annotations

from pathlib import Path

from evidence.plan import (
    BASE,
    PATCH,
    VIDEO_ONLY,
    Plan,
    Section,
    chance_text,
    compared_runs,
    run,
    seeds,
    seeds_text,
    spoken,
)
from evidence.runs import Run
from evidence.scores import accuracy, difference
from evidence.tables import cell, gain, linked, markdown_table
from evidence.worlds import WORLDS
from pave.config import PatchConfig
from pave.demo.plan import LORA, SILENT

CHANNELS = ("audio", "sensor")
BOTH, ADDED = "one patch for both", "the two patches added"
_WORLD = "+".join(CHANNELS)


def patch_for_both() -> PatchConfig:
    """A fusion module for each channel, and one LoRA of the same size as that of a patch for one channel."""
    channels = {name: channel for world in CHANNELS for name, channel in WORLDS[world].patch().side_channels.items()}
    return PatchConfig(side_channels=channels, lora=LORA)


def runs_for_both(plan: Plan) -> dict[str, list[Run]]:
    """The patch trained on both channels, and the sums of the patches of one seed."""
    steps = sum(plan.steps_of(world) for world in CHANNELS)
    patches = [compared_runs(world, plan)[PATCH] for world in CHANNELS]
    sums = [
        run(_WORLD, ADDED, None, plan, seed, added=parts)
        for seed, parts in zip(plan.seeds, zip(*patches, strict=True), strict=True)
    ]
    return {BOTH: seeds(_WORLD, BOTH, patch_for_both(), plan, steps=steps), ADDED: sums}


def _runs(plan: Plan) -> list[Run]:
    groups = [*(compared_runs(world, plan) for world in CHANNELS), runs_for_both(plan)]
    return [run for group in groups for runs in group.values() for run in runs]


def _silent_of(world: str) -> tuple[str, ...]:
    return tuple(f"{world}:{kind}" for kind in SILENT)


def _write(plan: Plan, root: Path) -> str:
    both = runs_for_both(plan)
    return "\n\n".join([_introduction(plan), _accuracies(plan, root, both), *_forgetting(plan, root, both)])


def _introduction(plan: Plan) -> str:
    steps = [plan.steps_of(world) for world in CHANNELS]
    return (
        f"*{BOTH.capitalize()}* has a fusion module for each channel and one LoRA of the usual rank, and is trained on "
        f"the questions of both worlds at once, for {sum(steps)} steps, the sum of the steps of the two patches "
        f"({' and '.join(map(str, steps))}), so that it sees as many samples of each world as the patch for that "
        f"world. *{ADDED.capitalize()}* is no training at all: the audio patch and the sensor patch of the same seed "
        "on one base, each with its fusion module, the LoRA updates summed. A clip has the channel of its own world "
        "only, so what differs from its own patch is the other patch's LoRA. Accuracy in percent, and the difference "
        f"to the channel's own patch in points; {seeds_text(plan)}."
    )


def _accuracies(plan: Plan, root: Path, both: dict[str, list[Run]]) -> str:
    rows = []
    for world in CHANNELS:
        alone = compared_runs(world, plan)
        groups = {kind: (kind,) for kind in WORLDS[world].own} | {"silent questions": _silent_of(world)}
        for place, (label, kinds) in enumerate(groups.items()):
            cells = [cell(accuracy(runs, root, kinds)) for runs in alone.values()]
            for runs in both.values():
                cells += [cell(accuracy(runs, root, kinds)), gain(*difference(alone[PATCH], runs, root, kinds))]
            rows.append(["" if place else world, spoken(label), chance_text(world, label), *cells])
    header = ["channel", "questions", "chance", BASE, VIDEO_ONLY, "its own patch"]
    return markdown_table([*header, BOTH, "difference", ADDED, "difference"], rows, "multi")


def _forgetting(plan: Plan, root: Path, both: dict[str, list[Run]]) -> list[str]:
    rows = []
    for world in CHANNELS:
        alone = compared_runs(world, plan)
        base = alone[BASE] * len(plan.seeds)
        compared = [alone[VIDEO_ONLY], alone[PATCH], *both.values()]
        rows.append([world, *(gain(*difference(base, runs, root, _silent_of(world))) for runs in compared)])
    return [
        "What is forgotten: the silent questions, in points against the base alone. A clip without any channel is "
        "exactly the base under all three patches and is not part of this.",
        markdown_table(["clips of", VIDEO_ONLY, "its own patch", BOTH, ADDED], rows, "forgetting"),
    ]


def _in_short(plan: Plan, root: Path) -> list[str]:
    lines = []
    for name, runs in runs_for_both(plan).items():
        cells = []
        for world in CHANNELS:
            patch = compared_runs(world, plan)[PATCH]
            heard, silent = (
                100 * difference(patch, runs, root, kinds)[0] for kinds in (WORLDS[world].own, _silent_of(world))
            )
            cells.append(f"{linked(world, 'multi', world)} {heard:+.1f} (silent questions {silent:+.1f})")
        lines.append(f"{name[0].upper()}{name[1:]}, against the channel's own patch, in points: {', '.join(cells)}.")
    return lines


SECTION = Section("Several channels in one patch, and patches added up", _runs, _write, _in_short)
