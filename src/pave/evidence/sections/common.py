"""What all sections share: how large a reproduction is, and runs of that size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pave.config import PatchConfig
from pave.demo.plan import LORA
from pave.evidence.own import OwnVariant
from pave.evidence.runs import Run
from pave.evidence.worlds import WORLDS

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
    """Rows of a reader's own."""

    def steps_of(self, world: str) -> int:
        """Optimizer steps on a world."""
        return self.steps or max(WORLDS[name].steps for name in world.split("+"))


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
    """Its main numbers, a sentence or two each, with links to their rows; they are true whatever the runs gave."""
    check: Callable[[Plan, Path], None] = lambda plan, root: None
    """Raises ValueError if what it keeps in the folder beside its runs would be made otherwise now."""
    long: bool = False
    """Left out with one seed, which is to be done in half an hour, where no section is named."""


def data_folder(world: str, root: Path, plan: Plan) -> Path:
    """Where the samples of one world, or of several joined by "+", are."""
    return root / "data" / f"{world.replace('+', '_')}-{plan.train_clips}-{plan.test_clips}"


def run(world: str, variant: str, patch: PatchConfig | None, plan: Plan, seed: int, **changes: Any) -> Run:
    """A run of the plan's size."""
    values: dict[str, Any] = {"steps": 0 if patch is None else plan.steps_of(world), "clips": plan.train_clips, **changes}
    return Run(world=world, variant=variant, patch=patch, seed=seed, **values)


def seeds(world: str, variant: str, patch: PatchConfig | None, plan: Plan, **changes: Any) -> list[Run]:
    """The same for every seed; the base alone has no seed."""
    return [run(world, variant, patch, plan, seed, **changes) for seed in (plan.seeds if patch is not None else (0,))]


def video_only() -> PatchConfig:
    """The comparison of all sections: the same LoRA, the same questions, no side channel."""
    return PatchConfig(side_channels={}, lora=LORA)


def seeds_text(plan: Plan) -> str:
    """How many seeds stand behind a number."""
    return "one seed of training" if len(plan.seeds) == 1 else f"pooled over {len(plan.seeds)} seeds of training"
