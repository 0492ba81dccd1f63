"""A run as data: a world, a variant of a patch, a seed; its folder, its recipe and what it answered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Final

from evidence.worlds import SILENT_WEIGHTS, WORLDS
from pave.config import PatchConfig
from pave.data.media import FrameSampling
from pave.evaluation.predictions import Prediction, read_predictions
from pave.training.recipe import BaseConfig, DataConfig, Recipe
from pave.training.sampler import Stage
from pave.utils.embedded import PLAYGROUND
from pave.utils.files import read_json

RESULT = "result.json"
TRAINED = "trained.json"
"""Written when the weights are there."""
AS_IT_IS = "as it is"
"""Streams without a counterfactual."""
SILENT_UNDER = "silent questions, "
FRAMES = FrameSampling(num_frames=8)
"""Sampling of every run."""
DTYPE: Final = "float32"
"""Weights of every base."""


@dataclass(frozen=True)
class Run:
    """What is trained and asked. Two runs that are equal are one."""

    world: str
    """A name in ``WORLDS``; or several, joined by "+"."""
    variant: str
    """What tables call it."""
    patch: PatchConfig | None
    """None: the base alone, nothing is trained."""
    seed: int = 0
    steps: int = 350
    weights: dict[str, float] = field(default_factory=dict)
    """Shares of the question types in training; empty: those of the world."""
    training: dict[str, Any] = field(default_factory=dict)
    """Changes to the training settings."""
    counterfactuals: tuple[str, ...] = ()
    """Changes to the streams under which the questions of the world's own types are asked again; ``silent(change)``
    asks the silent ones."""
    asked_with: dict[str, Any] = field(default_factory=dict)
    """Settings that change nothing in training here, and are set when the questions are asked: ``empty_frames`` of
    the fusion, and ``missing_channel`` of the patch, where every sample has its channel."""
    added: tuple[Run, ...] = ()
    """Runs whose patches are added up instead of training one (``evidence.patch_sums``); they are made first."""
    base: str = PLAYGROUND
    """The playground's own, or a name under ``evidence.bases``."""
    asked: int = 0
    """Clips of the test set whose questions are asked; 0: all."""
    clips: int = 0
    """Clips that the data has for training; part of what the run is."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "patch": None if self.patch is None else self.patch.to_dict()}

    def __str__(self) -> str:
        return f"{self.world}, {self.variant}, seed {self.seed}"

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the weights: everything but its name and what is asked afterwards. Settings at their default
        are left out, so that a run stays the same run when the library gets a new one."""
        values = _not_default(self)
        if self.added:
            values["added"] = [part.identity for part in self.added]
        return {k: v for k, v in values.items() if k not in ("variant", "counterfactuals", "asked_with")}

    def folder(self, root: Path) -> Path:
        """Where its files are: the same for runs of any name that have the same weights."""
        key = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:12]
        return root / "runs" / self.world.replace("+", "_") / f"seed{self.seed}-{key}"

    def answers_file(self, root: Path, name: str = AS_IT_IS) -> Path:
        """Where its answers are: as the streams are, or under a change to them."""
        words = "-".join([name, *(f"{key}={value}" for key, value in sorted(self.asked_with.items()))])
        return self.folder(root) / f"answers-{''.join(c if c.isalnum() or c in '.-' else '_' for c in words)}.jsonl"

    def unasked(self, root: Path) -> list[str]:
        """The names under which its questions have not all been answered yet."""
        names = (AS_IT_IS, *self.counterfactuals)
        return [name for name in names if not self.answers_file(root, name).with_suffix(".done").exists()]

    def finished(self, root: Path) -> bool:
        """Whether it is trained and everything is asked."""
        return (self.folder(root) / RESULT).exists() and not self.unasked(root)

    def answers(self, root: Path, name: str = AS_IT_IS) -> list[Prediction]:
        """What it answered, once finished."""
        return read_predictions(self.answers_file(root, name))[1]

    def facts(self, root: Path) -> dict[str, Any]:
        """Seconds, losses and config, once finished."""
        facts: dict[str, Any] = read_json(self.folder(root) / RESULT)
        return facts


def silent(change: str) -> str:
    """The name under which the silent questions are asked with a change to the streams."""
    return SILENT_UNDER + change


def _not_default(config: Any) -> Any:
    """A dataclass as a dictionary of the fields that are not at their default, all the way down."""
    if isinstance(config, Mapping):
        return {key: _not_default(value) for key, value in config.items()}
    if not is_dataclass(config):
        return config
    out = {}
    for item in fields(config):
        value = getattr(config, item.name)
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        if default is MISSING or value != default:
            out[item.name] = _not_default(value)
    return out


def mixture(world: str) -> dict[str, float]:
    """Shares of the question types of a world; several worlds share what one has."""
    names = world.split("+")
    shares = {kind: share / len(names) for name in names for kind, share in WORLDS[name].weights.items()}
    if len(names) == 1:
        return {**shares, **SILENT_WEIGHTS}
    quiet = {f"{name}:{kind}": share / len(names) for name in names for kind, share in SILENT_WEIGHTS.items()}
    return {**shares, **quiet}


def recipe_of(run: Run, data: Path, output: Path, store: Path, base: str = PLAYGROUND) -> Recipe:
    """The recipe of a run that trains; ``base`` is where the run's base is."""
    assert run.patch is not None
    return Recipe(
        base=BaseConfig(model=base, dtype=DTYPE),
        patch=run.patch,
        data=DataConfig(
            train=str(data / "train.jsonl"),
            frames=FRAMES,
            cache="memory",
            store=str(store),
            vision="store",
            stages=(Stage(steps=run.steps, weights=run.weights or mixture(run.world)),),
        ),
        training=replace(WORLDS[run.world.partition("+")[0]].recipe.training, seed=run.seed, **run.training),
        output=str(output),
    )
