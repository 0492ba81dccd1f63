"""Where the time of a training step goes. Nothing of this is there, and nothing is slower, where it was not asked for."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from pave.patching import patch_slot
from pave.utils.files import atomic_write_text
from pave.video_llms import get_interface

logger = logging.getLogger(__name__)

PROFILE_FILE = "profile.json"
OTHER = "other"
PARTS = {
    "waiting": "data: waiting for it, beside the next three",
    "decode": "data: video, or the cache",
    "side_features": "data: side features",
    "collate": "data: collate",
    "vision_tower": "forward: vision tower",
    "fusion": "forward: fusion",
    "language_model": "forward: language model",
    "loss": "forward: head and loss",
    "forward": "forward: the rest",
    "backward": "backward",
    "optimizer": "optimizer",
    "saving": "saving",
    "evaluation": "evaluation",
    OTHER: "the rest of the loop",
}
"""What is told apart. With worker processes, all of the data is waiting."""
_WHOLE = ("saving", "evaluation")


class PartClock:
    """Charges every moment to the innermost part that runs, so that the parts of a step add up to its time.

    Args:
        now: seconds, after all that was begun on an accelerator is done.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._running = [OTHER]
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._mark = self._began = now()

    def enter(self, part: str) -> None:
        """What follows is ``part``; inside of saving and evaluation it stays theirs."""
        self._charge()
        running = self._running[-1]
        self._running.append(running if running in _WHOLE else part)

    def leave(self) -> None:
        """The innermost part has ended."""
        self._charge()
        self._running.pop()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """For the time of a block."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def cut(self) -> tuple[float, dict[str, float]]:
        """Seconds since the last cut, and those of every part."""
        self._charge()
        seconds, total = self._seconds, self._mark - self._began
        self._seconds, self._began = dict.fromkeys(PARTS, 0.0), self._mark
        return total, seconds

    def _charge(self) -> None:
        now = self._now()
        self._seconds[self._running[-1]] += now - self._mark
        self._mark = now


class StepProfile(transformers.TrainerCallback):
    """Times the parts of a run's first steps, then takes itself off. The first step, which loads and fills things, is left out.

    An accelerator is waited for whenever a part begins or ends, so that its work is charged to what asked for it.

    Args:
        steps: that are timed.

    Raises:
        ValueError: if there is none.
    """

    def __init__(self, steps: int = 20) -> None:
        if steps < 1:
            raise ValueError(f"the number of steps to profile must be at least 1, got {steps}")
        self.steps = steps
        self.taken: list[tuple[float, dict[str, float]]] = []
        """Of every step, the first included: its seconds and those of its parts."""
        self._clock: PartClock | None = None
        self._undo = contextlib.ExitStack()
        self._begun = False
        self._samples = 0
        self._folder: Path | None = None

    def attach(self, trainer: Any) -> None:
        """Put timers around the parts of a ``PatchTrainer``, before it trains."""
        clock = self._clock = PartClock(_now)
        args, model = trainer.args, trainer.model
        self._samples = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self._folder = Path(args.output_dir) if args.should_save else None
        trainer.add_callback(self)
        self._time_calls(trainer, "get_batch_samples", "waiting", before=self._next_step)
        if not args.dataloader_num_workers:
            self._time_calls(trainer.train_dataset, "_video", "decode")
            self._time_calls(trainer.train_dataset, "features", "side_features")
            self._replace(trainer, "get_train_dataloader", lambda make: lambda: self._collating(trainer, make))
        self._time_calls(trainer, "compute_loss", "forward")
        self._time_calls(model.base_model, get_interface(model.config).features_method, "vision_tower")
        self._time_calls(model, "loss_function", "loss")
        for module, part in (
            (patch_slot(model), "fusion"),
            (model.get_decoder(), "language_model"),
            (model.get_output_embeddings(), "loss"),
        ):
            self._time_module(module, part, clock)
        self._time_calls(trainer.accelerator, "backward", "backward")
        self._time_calls(trainer.accelerator, "clip_grad_norm_", "optimizer")
        self._time_calls(trainer, "_save_checkpoint", "saving")
        self._time_calls(trainer, "evaluate", "evaluation")

    def report(self) -> dict[str, Any]:
        """Means over the timed steps: seconds of a step and of its parts, shares, samples per second."""
        steps = self.taken[1:] or self.taken
        if not steps:
            raise ValueError("nothing was profiled: the run made no step")
        total = sum(seconds for seconds, _ in steps)
        parts = {part: sum(seconds[part] for _, seconds in steps) for part in PARTS}
        return {
            "steps": len(steps),
            "seconds_per_step": total / len(steps),
            "samples_per_second": self._samples * len(steps) / total,
            "seconds": {part: value / len(steps) for part, value in parts.items()},
            "shares": {part: value / total for part, value in parts.items()},
        }

    def table(self) -> str:
        """The report as lines of text."""
        report = self.report()
        head = f"{report['steps']} steps of {report['seconds_per_step']:.4g} s, {report['samples_per_second']:.4g} samples/s"
        rows = [
            f"  {text:<45}{report['seconds'][part]:>10.4f} s{report['shares'][part]:>8.1%}"
            for part, text in PARTS.items()
            if report["seconds"][part]
        ]
        return "\n".join([head, *rows])

    # --- called by the Trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._clock is not None:
            self._clock.enter("optimizer")

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._clock is not None:
            self._clock.leave()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._clock is not None:
            self.taken.append(self._clock.cut())
            self._finish()

    def _next_step(self) -> None:
        """A step begins with its data."""
        assert self._clock is not None
        ended = self._clock.cut()
        if self._begun:
            self.taken.append(ended)
        self._begun = True
        if len(self.taken) > self.steps:
            self._finish()

    def _finish(self) -> None:
        self._clock = None
        self._undo.close()
        if self._folder is not None:
            atomic_write_text(self._folder / PROFILE_FILE, json.dumps(self.report(), indent=1) + "\n")
            logger.info("%s", self.table())

    # --- putting timers on

    def _time_calls(self, owner: Any, name: str, part: str, before: Callable[[], None] = lambda: None) -> None:
        def around(original: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(original)
            def timed(*args: Any, **kwargs: Any) -> Any:
                before()
                if self._clock is None:  # this call has ended the profile
                    return original(*args, **kwargs)
                with self._clock.part(part):
                    return original(*args, **kwargs)

            return timed

        self._replace(owner, name, around)

    def _replace(self, owner: Any, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """A method replaced on the instance, until the profile ends."""
        if not hasattr(owner, name):
            return
        setattr(owner, name, around(getattr(owner, name)))
        self._undo.callback(delattr, owner, "_loss_function" if name == "loss_function" else name)

    def _collating(self, trainer: Any, make: Callable[[], Any]) -> Any:
        """The loader of a collator with a timer; the trainer's own stays as it is."""
        collate = trainer.data_collator

        def timed(items: Any) -> Any:
            if self._clock is None:
                return collate(items)
            with self._clock.part("collate"):
                return collate(items)

        trainer.data_collator = timed
        try:
            return make()
        finally:
            trainer.data_collator = collate

    def _time_module(self, module: nn.Module, part: str, clock: PartClock) -> None:
        before = module.register_forward_pre_hook(lambda *_: clock.enter(part), prepend=True)
        after = module.register_forward_hook(lambda *_: clock.leave(), always_call=True)
        self._undo.callback(before.remove)
        self._undo.callback(after.remove)


def _now() -> float:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()
