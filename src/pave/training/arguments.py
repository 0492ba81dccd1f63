"""The numbers of a training run: what a recipe says of them, and the TrainingArguments made from it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil
from typing import Annotated, Any, Literal

import torch
import transformers
from accelerate.utils import parse_flag_from_env

from pave.config import NullIsEmpty, Strict

MOST_STEPS = 10**9
"""Of a run; more are a slip of the pen."""
MOST_SAMPLES = 10**6
"""In a step on one device, likewise."""
MOST_WORKERS = 1024
"""Processes that decode ahead for one device, likewise."""


def uses_accelerator() -> bool:
    """Whether training takes one: where there is one, unless accelerate's own variable ACCELERATE_USE_CPU says otherwise."""
    return torch.accelerator.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")


@dataclass
class PatchTrainingArguments(transformers.TrainingArguments):
    """``transformers.TrainingArguments`` with one learning rate for each role of a patch's parameters.

    ``learning_rate`` is that of the fusion.
    """

    output_norm_multiplier: float = field(
        default=20.0,
        metadata={
            "help": "Times learning_rate: the rate of the last LayerNorm of the fusion, which starts at zero. At the start only "
            "it gets a gradient, and what it passes on is scaled by its own weights near zero: a slow saddle, which a larger "
            "rate for this one layer removes without giving up the exact identity at the start. 1 is the published behaviour."
        },
    )
    lora_learning_rate: float | None = field(default=None, metadata={"help": "Rate of the LoRA part; default learning_rate."})
    gate_learning_rate: float | None = field(default=None, metadata={"help": "Rate of the gates; default learning_rate."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("output_norm_multiplier", "lora_learning_rate", "gate_learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be a finite number that is not negative, got {value}")

    def role_learning_rates(self) -> dict[str, float]:
        """The peak learning rate of every role."""
        rate = self.learning_rate
        return {
            "fusion": rate,
            "output_norm": rate * self.output_norm_multiplier,
            "gate": rate if self.gate_learning_rate is None else self.gate_learning_rate,
            "lora": rate if self.lora_learning_rate is None else self.lora_learning_rate,
        }


_DECIDED = {
    "max_steps": "training.steps or data.stages",
    "num_train_epochs": "training.epochs",
    "output_dir": "output",
    "seed": "training.seed",
}
"""Arguments on which more than the Trainer depends (the order of the samples, resuming), with what sets them."""


def _known() -> set[str]:
    return {f.name for f in dataclasses.fields(PatchTrainingArguments) if f.init}


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Strict):
    """The ``training`` section of a recipe."""

    seed: int = 0
    """Seed of the fresh patch, of the order of the samples and of dropout."""
    epochs: float = 1.0
    """Passes over the training samples; not used where steps or data.stages are given. Rounded up to whole steps."""
    steps: int | None = None
    """Optimizer steps, instead of epochs."""
    batch_size: int = 8
    """Videos per device in one forward pass."""
    accumulation: int = 1
    """Forward passes per optimizer step."""
    length_grouping: int | None = None
    """Steps among whose samples forward passes of similar length are formed, so that less is padded. 1 sorts inside a step only: every
    step then learns from the same samples as without. null: the order as drawn."""
    learning_rate: float = 1e-4
    """Peak rate of the fusion."""
    output_norm_multiplier: float = 20.0
    """Times learning_rate, for the last LayerNorm of the fusion (it starts at zero); 1 is the published behaviour."""
    lora_learning_rate: float | None = None
    """Peak rate of the LoRA part; default learning_rate."""
    gate_learning_rate: float | None = None
    """Peak rate of the gates; default learning_rate."""
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """How the rates fall after the warm-up."""
    warmup: float = 0.03
    """Share of all steps in which the rates rise from zero."""
    weight_decay: float = 0.0
    """AdamW's weight decay, on matrices only (no norms, biases or scalars)."""
    beta1: float = 0.9
    """AdamW."""
    beta2: float = 0.999
    """AdamW."""
    train: tuple[str, ...] | None = None
    """What is trained: fusion (every channel), fusion.CHANNEL, lora. The rest of the patch is frozen and saved as it came. null: all."""
    channel_dropout: float | dict[str, float] = 0.0
    """Probability that a side channel of a video is taken away in a training step, for all channels or by name. Under missing_channel
    'base' a video keeps at least one of those it has."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 leaves them."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: mixed precision, the patch stays in float32."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, slower."""
    workers: int = 0
    """Processes that decode ahead; 0 decodes in the main process."""
    log_every: int = 10
    """Steps between two log entries."""
    save_every: int | None = None
    """Steps between two checkpoints; default only the finished patch is saved."""
    keep_checkpoints: int | None = 2
    """Older checkpoints are deleted; null keeps all."""
    eval_every: int | None = None
    """Steps between two evaluations of the loss on data.eval."""
    report_to: Annotated[tuple[str, ...], NullIsEmpty()] = ()
    """Trackers by the Trainer's names: tensorboard, wandb, ..."""
    trainer: Annotated[dict[str, Any], NullIsEmpty()] = field(default_factory=dict)
    """Further arguments of transformers.TrainingArguments by their own names; they win over everything above. Steps, seed
    and output are not among them."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulation", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("steps", "save_every", "eval_every", "keep_checkpoints", "length_grouping"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1 or null, got {getattr(self, name)}")
        if self.batch_size * self.accumulation > MOST_SAMPLES or self.workers > MOST_WORKERS:
            raise ValueError(
                f"a step of {str(self.batch_size)[:20]} x {str(self.accumulation)[:20]} samples by {str(self.workers)[:20]} workers is a slip "
                f"of the pen: batch_size times accumulation is at most {MOST_SAMPLES:,}, workers {MOST_WORKERS:,}"
            )
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup is a share of all steps, between 0 and 1, got {self.warmup}")
        if not 0 < self.epochs < float("inf"):
            raise ValueError(f"epochs must be a positive, finite number, got {self.epochs}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be between 0 and 2**32 - 1, got {self.seed}")
        for name in ("learning_rate", "weight_decay", "max_grad_norm", "workers"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a finite number that is not negative, got {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if self.steps is not None and self.steps > MOST_STEPS:
            raise ValueError(f"steps must be at most {MOST_STEPS:,}, got {self.steps:,}")
        self._check_trainer()

    def _check_trainer(self) -> None:
        unknown = sorted(set(self.trainer) - _known())
        if unknown:
            raise ValueError(f"trainer: transformers.TrainingArguments has no argument {unknown[0]!r}")
        for name, own in _DECIDED.items():
            if name in self.trainer:
                raise ValueError(f"trainer: {name} is decided elsewhere; set {own}")
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
            value = self.trainer.get(name, 1)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"trainer: {name} must be a whole number of at least 1, got {value!r}")

    def num_steps(self, samples: int, world_size: int = 1) -> int:
        """Optimizer steps for that many training samples.

        Raises:
            ValueError: if epochs makes absurdly many.
        """
        if self.steps is not None:
            return self.steps
        per_step = self.batch_size * self.accumulation * world_size
        passes = Fraction(repr(float(self.epochs)))  # as written: as floats, 0.07 x 100 is above 7, a step too many
        steps = max(1, ceil(passes * samples / per_step))
        if steps > MOST_STEPS:
            raise ValueError(f"training.epochs {self.epochs} makes {float(steps):.3g} steps of {samples} samples; lower it")
        return steps

    def arguments(self, output_dir: str, num_steps: int) -> PatchTrainingArguments:
        """The arguments for the Trainer.

        Args:
            output_dir: checkpoints and logs go here.
            num_steps: optimizer steps of the run.

        Raises:
            ValueError: if transformers refuses a value, in its words.
        """
        values: dict[str, Any] = {
            "output_dir": output_dir,
            "seed": self.seed,
            "max_steps": num_steps,
            "per_device_train_batch_size": self.batch_size,
            "per_device_eval_batch_size": self.batch_size,
            "gradient_accumulation_steps": self.accumulation,
            "learning_rate": self.learning_rate,
            "output_norm_multiplier": self.output_norm_multiplier,
            "lora_learning_rate": self.lora_learning_rate,
            "gate_learning_rate": self.gate_learning_rate,
            "lr_scheduler_type": self.schedule,
            "warmup_steps": round(self.warmup * num_steps),
            "weight_decay": self.weight_decay,
            "adam_beta1": self.beta1,
            "adam_beta2": self.beta2,
            "max_grad_norm": self.max_grad_norm,
            "bf16": self.precision == "bfloat16",
            "use_cpu": not uses_accelerator(),
            "dataloader_pin_memory": uses_accelerator(),
            "dataloader_num_workers": self.workers,
            "dataloader_persistent_workers": self.workers > 0,
            "logging_steps": self.log_every,
            "logging_first_step": True,
            "save_strategy": "steps" if self.save_every else "no",
            "save_steps": self.save_every or 500,
            "save_total_limit": self.keep_checkpoints,
            "eval_strategy": "steps" if self.eval_every else "no",
            "eval_steps": self.eval_every,
            "prediction_loss_only": True,
            "logging_nan_inf_filter": False,  # it would hold up every forward pass; NonFiniteGuard looks once a step
            "ddp_find_unused_parameters": False,  # a patched model uses all of them in every call, even without the channel
            "report_to": list(self.report_to),
        }
        if self.activation_checkpointing:  # renamed in transformers 5.23
            values["activation_checkpointing" if "activation_checkpointing" in _known() else "gradient_checkpointing"] = True
        values.update(self.trainer)
        return PatchTrainingArguments(**values)
