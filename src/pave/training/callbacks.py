"""What a training run watches for."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

logger = logging.getLogger(__name__)


class NonFiniteError(RuntimeError):
    """A loss or a gradient is NaN or infinite. Training stops before the step, so every checkpoint on disk is still good."""


class NonFiniteGuard(transformers.TrainerCallback):
    """Stop at the first NaN or infinity and name the samples it came from."""

    def __init__(self) -> None:
        self._ids: list[str] = []

    def check_loss(self, loss: Tensor, sample_ids: Sequence[str]) -> None:
        """Called with the loss of every forward pass in training."""
        self._ids += sample_ids
        if not bool(torch.isfinite(loss)):
            raise NonFiniteError(
                f"the loss is {loss.item()} for the samples {_listed(sample_ids)}; look at their features and answers"
            )

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        ids, self._ids = self._ids, []
        if args.fp16:
            return  # the gradient scaler meets infinities in the normal course of things and skips such steps itself
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        if gradients and not bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients))):
            raise NonFiniteError(f"a gradient is not finite at step {state.global_step + 1}, samples {_listed(ids)}")


def _listed(ids: Sequence[str]) -> str:
    return ", ".join(ids[:20]) + (f" and {len(ids) - 20} more" if len(ids) > 20 else "") if ids else "(ids not in the batch)"


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
        shown = {name: value for name, value in logs.items() if name in ("loss", "grad_norm", "learning_rate", "eval_loss")}
        if shown:
            numbers = ", ".join(f"{name.replace('_', ' ')} {float(value):.4g}" for name, value in shown.items())
            logger.info("step %d of %d: %s", state.global_step, state.max_steps, numbers)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
