"""What is compared: each section names its runs, and writes its part of the page from their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pave.config import PatchConfig
from pave.demo.plan import LORA, SILENT
from pave.evidence.runs import AS_IT_IS, Run, accuracy, difference
from pave.evidence.tables import cell, gain, markdown_table
from pave.evidence.worlds import WORLDS

BASE, VIDEO_ONLY, PATCH = "base alone", "LoRA on video only", "patch"
CHANGES = {
    "early=3": "the recorder was started 3 s early",
    "rerated=3": "its second half at 3 times the rate",
    "gap=0.2": "a gap of 20 %, clear of the event",
}
"""Streams with true times that no longer fit an even spread over the video."""


@dataclass(frozen=True)
class Plan:
    """How large a reproduction is."""

    seeds: tuple[int, ...] = (0, 1, 2)
    train_clips: int = 1200
    test_clips: int = 300
    steps: int | None = None
    """Optimizer steps of every run; None: what each world needs."""

    def steps_of(self, world: str) -> int:
        """Optimizer steps on a world."""
        return self.steps or max(WORLDS[name].steps for name in world.split("+"))


FULL = Plan()
ONE_SEED = Plan(seeds=(0,))
SHORT = Plan(seeds=(0,), train_clips=40, test_clips=10, steps=4)


@dataclass(frozen=True)
class Section:
    """A question with its answer."""

    title: str
    runs: Callable[[Plan], list[Run]]
    write: Callable[[Plan, Path], str]
    """The Markdown under the title, from the runs in a folder."""


def run(world: str, variant: str, patch: PatchConfig | None, plan: Plan, seed: int, **changes: object) -> Run:
    """A run of the plan's size."""
    values: dict[str, object] = {"steps": 0 if patch is None else plan.steps_of(world), "clips": plan.train_clips, **changes}
    return Run(world=world, variant=variant, patch=patch, seed=seed, **values)  # type: ignore[arg-type]


def seeds(world: str, variant: str, patch: PatchConfig | None, plan: Plan, **changes: object) -> list[Run]:
    """The same for every seed; the base alone has no seed."""
    return [run(world, variant, patch, plan, seed, **changes) for seed in (plan.seeds if patch is not None else (0,))]


def video_only() -> PatchConfig:
    """The comparison of all sections: the same LoRA, the same questions, no side channel."""
    return PatchConfig(side_channels={}, lora=LORA)


# --- every channel: base, LoRA on video only, patch


def _channel_runs(plan: Plan) -> list[Run]:
    return [
        run
        for world in WORLDS
        for variant, patch in _channel_variants(world).items()
        for run in seeds(world, variant, patch, plan)
    ]


def _channel_variants(world: str) -> dict[str, PatchConfig | None]:
    return {BASE: None, VIDEO_ONLY: video_only(), PATCH: WORLDS[world].patch()}


def _write_channels(plan: Plan, root: Path) -> str:
    parts = [
        "Accuracy in percent with 95 % intervals clustered by video, pooled over "
        f"{len(plan.seeds)} seeds of training ({plan.train_clips} clips to train on, {plan.test_clips} others to test on, the same for "
        "all). *Gain* is the patch minus LoRA on video only, question by question, in points. The base is never trained here."
    ]
    rows = []
    for name, world in WORLDS.items():
        made = {variant: seeds(name, variant, patch, plan) for variant, patch in _channel_variants(name).items()}
        groups: dict[str, tuple[str, ...]] = {kind: (kind,) for kind in world.own}
        groups |= {"all that need the channel": world.own} if len(world.own) > 1 else {}
        for kind, kinds in {**groups, "silent questions": SILENT}.items():
            scores = {variant: accuracy(runs, root, kinds) for variant, runs in made.items()}
            apart = scores[PATCH].interval.low > scores[VIDEO_ONLY].interval.high
            by = difference(made[VIDEO_ONLY], made[PATCH], root, kinds)
            chance = world.chance.get(kind)
            rows.append(
                [
                    name if kind == world.own[0] else "",
                    kind.replace("_", " "),
                    "" if chance is None else f"{100 * chance:.0f}",
                    *(cell(scores[variant]) for variant in made),
                    gain(*by) + (" *" if apart else ""),
                ]
            )
    header = ["channel", "questions", "chance", BASE, VIDEO_ONLY, PATCH, "gain"]
    parts += [markdown_table(header, rows), "\\* the intervals of the two do not overlap."]
    return "\n\n".join(parts)


# --- time: alignment by timestamps, by index, none


def _time_variants(world: str) -> dict[str, PatchConfig]:
    whole = {"alignment": "timestamps", "neighbourhood_seconds": 1000.0}
    return {
        "by timestamps": WORLDS[world].patch(),
        "by index": WORLDS[world].patch(alignment="index"),
        "none (every frame sees all)": WORLDS[world].patch(**whole),
    }


_TIMED = ("audio", "sensor")


def _time_runs(plan: Plan) -> list[Run]:
    return [
        run
        for world in _TIMED
        for variant, patch in _time_variants(world).items()
        for run in seeds(world, variant, patch, plan, counterfactuals=tuple(CHANGES))
    ]


def _write_time(plan: Plan, root: Path) -> str:
    parts = [
        "Each patch is trained on streams as they are. Then the stream of every test clip is changed so that its steps keep their true "
        "times but no longer spread evenly over the video. Accuracy on the questions that need a frame and the channel at the same "
        "moment, in percent; below it the difference to the same patch on the stream as it is."
    ]
    rows = []
    for world in _TIMED:
        kind = WORLDS[world].aligned
        assert kind is not None
        for variant, patch in _time_variants(world).items():
            runs = seeds(world, variant, patch, plan)
            cells = [cell(accuracy(runs, root, (kind,)))]
            for change in CHANGES:
                by = difference(runs, runs, root, (kind,), (AS_IT_IS, change))
                cells.append(f"{cell(accuracy(runs, root, (kind,), change))}<br>{gain(*by)}")
            rows.append([f"{world}, {kind.replace('_', ' ')}", variant, *cells])
    header = ["questions", "alignment", AS_IT_IS, *CHANGES.values()]
    return "\n\n".join([*parts, markdown_table(header, rows)])


SECTIONS: Mapping[str, Section] = {
    "channels": Section("Every channel teaches what the frames do not show", _channel_runs, _write_channels),
    "time": Section("True times hold where an even spread does not", _time_runs, _write_time),
}


def all_runs(names: Sequence[str], plan: Plan) -> list[Run]:
    """What the named sections need."""
    return [run for name in names for run in SECTIONS[name].runs(plan)]
