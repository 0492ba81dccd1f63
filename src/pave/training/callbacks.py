"""What a training run watches for."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from accelerate.utils import DistributedType
from torch import Tensor, nn

from pave.training.together import problems_of_all

logger = logging.getLogger(__name__)


class NonFiniteError(RuntimeError):
    """A loss or a gradient is NaN or infinite. Training stops before the step, so every checkpoint on disk is still good."""


class NoGradientError(RuntimeError):
    """Step after step nothing had a gradient, so nothing is learnt."""


MOST_IDLE_STEPS = 20
"""Steps in a row without any gradient that a run is allowed, however few samples it has."""


class NonFiniteGuard(transformers.TrainerCallback):
    """Stop at the first NaN or infinity, in every process at once, and name the samples it came from. Stop as well where nothing has
    had a gradient for two passes over the samples, or in all of a run.

    Losses stay on their device until the step is due, so that forward passes are not held up one by one.

    Args:
        accelerator: what the processes talk through.
        patience: steps in a row that may go without a gradient, ``MOST_IDLE_STEPS`` where that is more.
    """

    def __init__(self, accelerator: Any, patience: int = 0) -> None:
        self._accelerator = accelerator
        self._patience = max(patience, MOST_IDLE_STEPS)
        self._idle = 0
        # DeepSpeed keeps the gradients to itself; with fp16 they are scaled, and a step may be skipped
        self._sees_gradients = accelerator.distributed_type != DistributedType.DEEPSPEED
        self._losses: list[tuple[Tensor, list[str]]] = []

    def note_loss(self, loss: Tensor, sample_ids: Sequence[str]) -> None:
        """Called with the loss of every forward pass in training."""
        self._losses.append((loss.detach(), list(sample_ids)))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        losses, self._losses = self._losses, []
        numbers = [loss.double() for loss, _ in losses]
        if not args.fp16:  # its gradient scaler meets infinities in the normal course of things and skips such steps itself
            numbers.append(_gradient_norm(kwargs["model"]).double())
        values = torch.stack([x.to(args.device) for x in numbers]).tolist()
        bad = [not math.isfinite(x) for x in values]
        found = [
            f"the loss is {loss.item()} for the samples {listed(ids)}"
            for (loss, ids), is_bad in zip(losses, bad, strict=False)
            if is_bad
        ]
        if any(bad) and not found:
            found = [f"a gradient is not finite, samples {listed([i for _, ids in losses for i in ids])}"]
        problems = problems_of_all(self._accelerator, "; ".join(found) or None)
        if problems:
            raise NonFiniteError(
                f"step {state.global_step + 1}: {'; '.join(problems)}; look at their features and answers, or lower the rates"
            )
        if self._sees_gradients and not args.fp16:
            self._idle = self._idle + 1 if values[-1] == 0 else 0
            if self._idle >= self._patience:
                raise NoGradientError(f"step {state.global_step + 1}: {_nothing_learnt(f'the last {self._idle} steps')}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if 0 < state.global_step <= self._idle:
            raise NoGradientError(_nothing_learnt("any step"))


def _nothing_learnt(when: str) -> str:
    return (
        f"nothing of the patch had a gradient in {when}, so nothing is learnt; the samples have no side channel that reaches a frame: "
        "look at them with pave doctor"
    )


def _gradient_norm(model: nn.Module) -> Tensor:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm: Any = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # sharded


def listed(ids: Sequence[str]) -> str:
    """Ids of samples for a message, the first 20."""
    return ", ".join(ids[:20]) + (f" and {len(ids) - 20} more" if len(ids) > 20 else "") if ids else "(ids not in the batch)"


class FrozenInputs(transformers.TrainerCallback):
    """With activation checkpointing, transformers lets the embeddings require gradients, which only reentrant checkpointing needs. Here
    they are frozen, and the backward pass would go on through every frozen layer below the first one that is trained."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model: Any = kwargs["model"]
        functions = [getattr(module, "_gradient_checkpointing_func", None) for module in model.modules()]
        if not any(getattr(f, "keywords", {}).get("use_reentrant", True) for f in functions if f is not None):
            model.disable_input_require_grads()


class RunProgress(transformers.TrainerCallback):
    """A bar on a terminal, and a log line with the losses at every log step; both on standard error."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("training", total=state.max_steps, completed=state.global_step)
            self._bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        named = ("loss", "grad_norm", "learning_rate")
        held_out = [name for name in logs if name.startswith("eval_") and name.endswith(("_loss", "_accuracy"))]
        shown = {name: value for name, value in logs.items() if name in named or name in held_out}
        if shown:
            numbers = ", ".join(f"{name.replace('_', ' ')} {float(value):.4g}" for name, value in shown.items())
            logger.info("step %d of %d: %s", state.global_step, state.max_steps, numbers)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
