"""Train the attached patch with transformers' Trainer."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from pave.data.collator import IGNORE, PatchCollator
from pave.patching import load_tensors, patch_name, patch_parameter_groups, patch_slot, save_patch
from pave.training.arguments import PatchTrainingArguments
from pave.training.callbacks import NonFiniteGuard
from pave.training.loss import answer_loss, plain_loss

logger = logging.getLogger(__name__)

_STATE_FILE = "trainer_state.json"


class PatchTrainer(transformers.Trainer):
    """``transformers.Trainer`` for a patched model. It adds five things and nothing else:

    - saving: a checkpoint is the patch (in float32) with the Trainer's own optimizer, scheduler and random states, never the base;
    - parameter groups: each role of parameter at its own rate, weight decay on matrices only;
    - the loss on answers only (``pave.training.loss``);
    - the evaluation loss is the mean over all answer tokens, whatever the batches they come in;
    - a NaN or infinity stops the run and names the samples.

    The base is frozen and is not changed, its config included.

    Args:
        model: a patched model.
        args: ``PatchTrainingArguments``.
        data_collator: a ``PatchCollator`` with ``train=True``.
        train_sampler: order of the training samples; default the Trainer's own.
        provenance: JSON values that every saved patch records.
        processor: the base's processor, for the fingerprint in saved patches.
        kwargs: other arguments of the Trainer.

    Raises:
        ValueError: if the model carries no patch, or one process sees several GPUs.
    """

    model: Any
    args: PatchTrainingArguments

    def __init__(
        self,
        model: nn.Module,
        args: PatchTrainingArguments,
        *,
        data_collator: Any,
        train_sampler: Sampler[int] | None = None,
        provenance: Mapping[str, Any] | None = None,
        processor: Any = None,
        **kwargs: Any,
    ) -> None:
        if args.n_gpu > 1:
            raise ValueError(
                f"one process sees {args.n_gpu} GPUs; choose one with CUDA_VISIBLE_DEVICES=0, or start one process for each: "
                f"torchrun --nproc-per-node {args.n_gpu}"
            )
        patch_name(model)
        self._slot = patch_slot(model)
        self._train_sampler = train_sampler
        self._provenance = dict(provenance or {})
        self._processor = processor
        self._guard = NonFiniteGuard()
        self._held_out = [0.0, 0.0]  # summed loss and number of the answer tokens of the evaluation that goes on
        if isinstance(data_collator, PatchCollator):
            data_collator = copy.copy(data_collator)
            data_collator.with_ids = True
        with _unchanged_config(model):
            super().__init__(model=model, args=args, data_collator=data_collator, **kwargs)
        self.add_callback(self._guard)
        # The batch is counted over and scaled by the whole optimizer step, as for models that take num_items_in_batch.
        self.model_accepts_loss_kwargs = True

    # --- order of the samples

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return super()._get_train_sampler(*args, **kwargs) if self._train_sampler is None else self._train_sampler

    # --- parameter groups

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer_class(parameter_groups(self.model, self.args), **options)
        return self.optimizer

    # --- loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        inputs = dict(inputs)
        sample_ids = inputs.pop("sample_ids", [])
        if any(channel.fusion.adds_llm_tokens for channel in self._slot.config.side_channels.values()):
            loss, outputs = plain_loss(model, inputs, num_items_in_batch)
        else:
            loss, outputs = answer_loss(model, self.model.get_output_embeddings(), inputs, num_items_in_batch)
        if model.training:
            self._guard.check_loss(loss.detach(), sample_ids)
        else:
            count = int((inputs["labels"][:, 1:] != IGNORE).sum())
            self._held_out = [self._held_out[0] + float(loss.detach()) * count, self._held_out[1] + count]
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages over processes what was already divided by all items
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        self._held_out = [0.0, 0.0]
        kwargs["metric_key_prefix"] = metric_key_prefix
        output: Any = super().evaluation_loop(*args, **kwargs)
        own = torch.tensor(self._held_out, device=self.accelerator.device)
        total, count = self.accelerator.gather(own).view(-1, 2).sum(dim=0).tolist()
        if count:
            output.metrics[f"{metric_key_prefix}_loss"] = total / count  # the Trainer's is the mean of the batches' means
        return output

    # --- saving and resuming

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        progress = {"step": self.state.global_step, "seed": self.args.seed}
        save_patch(
            self.model,
            folder,
            processor=self._processor,
            provenance={**self._provenance, **progress},
            storage_dtype="float32",
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_tensors(self.model if model is None else model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        logger.info("loading the best patch, %s", self.state.best_model_checkpoint)
        load_tensors(self.model, str(self.state.best_model_checkpoint))

    def release_model(self) -> None:
        """Take the wrapper that mixed precision puts around ``forward`` off the model again. Call it when all is done."""
        for name in ("forward", "_original_forward"):
            vars(self.model).pop(name, None)


def parameter_groups(model: nn.Module, args: PatchTrainingArguments) -> list[dict[str, Any]]:
    """Groups for an optimizer: the patch's parameters by role, matrices (decayed) apart from norms, biases and scalars.

    Args:
        model: a patched model.
        args: the rates and the weight decay.
    """
    rates = args.role_learning_rates()
    groups = []
    for role, parameters in patch_parameter_groups(model).items():
        for decayed in (True, False):
            chosen = [p for p in parameters if p.requires_grad and (p.ndim >= 2) == decayed]
            if chosen:
                decay = args.weight_decay if decayed else 0.0
                groups.append({"params": chosen, "lr": rates[role], "weight_decay": decay, "role": role})
    return groups


def last_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest checkpoint in a folder that was written to its end, or None.

    The Trainer writes its state file last, so a checkpoint whose writing was cut short has none, or an unreadable one.
    """
    pattern = re.compile(re.escape(PREFIX_CHECKPOINT_DIR) + r"-(\d+)$")
    found = {int(m[1]): path for path in Path(output_dir).glob("*") if (m := pattern.match(path.name)) and path.is_dir()}
    for _, path in sorted(found.items(), reverse=True):
        try:
            json.loads((path / _STATE_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            logger.warning("%s is incomplete and is passed over", path)
            continue
        return path
    return None


@contextlib.contextmanager
def _unchanged_config(model: Any) -> Any:
    """The Trainer writes ``use_cache`` into the model's config; a base must come out as it went in."""
    before = dict(model.config.__dict__)
    yield
    model.config.__dict__.clear()
    model.config.__dict__.update(before)
