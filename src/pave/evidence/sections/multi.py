"""Several channels: one patch trained on two of them, and two patches that are simply added, against a patch for each."""

from __future__ import annotations

from pathlib import Path

from pave.config import PatchConfig
from pave.demo.plan import LORA, SILENT
from pave.evidence.runs import Run
from pave.evidence.scores import accuracy, difference
from pave.evidence.sections.common import BASE, PATCH, VIDEO_ONLY, Plan, Section, run, seeds, seeds_text, video_only
from pave.evidence.tables import cell, gain, linked, markdown_table
from pave.evidence.worlds import WORLDS

CHANNELS = ("audio", "sensor")
BOTH, ADDED = "one patch for both", "the two patches added"
_WORLD = "+".join(CHANNELS)


def patch_for_both() -> PatchConfig:
    """A fusion module for each channel, and one LoRA of the same size as that of a patch for one channel."""
    channels = {name: channel for world in CHANNELS for name, channel in WORLDS[world].patch().side_channels.items()}
    return PatchConfig(side_channels=channels, lora=LORA)


def _alone(world: str, plan: Plan) -> dict[str, list[Run]]:
    """The very runs of the section on channels."""
    patches = {BASE: None, VIDEO_ONLY: video_only(), PATCH: WORLDS[world].patch()}
    return {variant: seeds(world, variant, patch, plan) for variant, patch in patches.items()}


def _of_both(plan: Plan) -> dict[str, list[Run]]:
    steps = sum(plan.steps_of(world) for world in CHANNELS)
    trained = {world: _alone(world, plan)[PATCH] for world in CHANNELS}
    return {
        BOTH: seeds(_WORLD, BOTH, patch_for_both(), plan, steps=steps),
        ADDED: [
            run(_WORLD, ADDED, None, plan, seed, added=tuple(trained[world][place] for world in CHANNELS))
            for place, seed in enumerate(plan.seeds)
        ],
    }


def _runs(plan: Plan) -> list[Run]:
    alone = [made for world in CHANNELS for runs in _alone(world, plan).values() for made in runs]
    return [*alone, *(made for runs in _of_both(plan).values() for made in runs)]


def _silent_of(world: str) -> tuple[str, ...]:
    return tuple(f"{world}:{kind}" for kind in SILENT)


def _write(plan: Plan, root: Path) -> str:
    both = _of_both(plan)
    return "\n\n".join([_introduction(plan), _accuracies(plan, root, both), _forgetting(plan, root, both)])


def _introduction(plan: Plan) -> str:
    steps = [plan.steps_of(world) for world in CHANNELS]
    return (
        f"*{BOTH.capitalize()}* has a fusion module for each channel and one LoRA of the usual rank, and is trained on the questions of both "
        f"worlds at once, for {sum(steps)} steps, the sum of the steps of the two patches ({' and '.join(map(str, steps))}), so that it "
        f"sees as many samples of each world as the patch for that world. *{ADDED.capitalize()}* is no training at all: the audio patch and "
        "the sensor patch of the same seed on one base, each with its fusion module, the LoRA updates summed. A clip has the channel of its "
        "own world only, so what differs from its own patch is the other patch's LoRA. Accuracy in percent, and the difference to the "
        f"channel's own patch in points; {seeds_text(plan)}."
    )


def _accuracies(plan: Plan, root: Path, both: dict[str, list[Run]]) -> str:
    rows = []
    for world in CHANNELS:
        alone = _alone(world, plan)
        groups = {kind.replace("_", " "): (kind,) for kind in WORLDS[world].own} | {"silent questions": _silent_of(world)}
        for place, (label, kinds) in enumerate(groups.items()):
            chance = WORLDS[world].chance.get(kinds[0])
            cells = [cell(accuracy(runs, root, kinds)) for runs in alone.values()]
            for runs in both.values():
                cells += [cell(accuracy(runs, root, kinds)), gain(*difference(alone[PATCH], runs, root, kinds))]
            rows.append(["" if place else world, label, "" if chance is None else f"{100 * chance:.0f}", *cells])
    header = ["channel", "questions", "chance", BASE, VIDEO_ONLY, "its own patch", BOTH, "difference", ADDED, "difference"]
    return markdown_table(header, rows, "multi")


def _forgetting(plan: Plan, root: Path, both: dict[str, list[Run]]) -> str:
    rows = []
    for world in CHANNELS:
        alone = _alone(world, plan)
        kinds = _silent_of(world)
        base = alone[BASE] * len(plan.seeds)
        compared = [alone[VIDEO_ONLY], alone[PATCH], *both.values()]
        rows.append([world, *(gain(*difference(base, runs, root, kinds)) for runs in compared)])
    return "\n\n".join(
        [
            "What is forgotten: the silent questions, in points against the base alone. A clip without any channel is exactly the base "
            "under all three patches and is not part of this.",
            markdown_table(["clips of", VIDEO_ONLY, "its own patch", BOTH, ADDED], rows, "forgetting"),
        ]
    )


def _in_short(plan: Plan, root: Path) -> list[str]:
    lines = []
    for name, runs in _of_both(plan).items():
        found = []
        for world in CHANNELS:
            patch = _alone(world, plan)[PATCH]
            own, silent = (100 * difference(patch, runs, root, kinds)[0] for kinds in (WORLDS[world].own, _silent_of(world)))
            found.append(f"{linked(world, 'multi', world)} {own:+.1f} (silent questions {silent:+.1f})")
        lines.append(f"{name[0].upper()}{name[1:]}, against the channel's own patch, in points: {', '.join(found)}.")
    return lines


SECTION = Section("Several channels in one patch, and patches added up", _runs, _write, _in_short)
