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
import yaml

from pave.data.collator import PatchCollator
from pave.data.dataset import CacheReport, PatchDataset, source_of
from pave.data.samples import Sample, manifest_hash, read_samples
from pave.data.store.reading import StoredChannels, StoredVision
from pave.data.vision import BaseVision, MemoryVision, StorageDtype, VisionEncoder
from pave.patching import attach_patch, patch_parameters, read_record
from pave.side_channels import SideEncoder, build_encoder
from pave.training.arguments import PatchTrainingArguments
from pave.training.callbacks import RunProgress
from pave.training.checkpoints import check_room, held, last_checkpoint, sweep
from pave.training.lengths import token_lengths
from pave.training.measure import measure_features
from pave.training.profile import StepProfile
from pave.training.recipe import Recipe
from pave.training.sampler import LengthGrouping, Stage, StagedSampler
from pave.training.sharing import VideoGrouping
from pave.training.trainer import PatchTrainer
from pave.utils.files import atomic_write_text
from pave.utils.optional import require
from pave.video_llms.branches import check_base_shares
from pave.video_llms.loading import load_base
from pave.video_llms.vision import check_vision_stored

logger = logging.getLogger(__name__)

PATCH_FOLDER = "patch"
RECIPE_FILE = "recipe.yaml"
MAY_CHANGE = (
    "output",
    "data.cache",
    "data.cache_gigabytes",
    "training.workers",
    "training.log_every",
    "training.save_every",
    "training.keep_checkpoints",
    "training.report_to",
)
"""Fields of a recipe on which no weight depends; a resumed run may have them otherwise."""


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
    """Loss on data.eval at the end, where given."""
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
) -> RunResult:
    """Load the base, attach a fresh patch, train it, save it under ``<output>/patch``.

    Args:
        recipe: what to do.
        folder: what relative paths of the recipe's base and data start from: the recipe's own folder.
        base: load the base from here instead of ``recipe.base.model``.
        resume: go on from the last complete checkpoint in the output folder; the result is that of an uninterrupted run.
        progress: show a progress bar and log the losses.
        callbacks: further callbacks for the Trainer.
        profile: times the parts of the run's first steps.

    Raises:
        ValueError: if a file or a value of the recipe is wrong, the output folder holds another run, or there is nothing to
            resume from.
    """
    start = time.monotonic()
    with held(recipe.output) if _is_first_process() else contextlib.nullcontext():
        shown = [*callbacks, *([RunProgress()] if progress else [])]
        return _run(recipe, Path(folder), base, resume, shown, start, profile)


def _run(
    recipe: Recipe,
    folder: Path,
    base: str | Path | None,
    resume: bool,
    callbacks: Sequence[transformers.TrainerCallback],
    start: float,
    profile: StepProfile | None = None,
) -> RunResult:
    output = Path(recipe.output)
    checkpoint = _checkpoint(recipe, output, resume)
    if "tensorboard" in recipe.training.report_to:
        require("tensorboard", extra="tensorboard", purpose="training.report_to: tensorboard")
    train = _samples(recipe, recipe.data.train, folder)
    held_out = _samples(recipe, recipe.data.eval, folder) if recipe.data.eval else None
    encoders = {name: build_encoder(channel.encoder) for name, channel in recipe.patch.side_channels.items()}
    args, sampler = _plan(recipe, train)
    provenance = _provenance(recipe, train, sampler)
    if checkpoint is not None:
        _check_same_data(checkpoint, provenance["data"])
    if base is None:
        base = base_of(recipe, folder)
    stored, vision = _stored(recipe, [*train, *(held_out or [])], encoders, folder, base)
    train_data = _dataset(recipe, train, encoders, folder, stored, vision)
    held_out_data = _dataset(recipe, held_out, encoders, folder, stored, vision) if held_out else None
    model, processor = load_base(base, revision=recipe.base.revision, dtype=recipe.base.dtype)
    attach_patch(model, recipe.patch, seed=recipe.training.seed)
    if checkpoint is None:
        measure_features(model, train_data)
    _keep_vision(recipe, model, processor, args, [train_data, *([held_out_data] if held_out_data else [])])
    collator = PatchCollator(
        processor,
        model.config,
        recipe.patch.side_channels,
        max_length=recipe.data.max_length,
        broken_features=recipe.data.broken_features,
        share_videos=recipe.data.share_videos,
    )
    if recipe.data.share_videos is not None:
        check_base_shares(model.config)
    if recipe.training.length_grouping is not None:
        lengths = token_lengths(train_data, collator)
        sampler.grouping = LengthGrouping(lengths, recipe.training.length_grouping, args.gradient_accumulation_steps)
    trainer = PatchTrainer(
        model,
        args,
        data_collator=collator,
        train_sampler=sampler,
        train_dataset=train_data,
        eval_dataset=held_out_data,
        provenance=provenance,
        processor=processor,
        callbacks=list(callbacks),
    )
    for printer in (transformers.PrinterCallback, transformers.ProgressCallback):  # they print on standard output
        trainer.remove_callback(printer)
    if profile is not None:
        profile.attach(trainer)
    if args.should_save:
        sweep(output)
        check_room(output, patch_parameters(model), args.save_total_limit if args.save_strategy != "no" else 0)
        atomic_write_text(output / RECIPE_FILE, _as_yaml(recipe))
    train_loss, eval_loss = _train(trainer, checkpoint, train_data.cache_report, held_out is not None)
    model.eval()
    steps, patch = trainer.state.global_step, output / PATCH_FOLDER
    trainer.finish(patch, {"steps": steps, "train_loss": train_loss, "eval_loss": eval_loss})
    logger.info("saved the patch to %s", patch)
    return RunResult(patch, model, processor, steps, train_loss, eval_loss, time.monotonic() - start)


def _train(
    trainer: PatchTrainer, checkpoint: Path | None, report: CacheReport, evaluate: bool
) -> tuple[float | None, float | None]:
    """The mean loss (None where the checkpoint was the end), and the loss on the held-out samples."""
    done = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
    mean_loss = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None).training_loss
    eval_loss = trainer.evaluate()["eval_loss"] if evaluate else None
    trainer.release_model()
    if report.items:
        logger.info(
            "the cache holds %d videos, %.2f GB, and was used %d times", report.items, report.num_bytes / 2**30, report.hits
        )
    return mean_loss if trainer.state.global_step > done else None, eval_loss


def _provenance(recipe: Recipe, train: list[Sample], sampler: StagedSampler) -> dict[str, Any]:
    """What a patch records of the run that made it."""
    data = {"train": manifest_hash(train), "train_samples": len(train), "samples_per_step": sampler.samples_per_step}
    return {"recipe": recipe.to_dict(), "data": data, "seed": recipe.training.seed}


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
    return BaseVision(base, recipe.data.frames, revision=recipe.base.revision, dtype=recipe.base.dtype, storage=storage)


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
    encoder = VisionEncoder(model, processor, recipe.data.vision_dtype)
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


def _samples(recipe: Recipe, path: str, folder: Path) -> list[Sample]:
    """Read a file of samples and check, before anything slow begins, that all can be learnt from."""
    name = folder / path
    samples = read_samples(name, data_root=None if recipe.data.root is None else folder / recipe.data.root)
    if not samples:
        raise ValueError(f"{name}: the file holds no sample")
    for sample in samples:
        if all(answer is None for _, answer in sample.turns):
            raise ValueError(f"{name}: sample {sample.id!r} has no answer to learn from")
    files = [
        (s.id, path, path == s.video)
        for s in samples
        for path in (s.video, *(s.side_channels.get(c) for c in recipe.patch.side_channels))
        if path is not None
    ]
    # a channel may be stored as a folder, a video may not
    missing = [(i, f) for i, f, is_video in files if not (Path(f).is_file() if is_video else Path(f).exists())]
    if missing:
        sample_id, file = missing[0]
        raise ValueError(
            f"{name}: {len(missing)} of {len(files)} files are not there, the first is {file} of sample {sample_id!r}"
        )
    return samples


def _plan(recipe: Recipe, train: list[Sample]) -> tuple[PatchTrainingArguments, StagedSampler]:
    """The Trainer's arguments and the order of the samples. Both come from the final arguments, which may change sizes."""
    training = recipe.training
    args = training.arguments(recipe.output, num_steps=1)
    stages = recipe.data.stages
    if not stages:
        sized = replace(training, batch_size=args.train_batch_size, accumulation=args.gradient_accumulation_steps)
        stages = (Stage(steps=sized.num_steps(len(train), args.world_size)),)
    steps = sum(stage.steps for stage in stages)
    args = training.arguments(recipe.output, num_steps=steps)
    per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    sampler = StagedSampler([sample.type for sample in train], stages, per_step, seed=training.seed)
    if recipe.data.share_videos is not None:
        videos = [source_of(sample) for sample in train]
        sampler.grouping = VideoGrouping(videos, recipe.data.share_videos, args.train_batch_size)
    return args, sampler


def _is_first_process() -> bool:
    """Known before the processes have met: torchrun and its like say it in the environment."""
    return os.environ.get("RANK", "0") == "0"


def _checkpoint(recipe: Recipe, output: Path, resume: bool) -> Path | None:
    """The checkpoint to resume from, if any; refuses to mix two runs in one folder."""
    checkpoint = last_checkpoint(output)
    if not resume:
        if checkpoint is not None:
            raise ValueError(
                f"{output}: the folder holds checkpoints of an earlier run; resume it, or choose another output or empty the folder"
            )
        return None
    if checkpoint is None:
        raise ValueError(f"{output}: nothing to resume from, the folder holds no complete checkpoint")
    before, now = _flat(read_record(checkpoint).provenance.get("recipe")), _flat(recipe.to_dict())
    changed = [key for key in [*now, *before] if before.get(key) != now.get(key) and key not in MAY_CHANGE]
    if before and changed:
        key = changed[0]
        raise ValueError(
            f"{output}: the checkpoints there come from another recipe, {key!r} was {before.get(key)!r} and is {now.get(key)!r}; "
            f"resume with {output / RECIPE_FILE}"
        )
    return checkpoint


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted paths to the values of a recipe."""
    if not isinstance(value, dict) or not value:
        return {} if not prefix else {prefix: _plain(value)}
    return {path: item for key, inner in value.items() for path, item in _flat(inner, f"{prefix}.{key}".lstrip(".")).items()}


def _check_same_data(checkpoint: Path, now: Mapping[str, Any]) -> None:
    """Refuse to go on with other samples, or with a step that counts other samples: the order would be another one."""
    before = read_record(checkpoint).provenance.get("data")
    for key, value in now.items():
        was = before.get(key) if isinstance(before, dict) else None
        if was is not None and was != value:
            what = "another number of processes" if key == "samples_per_step" else "other training samples"
            raise ValueError(
                f"{checkpoint}: it was written by a run with {what} ({key} was {was}, now it is {value}), so the run cannot go "
                "on as if it had not been interrupted; restore them, or start a new run in another output folder"
            )


def _as_yaml(recipe: Recipe) -> str:
    return yaml.safe_dump(_plain(recipe.to_dict()), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
