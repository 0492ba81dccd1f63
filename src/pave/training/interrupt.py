"""Ctrl-C in a training run: the step is finished and a checkpoint saved."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from typing import Any

import transformers

logger = logging.getLogger(__name__)


class TrainingInterrupted(KeyboardInterrupt):
    """A run was stopped from outside. The message says what it can be resumed from."""


class _StopAtStep(transformers.TrainerCallback):
    """Ends the run behind the step in which it was asked to, with a checkpoint."""

    def __init__(self) -> None:
        self.asked = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.asked:
            control.should_save = control.should_training_stop = True


@contextlib.contextmanager
def interruptible(trainer: Any) -> Iterator[None]:
    """For the time of ``trainer.train()``: a first Ctrl-C ends the run behind the step that is being made and saves a checkpoint, a
    second one ends it at once.

    Of several processes, none can know in time that another was interrupted, so they end at once. So does a run in a thread, or in a
    program with a handler of its own.

    Raises:
        KeyboardInterrupt: when the checkpoint is saved, unless that step was the last one anyway.
    """
    stop = _StopAtStep()

    def ask(number: int, frame: Any) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        logger.warning("interrupted: the run ends behind this step, with a checkpoint; press Ctrl-C again to end it at once")

    if (
        trainer.args.world_size > 1
        or threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    trainer.add_callback(stop)
    signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        trainer.remove_callback(stop)
    if stop.asked and trainer.state.global_step < trainer.state.max_steps:
        raise KeyboardInterrupt
