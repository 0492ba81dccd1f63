"""How large a reproduction is, what a section of its page is, and the runs that sections have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evidence.runs import Run
from evidence.variants import OwnVariant
from evidence.worlds import WORLDS, data_folder
from pave.config import PatchConfig
from pave.demo.plan import video_only_patch

BASE, VIDEO_ONLY, PATCH = "base alone", "LoRA on video only", "patch"


@dataclass(frozen=True)
class Plan:
    """How large a reproduction is."""

    seeds: tuple[int, ...] = (0, 1, 2)
    train_clips: int = 1200
    test_clips: int = 300
    steps: int | None = None
    """Optimizer steps of every run; None: what each world needs."""
    measure: bool = True
    """Whether times are taken, which needs minutes at any size."""
    variants: tuple[OwnVariant, ...] = ()
    """A reader's rows."""

    def steps_of(self, world: str) -> int:
        """Optimizer steps on a world."""
        return self.steps or max(WORLDS[name].steps for name in world.split("+"))

    def data(self, world: str, root: Path) -> Path:
        """Folder with the samples of one world, or of several joined by "+"."""
        return data_folder(world, root, self.train_clips, self.test_clips)


FULL = Plan()
ONE_SEED = Plan(seeds=(0,))
SHORT = Plan(seeds=(0,), train_clips=40, test_clips=10, steps=4, measure=False)


@dataclass(frozen=True)
class Section:
    """A question with its answer."""

    title: str
    runs: Callable[[Plan], list[Run]]
    write: Callable[[Plan, Path], str]
    """The Markdown under the title, from the runs in a folder."""
    in_short: Callable[[Plan, Path], list[str]] = lambda plan, root: []
    """The main numbers, a sentence or two each, with links to their rows; true whatever the runs gave."""
    check: Callable[[Plan, Path], None] = lambda plan, root: None
    """Raises ValueError if what the section keeps in the folder beside its runs would be made otherwise now."""
    long: bool = False
    """Left out with one seed, which is to be done in half an hour, where no section is named."""


def run(world: str, variant: str, patch: PatchConfig | None, plan: Plan, seed: int, **changes: Any) -> Run:
    """A run of the plan's size."""
    steps = 0 if patch is None else plan.steps_of(world)
    values: dict[str, Any] = {"steps": steps, "clips": plan.train_clips, **changes}
    return Run(world=world, variant=variant, patch=patch, seed=seed, **values)


def seeds(world: str, variant: str, patch: PatchConfig | None, plan: Plan, **changes: Any) -> list[Run]:
    """The same run for every seed; the base alone has no seed."""
    return [run(world, variant, patch, plan, seed, **changes) for seed in (plan.seeds if patch is not None else (0,))]


def compared_patches(world: str) -> dict[str, PatchConfig | None]:
    """The comparison of most sections: no patch, the same LoRA without the side channel, the patch of the world."""
    return {BASE: None, VIDEO_ONLY: video_only_patch(), PATCH: WORLDS[world].patch()}


def compared_runs(world: str, plan: Plan, **changes: Any) -> dict[str, list[Run]]:
    """The runs of ``compared_patches``, all seeds of each."""
    return {name: seeds(world, name, patch, plan, **changes) for name, patch in compared_patches(world).items()}


def seeds_text(plan: Plan) -> str:
    """How many seeds stand behind a number."""
    return "one seed of training" if len(plan.seeds) == 1 else f"pooled over {len(plan.seeds)} seeds of training"


def chance_text(world: str, kind: str) -> str:
    """Accuracy of guessing in percent; empty where a group of questions has none."""
    chance = WORLDS[world].chance.get(kind)
    return "" if chance is None else f"{100 * chance:.0f}"


def spoken(kind: str) -> str:
    """A question type as the page writes it."""
    return kind.replace("_", " ")
