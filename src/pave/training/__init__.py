"""Training a patch: recipes, the Trainer, the loss on answers only, staged data.

The public names load on first use, so that reading a recipe's files takes no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pave.training.arguments import PatchTrainingArguments, TrainingConfig
    from pave.training.callbacks import NoGradientError, NonFiniteError
    from pave.training.checkpoints import CheckpointError, last_checkpoint
    from pave.training.groups import parameter_groups
    from pave.training.interrupt import TrainingInterrupted
    from pave.training.loss import answer_loss
    from pave.training.measure import measure_features
    from pave.training.parts import train_only
    from pave.training.recipe import BaseConfig, DataConfig, Recipe, read_recipe
    from pave.training.run import RunResult, run_recipe
    from pave.training.sampler import Stage, StagedSampler
    from pave.training.tasks import Mixing, Task
    from pave.training.trainer import PatchTrainer

_HOMES = {
    "arguments": ("PatchTrainingArguments", "TrainingConfig"),
    "callbacks": ("NoGradientError", "NonFiniteError"),
    "checkpoints": ("CheckpointError", "last_checkpoint"),
    "groups": ("parameter_groups",),
    "interrupt": ("TrainingInterrupted",),
    "loss": ("answer_loss",),
    "measure": ("measure_features",),
    "parts": ("train_only",),
    "recipe": ("BaseConfig", "DataConfig", "Recipe", "read_recipe"),
    "run": ("RunResult", "run_recipe"),
    "sampler": ("Stage", "StagedSampler"),
    "tasks": ("Mixing", "Task"),
    "trainer": ("PatchTrainer",),
}

__all__ = [
    "BaseConfig",
    "CheckpointError",
    "DataConfig",
    "Mixing",
    "NoGradientError",
    "NonFiniteError",
    "PatchTrainer",
    "PatchTrainingArguments",
    "Recipe",
    "RunResult",
    "Stage",
    "StagedSampler",
    "Task",
    "TrainingConfig",
    "TrainingInterrupted",
    "answer_loss",
    "last_checkpoint",
    "measure_features",
    "parameter_groups",
    "read_recipe",
    "run_recipe",
    "train_only",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"pave.training.{module}"), name)
    raise AttributeError(f"module 'pave.training' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
