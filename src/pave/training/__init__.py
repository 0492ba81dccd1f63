"""Training a patch: recipes, the Trainer, the loss on answers only, staged data."""

from __future__ import annotations

from pave.training.arguments import PatchTrainingArguments, TrainingConfig
from pave.training.callbacks import NonFiniteError
from pave.training.checkpoints import CheckpointError, last_checkpoint
from pave.training.loss import answer_loss
from pave.training.measure import measure_features
from pave.training.parts import train_only
from pave.training.recipe import BaseConfig, DataConfig, Recipe, read_recipe
from pave.training.run import RunResult, run_recipe
from pave.training.sampler import Stage, StagedSampler
from pave.training.tasks import Mixing, Task
from pave.training.trainer import PatchTrainer, parameter_groups

__all__ = [
    "BaseConfig",
    "CheckpointError",
    "DataConfig",
    "Mixing",
    "NonFiniteError",
    "PatchTrainer",
    "PatchTrainingArguments",
    "Recipe",
    "RunResult",
    "Stage",
    "StagedSampler",
    "Task",
    "TrainingConfig",
    "answer_loss",
    "last_checkpoint",
    "measure_features",
    "parameter_groups",
    "read_recipe",
    "run_recipe",
    "train_only",
]
