"""Run a recipe from its files to a saved patch."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import transformers

from pave.data.collator import PatchCollator
from pave.data.dataset import CacheReport, PatchDataset, source_of
from pave.data.samples import Sample
from pave.data.store.reading import StoredChannels, StoredVision
from pave.data.vision import BaseVision, MemoryVision, StorageDtype, VisionEncoder
from pave.patching import attach_patch, check_continues, continue_patch, patch_digest, patch_parameters, read_record
from pave.side_channels import SideEncoder, build_encoder
from pave.training.arguments import PatchTrainingArguments, uses_accelerator
from pave.training.callbacks import RunProgress
from pave.training.checkpoints import CheckpointError, check_room, held, resumable, sweep
from pave.training.held_out import Judge
from pave.training.interrupt import TrainingInterrupted, interruptible
from pave.training.lengths import token_lengths
from pave.training.measure import measure_features
from pave.training.parts import train_only
from pave.training.presence import check_channels_there
from pave.training.profile import StepProfile
from pave.training.recipe import Recipe
from pave.training.recipe_files import write_values
from pave.training.resuming import RECIPE_FILE, check_same_data, checkpoint_to_resume, plain
from pave.training.sampler import LengthGrouping, Stage, StagedSampler
from pave.training.sharing import VideoGrouping
from pave.training.tasks import RunSamples
from pave.training.trackers import check_tracker, trackers
from pave.training.trainer import PATCH_FOLDER, PatchTrainer
from pave.utils.files import DISK_ERRORS, atomic_write_text
from pave.utils.threads import fitting_threads
from pave.video_llms.branches import check_base_shares
from pave.video_llms.encode import check_vision_stored
from pave.video_llms.loading import load_base

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves behind."""

    patch: Path
    """Folder of the saved patch."""
    model: Any
    """The patched model, in evaluation mode."""
    processor: Any
    """The base's processor."""
    steps: int
    """Optimizer steps."""
    train_loss: float | None
    """Mean loss over the run (over the part since resuming); None where nothing was left to do."""
    eval_loss: float | None
    """Loss on the held-out samples at the end, where given: over all answer tokens, of all tasks."""
    eval_losses: dict[str, float]
    """The same by task, where data.tasks names some with held-out samples."""
    eval_accuracy: float | None
    """Share of held-out samples answered right at the end, where evaluation.generate asks for it."""
    seconds: float
    """Of this call, loading included."""


def run_recipe(
    recipe: Recipe,
    *,
    folder: str | Path = ".",
    base: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    callbacks: Sequence[transformers.TrainerCallback] = (),
    profile: StepProfile | None = None,
    judge: Judge | None = None,
) -> RunResult:
    """Load the base, attach a fresh patch (or that of ``recipe.init``), train it, save it under ``<output>/patch``.

    Args:
        recipe: what to do.
        folder: what relative paths of the recipe's base and data start from: the recipe's own folder.
        base: load the base from here instead of ``recipe.base.model``.
        resume: go on from the last complete checkpoint in the output folder; the result is that of an uninterrupted run.
        progress: show a progress bar and log the losses.
        callbacks: further callbacks for the Trainer.
        profile: times the parts of the run's first steps.
        judge: answers held-out samples where ``recipe.evaluation.generate`` asks for it: ``pave.evaluation.judging.GeneratedAnswers()``.

    Raises:
        ValueError: if a file or a value of the recipe is wrong, the output folder holds another run, or there is nothing to
            resume from; if a trained channel is in no sample.
        CheckpointError: if the disk is full or cannot be written to.
        NonFiniteError: if a loss or a gradient is NaN or infinite.
        NoGradientError: if nothing has a gradient, step after step.
        TrainingInterrupted: on Ctrl-C, naming the checkpoint to resume from; of one process, the step is finished and saved first.
    """
    start = time.monotonic()
    shown = [*callbacks, *([RunProgress()] if progress else [])]
    try:
        with contextlib.ExitStack() as surroundings:
            if _is_first_process():
                surroundings.enter_context(held(recipe.output))
            return _run(recipe, Path(folder), base, resume, shown, start, surroundings, profile, judge)
    except KeyboardInterrupt:
        raise TrainingInterrupted(f"interrupted; {resumable(recipe.output)}") from None
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        where = error.filename or recipe.output
        raise CheckpointError(f"{where}: could not be written ({error.strerror}); {resumable(recipe.output)}") from error


def _run(
    recipe: Recipe,
    folder: Path,
    base: str | Path | None,
    resume: bool,
    callbacks: Sequence[transformers.TrainerCallback],
    start: float,
    surroundings: contextlib.ExitStack,
    profile: StepProfile | None,
    judge: Judge | None,
) -> RunResult:
    output = Path(recipe.output)
    checkpoint = checkpoint_to_resume(recipe, output, resume)
    for tracker in trackers(recipe.training):
        check_tracker(tracker)
    samples = RunSamples(recipe.data.all_tasks(), recipe.data.mixing, folder, list(recipe.patch.side_channels))
    train, held_out = samples.train, samples.held_out
    judge = _judge_of(recipe, judge, held_out)
    own = recipe.own_encoders(folder)
    encoders = {name: build_encoder(channel.encoder, own) for name, channel in recipe.patch.side_channels.items()}
    args, sampler = _plan(recipe, samples)
    provenance: dict[str, Any] = {
        "recipe": recipe.to_dict(),
        "data": {**samples.facts(), "sizes": samples.sizes(), "samples_per_step": sampler.samples_per_step},
        "seed": recipe.training.seed,
    }
    if checkpoint is not None:
        check_same_data(checkpoint, provenance["data"])
    elif recipe.init is not None:
        check_continues(recipe.patch, _parent_of(recipe, folder), recipe.init_revision)
    if base is None:
        base = base_of(recipe, folder)
    stored, vision = _stored(recipe, [*train, *held_out], encoders, folder, base)
    train_data = _dataset(recipe, train, encoders, folder, stored, vision)
    held_out_data = _dataset(recipe, held_out, encoders, folder, stored, vision) if held_out else None
    model, processor = load_base(base, revision=recipe.base.revision, dtype=recipe.base.dtype)
    if not uses_accelerator():  # sums depend on their number in the last bits, so a resumed run takes that of its beginning
        recorded = None if checkpoint is None else read_record(checkpoint).provenance.get("threads")
        provenance["threads"] = surroundings.enter_context(fitting_threads(model.num_parameters(), recorded))
    parent = _attach(recipe, model, processor, folder, checkpoint, train_data)
    if parent is not None:
        provenance["parent"] = parent
    train_only(model, recipe.training.train)
    check_channels_there(model, train_data)
    _keep_vision(recipe, model, processor, args, [train_data, *([held_out_data] if held_out_data else [])])
    trainer = _trainer(
        recipe, model, processor, args, sampler, train_data, held_out_data, samples, provenance, callbacks, judge
    )
    if profile is not None:
        profile.attach(trainer)
    if args.should_save:
        sweep(output)
        check_room(output, patch_parameters(model), args.save_total_limit if args.save_strategy != "no" else 0)
        atomic_write_text(output / RECIPE_FILE, _as_yaml(recipe))
    train_loss, losses = _train(trainer, checkpoint, train_data.cache_report, bool(held_out))
    eval_loss = losses.get("eval_loss")
    by_task = {name: losses[f"eval_{name}_loss"] for name in recipe.data.tasks if f"eval_{name}_loss" in losses}
    model.eval()
    steps, patch = trainer.state.global_step, output / PATCH_FOLDER
    outcome: dict[str, Any] = {"steps": steps, "train_loss": train_loss, "eval_loss": eval_loss}
    accuracy = losses.get("eval_accuracy")
    outcome |= ({"eval_losses": by_task} if by_task else {}) | ({} if accuracy is None else {"eval_accuracy": accuracy})
    trainer.finish(patch, outcome)
    logger.info("saved the patch to %s", patch)
    return RunResult(patch, model, processor, steps, train_loss, eval_loss, by_task, accuracy, time.monotonic() - start)


def _trainer(
    recipe: Recipe,
    model: Any,
    processor: Any,
    args: PatchTrainingArguments,
    sampler: StagedSampler,
    train_data: PatchDataset,
    held_out_data: PatchDataset | None,
    samples: RunSamples,
    provenance: Mapping[str, Any],
    callbacks: Sequence[transformers.TrainerCallback],
    judge: Judge | None,
) -> PatchTrainer:
    collator = PatchCollator(
        processor,
        model.config,
        recipe.patch.side_channels,
        max_length=recipe.data.max_length,
        broken_features=recipe.data.broken_features,
        share_videos=recipe.data.share_videos,
        published_labels=recipe.data.labels == "published",
    )
    if recipe.data.share_videos is not None:
        check_base_shares(model.config)
    if recipe.training.length_grouping is not None:
        lengths = token_lengths(train_data, collator)
        tasks = sampler.mix.tasks if sampler.mix.run > 1 else ()
        sampler.grouping = LengthGrouping(lengths, recipe.training.length_grouping, args.gradient_accumulation_steps, tasks)
    trainer = PatchTrainer(
        model,
        args,
        data_collator=collator,
        train_sampler=sampler,
        train_dataset=train_data,
        eval_dataset=held_out_data,
        provenance=provenance,
        processor=processor,
        held_out_tasks=samples.held_out_tasks,
        channel_dropout=recipe.training.channel_dropout,
        judge=judge,
        max_new_tokens=recipe.evaluation.max_new_tokens,
        callbacks=list(callbacks),
    )
    for printer in (transformers.PrinterCallback, transformers.ProgressCallback):  # they print on standard output
        trainer.remove_callback(printer)
    return trainer


def _judge_of(recipe: Recipe, judge: Judge | None, held_out: Sequence[Sample]) -> Judge | None:
    """What answers the held-out samples, if the recipe asks for it; raises before anything slow where it cannot."""
    if not recipe.evaluation.generate:
        return None
    if judge is None:
        raise ValueError(
            "evaluation.generate: pass what answers and judges, run_recipe(judge=pave.evaluation.judging.GeneratedAnswers()); pave train "
            "does so by itself"
        )
    judge.check(held_out)
    return judge


def _train(
    trainer: PatchTrainer, checkpoint: Path | None, report: CacheReport, evaluate: bool
) -> tuple[float | None, dict[str, float]]:
    """The mean loss (None where the checkpoint was the end), and the losses on the held-out samples by their names in the logs."""
    done = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
    with interruptible(trainer):
        mean_loss = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None).training_loss
    losses = trainer.evaluate() if evaluate else {}
    trainer.release_model()
    if report.items:
        logger.info(
            "the cache holds %d videos, %.2f GB, and was used %d times", report.items, report.num_bytes / 2**30, report.hits
        )
    return mean_loss if trainer.state.global_step > done else None, losses


def _attach(
    recipe: Recipe, model: Any, processor: Any, folder: Path, checkpoint: Path | None, train_data: PatchDataset
) -> dict[str, Any] | None:
    """Attach the patch as the run begins with it, and say which patch it goes on from, if any.

    A run that is resumed gets its tensors from the checkpoint later, and need not find that patch any more.
    """
    if checkpoint is not None:
        attach_patch(model, recipe.patch, seed=recipe.training.seed)
        earlier: dict[str, Any] | None = read_record(checkpoint).provenance.get("parent")
        return earlier
    if recipe.init is None:
        attach_patch(model, recipe.patch, seed=recipe.training.seed)
        measure_features(model, train_data)
        return None
    where, revision = _parent_of(recipe, folder), recipe.init_revision
    record = continue_patch(model, recipe.patch, where, revision=revision, processor=processor, seed=recipe.training.seed)
    measure_features(model, train_data, skip=record.patch.side_channels)
    parent = {"patch": recipe.init, "revision": revision, "tensors": patch_digest(where, revision)}
    return parent | {key: record.provenance[key] for key in ("data", "parent") if key in record.provenance}


def _parent_of(recipe: Recipe, folder: Path) -> str | Path:
    """Where the patch that a recipe goes on from is: a folder beside the recipe, else the hub id."""
    init = str(recipe.init)
    return folder / init if (folder / init).is_dir() else init


def _stored(
    recipe: Recipe, samples: list[Sample], encoders: Mapping[str, SideEncoder[Any]], folder: Path, base: str | Path
) -> tuple[StoredChannels | None, StoredVision | None]:
    """The feature store of the recipe; refuses one that lacks something before anything slow begins."""
    if recipe.data.store is None:
        return None, None
    store, command = folder / recipe.data.store, "pave extract with this recipe"
    stored = StoredChannels(store, encoders)
    stored.check_complete(samples, command)
    if recipe.data.vision != "store":
        return stored, None
    vision = StoredVision(store, base_vision(recipe, base))
    vision.check_complete(samples, command)
    return stored, vision


def base_of(recipe: Recipe, folder: Path) -> str | Path:
    """Where a recipe's base is loaded from: a folder beside the recipe, else the hub id."""
    return folder / recipe.base.model if (folder / recipe.base.model).is_dir() else recipe.base.model


def base_vision(recipe: Recipe, base: str | Path, storage: StorageDtype | None = None) -> BaseVision:
    """What makes the vision features that a recipe with ``data.vision: store`` reads.

    Args:
        recipe: a recipe.
        base: folder or hub id that its base is loaded from.
        storage: how they are kept; default as the recipe says.

    Raises:
        ValueError: if there is no such base.
    """
    storage = storage or recipe.data.vision_dtype
    return BaseVision(
        base,
        recipe.data.frames,
        revision=recipe.base.revision,
        dtype=recipe.base.dtype,
        storage=storage,
        pre_projector=recipe.patch.reads_pre_projector,
    )


def _keep_vision(
    recipe: Recipe, model: Any, processor: Any, args: PatchTrainingArguments, datasets: Sequence[PatchDataset]
) -> None:
    """Let the datasets take vision features from the model that is trained, where the recipe keeps them in memory."""
    if recipe.data.vision == "tower":
        return
    check_vision_stored(model, training=True)
    if recipe.data.vision == "store":
        return
    if args.dataloader_num_workers or args.fsdp:
        what = "training.workers" if args.dataloader_num_workers else "training.trainer.fsdp"
        raise ValueError(
            f"data.vision 'memory' runs the vision tower in the process that trains, whole, but {what} is set; leave it out, or "
            "use data.vision 'store'"
        )
    features = recipe.patch.reads_pre_projector
    encoder = VisionEncoder(model, processor, recipe.data.vision_dtype, pre_projector=features)
    memory = MemoryVision(encoder, recipe.data.frames, int(recipe.data.cache_gigabytes * 2**30))
    for dataset in datasets:
        dataset.vision = memory


def _dataset(
    recipe: Recipe,
    samples: list[Sample],
    encoders: Mapping[str, SideEncoder[Any]],
    folder: Path,
    stored: StoredChannels | None,
    vision: StoredVision | None,
) -> PatchDataset:
    cache = recipe.data.cache
    return PatchDataset(
        samples,
        recipe.data.frames,
        encoders,
        recipe.patch.side_channels,
        cache=str(folder / cache) if cache not in (None, "memory") else cache,
        cache_bytes=int(recipe.data.cache_gigabytes * 2**30),
        stored=stored,
        vision=vision,
    )


def _plan(recipe: Recipe, samples: RunSamples) -> tuple[PatchTrainingArguments, StagedSampler]:
    """The Trainer's arguments and the order of the samples. Both come from the final arguments, which may change sizes."""
    training = recipe.training
    args = training.arguments(recipe.output, num_steps=1)
    stages = recipe.data.stages
    if not stages:
        sized = replace(training, batch_size=args.train_batch_size, accumulation=args.gradient_accumulation_steps)
        stages = (Stage(steps=sized.num_steps(len(samples.train), args.world_size)),)
    steps = sum(stage.steps for stage in stages)
    args = training.arguments(recipe.output, num_steps=steps)
    per_pass = args.train_batch_size * args.world_size
    types = [sample.type for sample in samples.train]
    per_step = per_pass * args.gradient_accumulation_steps
    grouping = video_grouping(recipe, samples.train, args.train_batch_size)
    return args, StagedSampler(types, stages, per_step, training.seed, grouping, samples.mix(per_pass))


def video_grouping(recipe: Recipe, train: Sequence[Sample], batch_size: int) -> VideoGrouping | None:
    """What puts questions about one video into one forward pass, where the recipe lets them share it.

    Raises:
        ValueError: if a forward pass is too small for it.
    """
    if recipe.data.share_videos is None:
        return None
    return VideoGrouping([source_of(sample) for sample in train], recipe.data.share_videos, batch_size)


def _is_first_process() -> bool:
    """Known before the processes have met: torchrun and its like say it in the environment."""
    return os.environ.get("RANK", "0") == "0"


def _as_yaml(recipe: Recipe) -> str:
    return write_values(plain(recipe.to_dict()))
