"""Train the attached patch with transformers' Trainer."""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_pt_utils import nested_gather

from pave.data.collator import PatchCollator
from pave.data.dataset import PatchDataset
from pave.patching import fingerprint, load_tensors, patch_name, patch_slot, save_patch
from pave.tokens import SideTokens
from pave.training.acting_report import ActingReport
from pave.training.arguments import PatchTrainingArguments
from pave.training.callbacks import FrozenInputs, NonFiniteGuard
from pave.training.channel_dropout import check_not_shared, drop_channels, dropout_rates
from pave.training.checkpoints import (
    CheckpointError,
    Manifest,
    abandon,
    check_replaceable,
    check_same_run,
    checkpoint_path,
    make_way,
    publish,
    read_manifest,
    reason,
    resumable,
    rotate,
    staging_path,
)
from pave.training.groups import parameter_groups
from pave.training.held_out import HeldOut, Judge, accuracies
from pave.training.hub import push_from_checkpoint, upload
from pave.training.loss import answer_loss, plain_loss, row_losses
from pave.training.resuming import check_same_base
from pave.training.together import check_sharding, problems_of_all, raise_together
from pave.utils.files import naming_disk

logger = logging.getLogger(__name__)

PATCH_FOLDER = "patch"
"""Folder inside the output folder in which a trained patch stands."""


class PatchTrainer(transformers.Trainer):
    """``transformers.Trainer`` for a patched model. It adds seven things and nothing else:

    - saving: a checkpoint is the patch (in float32) with the Trainer's own optimizer, scheduler and random states, never the base;
      ``save_model()`` writes the patch to ``OUTPUT/patch``, and ``push_to_hub()`` makes a repository that ``load_patch`` reads;
    - parameter groups: each role of parameter at its own rate, weight decay on matrices only;
    - the loss on answers only (``pave.training.loss``);
    - the evaluation loss is the mean over all answer tokens, whatever the batches they come in, and that of each task beside it; with
      a judge, so is the share of right answers;
    - channel dropout, in training only (``pave.training.channel_dropout``);
    - a NaN or infinity stops the run and names the samples;
    - where too little of a side channel can act, that is said once, with the worst samples (``pave.data.acting``).

    The base is frozen and is not changed, its config included.

    Args:
        model: a patched model.
        args: ``PatchTrainingArguments``.
        data_collator: a ``PatchCollator`` with ``train=True``.
        train_sampler: order of the training samples; default the Trainer's own.
        provenance: JSON values that every saved patch records.
        processor: the base's processor, for the fingerprint in saved patches.
        held_out_tasks: task of every held-out sample by its id; ``eval_TASK_loss`` is then reported beside ``eval_loss``.
        channel_dropout: as in a recipe: a probability for all channels, or by channel.
        judge: what answers held-out samples by generating in every evaluation; ``eval_accuracy`` is then reported beside ``eval_loss``.
        max_new_tokens: most tokens of such an answer.
        kwargs: other arguments of the Trainer.

    Raises:
        ValueError: if the model carries no patch, one process sees several GPUs, or the patch cannot learn with the channel dropout.
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
        held_out_tasks: Mapping[str, str] | None = None,
        channel_dropout: float | Mapping[str, float] = 0.0,
        judge: Judge | None = None,
        max_new_tokens: int = 32,
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
        self._base = fingerprint(model, processor)  # the weights of a sharded model cannot be read any more
        self._held_out_tasks = dict(held_out_tasks or {})
        self._held_out = HeldOut(self._held_out_tasks)
        self._judge, self._max_new_tokens, self._processor = judge, max_new_tokens, processor
        self._rates = dropout_rates(channel_dropout, self._slot.config)
        if isinstance(data_collator, PatchCollator):
            check_not_shared(self._rates, data_collator.share_videos)
            data_collator = copy.copy(data_collator)
            data_collator.with_ids = True
        with _unchanged_config(model):
            super().__init__(model=model, args=args, data_collator=data_collator, **kwargs)
        check_sharding(args, self.accelerator)
        self._guard = NonFiniteGuard(self.accelerator, patience=self._steps_of_two_passes())
        self.add_callback(self._guard)
        self.add_callback(FrozenInputs())
        self._acting = ActingReport(self._slot.config, self.train_dataset, self.accelerator.is_main_process)
        self.add_callback(self._acting)
        # The batch is counted over and scaled by the whole optimizer step, as for models that take num_items_in_batch.
        self.model_accepts_loss_kwargs = True

    def _steps_of_two_passes(self) -> int:
        """Optimizer steps in which every sample comes: it may be first in one shuffled pass and last in the next."""
        per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        data: Any = self.train_dataset
        return -(-2 * len(data) // per_step) if hasattr(data, "__len__") else 0

    # --- order of the samples

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return super()._get_train_sampler(*args, **kwargs) if self._train_sampler is None else self._train_sampler

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """One question a row, also where they share rows in training: every sample has a loss of its own."""
        in_training = self.data_collator
        if isinstance(in_training, PatchCollator):
            alone: Any = copy.copy(in_training)
            alone.share_videos = None
            self.data_collator = alone
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = in_training

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
        if model.training:
            self._acting.note(inputs, sample_ids)
        if model.training and self._rates:
            inputs["side_channels"] = self._without_dropped(inputs["side_channels"], sample_ids)
        if any(channel.fusion.adds_llm_tokens for channel in self._slot.config.side_channels.values()):
            loss, outputs = plain_loss(model, inputs, num_items_in_batch)
        else:
            loss, outputs = answer_loss(model, self.model.get_output_embeddings(), inputs, num_items_in_batch)
        if model.training:
            self._guard.note_loss(loss, sample_ids)
        else:
            self._held_out.add(row_losses(outputs.logits, inputs["labels"]), sample_ids)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages over processes what was already divided by all items
        return (loss, outputs) if return_outputs else loss

    def _without_dropped(self, sides: Mapping[str, SideTokens], sample_ids: list[str]) -> dict[str, SideTokens]:
        if not sample_ids:
            raise ValueError("channel_dropout goes by the ids of the samples, but the batch has none; use a PatchCollator")
        keep_one = self._slot.config.missing_channel == "base"
        seed, step = self.args.seed, self.state.global_step
        return drop_channels(sides, self._rates, sample_ids, seed=seed, step=step, keep_one=keep_one)

    def evaluation_loop(self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        self._held_out = HeldOut(self._held_out_tasks)
        kwargs["metric_key_prefix"] = metric_key_prefix
        output: Any = super().evaluation_loop(dataloader, *args, **kwargs)
        for task, mean in self._held_out.means(self.accelerator, output.num_samples).items():
            # the Trainer's own loss is the mean of the batches' means
            output.metrics[f"{metric_key_prefix}_{task}_loss" if task else f"{metric_key_prefix}_loss"] = mean
        if self._judge is not None:
            for task, share in self._accuracies(self._judge, dataloader.dataset).items():
                output.metrics[f"{metric_key_prefix}_{task}_accuracy" if task else f"{metric_key_prefix}_accuracy"] = share
        return output

    def _accuracies(self, judge: Judge, data: PatchDataset) -> dict[str, float]:
        """Every process answers a part of the samples."""
        places = range(self.args.process_index, len(data), self.args.world_size)
        rights = judge.judge(
            self.model,
            self._processor,
            data,
            places,
            batch_size=self.args.eval_batch_size,
            max_new_tokens=self._max_new_tokens,
        )
        judged = {data.samples[place].id: right for place, right in zip(places, rights, strict=True)}
        return accuracies(self.accelerator, judged, self._held_out_tasks)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        batches, error = [], None
        try:
            batches = list(itertools.islice(epoch_iterator, num_batches))
        except Exception as caught:
            error = caught
        raise_together(self.accelerator, error)  # a process that stopped alone would leave the others waiting
        return super().get_batch_samples(iter(batches), num_batches, device)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """The mean loss of the run is that of all processes: the Trainer adds what came after its last log entry from its own alone."""
        self._tr_loss = nested_gather(self._tr_loss, self.args.parallel_mode).mean()
        limit, self.args.save_total_limit = (
            self.args.save_total_limit,
            None,
        )  # of 1, it would delete all but the best checkpoint
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    # --- saving and resuming

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the patch, by default to ``OUTPUT/patch``. Every process must call it where the model is sharded.

        Raises:
            ValueError: if the folder holds anything but an earlier patch, which would be replaced with it.
        """
        folder = self._patch_folder if output_dir is None else Path(output_dir)
        check_replaceable(folder)
        self._save(str(folder))
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        progress = {"step": self.state.global_step, "seed": self.args.seed}
        self.write_patch(output_dir or self._patch_folder, progress, storage_dtype="float32")

    @property
    def _patch_folder(self) -> Path:
        return Path(str(self.args.output_dir)) / PATCH_FOLDER

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save the patch to ``OUTPUT/patch`` and upload what is in there, so that ``load_patch`` takes the repository's id.

        The arguments are the Trainer's. It makes a card of a whole model from ``kwargs``; a patch has its own card.

        Raises:
            ValueError: if ``kwargs`` says anything for that card.
        """
        if kwargs:
            raise ValueError(f"a patch is uploaded with its own card; {', '.join(kwargs)} would not be in it")
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        revision = revision or self.args.hub_revision
        return upload(self, self._patch_folder, commit_message, token=token, revision=revision, run_as_future=not blocking)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """As the Trainer's, which would leave the files of whole models in the output folder and upload that."""
        if self.is_world_process_zero():
            push_from_checkpoint(self, Path(checkpoint_folder), self._patch_folder)

    def write_patch(self, folder: str | Path, facts: Mapping[str, Any], storage_dtype: str | None = None) -> None:
        """Save the patch with its provenance and further facts; every process must call it where the model is sharded.

        Raises:
            ValueError: if a tensor of the patch is not finite.
        """
        save_patch(
            self.model,
            folder,
            provenance={**self._provenance, **facts},
            storage_dtype=storage_dtype,
            base=self._base,
            write=self.args.should_save,
        )

    def finish(self, folder: Path, outcome: Mapping[str, Any]) -> None:
        """Save the trained patch, in step over all processes.

        Raises:
            CheckpointError: if it cannot be written. What the last checkpoint holds can still be resumed from.
        """
        self._in_step(lambda: self.write_patch(folder, outcome), folder, "the trained patch could not be written")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As the Trainer's, but whole or not at all, in step over all processes, and without the base."""
        if self.hp_search_backend is None and trial is None:
            self.store_flos()
        target = checkpoint_path(self._get_output_dir(trial=trial), self.state.global_step)
        staging = staging_path(target)
        self._note_best(target)
        parts: list[Callable[[], None]] = [lambda: self._leader(make_way, staging), lambda: self._save(str(staging))]
        if not self.args.save_only_model:
            parts.append(lambda: self._save_optimizer_and_scheduler(str(staging)))
            parts.append(lambda: self._save_states(staging))
        parts.append(lambda: self._leader(self._publish, staging, target))
        try:
            for part in parts:
                self._in_step(part, target, "the checkpoint could not be written")
        except CheckpointError:
            self._leader(abandon, staging)
            raise
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(target))
        self._leader(rotate, target.parent, self.args.save_total_limit, [self.state.best_model_checkpoint])

    def _leader(self, work: Callable[..., None], *args: Any) -> None:
        if self.args.should_save:
            work(*args)

    def _in_step(self, part: Callable[[], None], target: Path, complaint: str) -> None:
        """Write something on every process. If it fails on one, all give up and the earlier checkpoints stay."""
        error: Exception | None = None
        try:
            with naming_disk(target):
                part()
        except Exception as caught:
            error = caught
        problems = problems_of_all(self.accelerator, None if error is None else reason(error))
        if problems:
            kept = resumable(target.parent)
            raise CheckpointError(f"{target}: {complaint} ({'; '.join(problems)}); {kept}") from error

    def _note_best(self, target: Path) -> None:
        if self.state.best_global_step:
            best = checkpoint_path(target.parent, self.state.best_global_step)
            if best == target or best.is_dir():
                self.state.best_model_checkpoint = str(best)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        from accelerate.utils import save_fsdp_optimizer

        plugin = self.accelerator.state.fsdp_plugin  # the Trainer would write the whole base beside the optimizer
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save and self.lr_scheduler is not None:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _save_states(self, staging: Path) -> None:
        if not staging.is_dir():
            raise OSError(f"{staging.parent} is not on a file system that all processes share")
        self._save_scaler(str(staging))
        self._save_rng_state(str(staging))

    def _publish(self, staging: Path, target: Path) -> None:
        stateful: dict[str, list[dict[str, Any]]] = {}
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                stateful.setdefault(type(callback).__name__, []).append(callback.state())
        states: Any = {name: several if len(several) > 1 else several[0] for name, several in stateful.items()}
        self.state.stateful_callbacks = states
        self.state.save_to_json(str(staging / TRAINER_STATE_NAME))
        publish(staging, target, self._manifest())

    def _manifest(self) -> Manifest:
        per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        names = {id(p): name for name, p in self.model.named_parameters()}
        groups = [[names[id(p)] for p in group["params"]] for group in parameter_groups(self.model, self.args)]
        return Manifest(
            step=self.state.global_step,
            steps=self.state.max_steps,
            processes=self.args.world_size,
            samples_per_step=per_step,
            parameters=groups,
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        read_manifest(resume_from_checkpoint, content=True)
        check_same_base(resume_from_checkpoint, self._base)
        load_tensors(self.model if model is None else model, resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            check_same_run(checkpoint, self._manifest())
        super()._load_optimizer_and_scheduler(checkpoint)

    def _load_best_model(self) -> None:
        logger.info("loading the best patch, %s", self.state.best_model_checkpoint)
        load_tensors(self.model, str(self.state.best_model_checkpoint))

    def release_model(self) -> None:
        """Take the wrapper that mixed precision puts around ``forward`` off the model again. Call it when all is done."""
        for name in ("forward", "_original_forward"):
            vars(self.model).pop(name, None)


@contextlib.contextmanager
def _unchanged_config(model: Any) -> Any:
    """The Trainer writes ``use_cache`` into the model's config; a base must come out as it went in."""
    before = dict(model.config.__dict__)
    yield
    model.config.__dict__.clear()
    model.config.__dict__.update(before)
