"""What a training run watches for."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from pave.training.together import problems_of_all

logger = logging.getLogger(__name__)


class NonFiniteError(RuntimeError):
    """A loss or a gradient is NaN or infinite. Training stops before the step, so every checkpoint on disk is still good."""


class NonFiniteGuard(transformers.TrainerCallback):
    """Stop at the first NaN or infinity, in every process at once, and name the samples it came from.

    Losses stay on their device until the step is due, so that forward passes are not held up one by one.

    Args:
        accelerator: what the processes talk through.
    """

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self._losses: list[tuple[Tensor, list[str]]] = []

    def note_loss(self, loss: Tensor, sample_ids: Sequence[str]) -> None:
        """Called with the loss of every forward pass in training."""
        self._losses.append((loss.detach(), list(sample_ids)))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        losses, self._losses = self._losses, []
        numbers = [loss.double() for loss, _ in losses]
        if not args.fp16:  # its gradient scaler meets infinities in the normal course of things and skips such steps itself
            numbers.append(_gradient_norm(kwargs["model"]).double())
        bad = [not math.isfinite(x) for x in torch.stack([x.to(args.device) for x in numbers]).tolist()]
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
        held_out = [name for name in logs if name.startswith("eval_") and name.endswith("_loss")]
        shown = {name: value for name, value in logs.items() if name in named or name in held_out}
        if shown:
            numbers = ", ".join(f"{name.replace('_', ' ')} {float(value):.4g}" for name, value in shown.items())
            logger.info("step %d of %d: %s", state.global_step, state.max_steps, numbers)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
