"""What a recipe would do, without loading weights or decoding videos: what is missing, how long, how large, at what cost."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pave.data.media import probe
from pave.data.samples import Sample
from pave.patching.training_cost import TrainingCost, training_cost
from pave.patching.training_memory import StepSettings, StepShape, Tokens
from pave.side_channels import SideEncoder, build_encoder, encoder_source, modules_named
from pave.training.arguments import TrainingConfig
from pave.training.checkpoints import last_checkpoint
from pave.training.dry_run_order import look_at_order
from pave.training.dry_run_shape import Assumptions, step_shape
from pave.training.dry_run_streams import look_at_streams
from pave.training.parts import trains_channel
from pave.training.recipe import Recipe
from pave.training.run import base_of
from pave.training.tasks import Task, read_task
from pave.training.trackers import check_tracker, trackers
from pave.utils.embedded import model_path
from pave.utils.optional import MissingExtraError
from pave.video_llms.branches import check_base_shares
from pave.video_llms.context import over_limit
from pave.video_llms.known import load_config


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a run needs and what it would cost."""

    missing: list[str]
    """Everything that keeps the run from starting, a sentence each; empty if it could start."""
    notes: list[str]
    """What would happen first, or could not be checked."""
    samples: int | None
    """Training samples; None where their file is not there."""
    samples_per_step: int
    steps: int | None
    """Optimizer steps; None where they depend on samples that are not there."""
    shape: StepShape | None = None
    """Of one forward pass; None where the cost of this base is not counted."""
    cost: TrainingCost | None = None
    total_flops: float | None = None
    """Of the whole run on all devices."""
    device_hours: float | None = None
    """Of all devices together."""
    assumed: Assumptions = field(default_factory=Assumptions)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        values = {name: getattr(self, name) for name in ("missing", "notes", "samples", "samples_per_step", "steps")}
        values.update(total_flops=self.total_flops, device_hours=self.device_hours, assumed=asdict(self.assumed))
        values["shape"] = None if self.shape is None else asdict(self.shape)
        values["cost"] = None if self.cost is None else self.cost.to_dict()
        return values


def dry_run(recipe: Recipe, folder: str | Path = ".", assumed: Assumptions | None = None, *, resume: bool = False) -> DryRun:
    """Look at everything that ``run_recipe`` would need, and count what it would cost.

    Nothing is written or downloaded, except that the hub may be asked whether it has a model. Files are looked for, not opened:
    ``pave doctor`` looks inside. Only for a channel of sound, the heads of videos are read until one has sound; and of channels whose
    encoder has no weights, and for which samples name files, a few streams are read, to see whether they can act at all.

    Args:
        recipe: what would be run.
        folder: what its relative paths start from.
        assumed: what no file says.
        resume: the run would go on from a checkpoint.

    Raises:
        ValueError: if ``recipe.encoders`` names a file that is not there.
    """
    with modules_named(recipe.own_encoders(folder)):
        return _look(recipe, Path(folder), assumed or Assumptions(), resume)


def _look(recipe: Recipe, folder: Path, assumed: Assumptions, resume: bool) -> DryRun:
    found = _Found()
    tasks = _training_samples(found, recipe, folder)
    train = None if tasks is None else [sample for samples in tasks.values() for sample in samples]
    encoders = _encoders(found, recipe)
    _streams(found, recipe, encoders, train)
    tokens_per_step = {name: encoder.tokens_per_step for name, encoder in encoders.items()}
    _surroundings(found, recipe, folder, resume)
    config = _base(found, recipe, folder)
    samples = len(train) if train is not None else assumed.samples
    training = _settled(recipe)
    per_step, steps = _steps(recipe, training, samples, assumed.processes)
    order = look_at_order(recipe, training, tasks, per_step, steps)
    found.missing += order.missing
    found.notes += order.notes
    shape, cost = None, None
    if config is not None:
        try:
            if order.shared is not None:
                _shares(found, config)
            shape = step_shape(recipe, config, train, assumed, tokens_per_step)
            shape = replace(shape, batch_size=training.batch_size, shared=order.shared)
            cost = training_cost(config, recipe.patch, shape, _settings(recipe, config, assumed.processes))
            _prompt_length(found, recipe, config, shape, cost.tokens)
        except ValueError as error:
            found.notes.append(f"the cost is not known: {error}")
            shape = None
    total = None if cost is None or steps is None else cost.step_flops * per_step * steps
    return DryRun(
        missing=found.missing,
        notes=found.notes,
        samples=None if train is None else len(train),
        samples_per_step=per_step,
        steps=steps,
        shape=shape,
        cost=cost,
        total_flops=total,
        device_hours=None if total is None else total / (assumed.teraflops * 1e12) / 3600,
        assumed=assumed,
    )


class _Found:
    """What was found on the way."""

    def __init__(self) -> None:
        self.missing: list[str] = []
        self.notes: list[str] = []


# --- data ------------------------------------------------------------------------------------------------------------------


def _training_samples(found: _Found, recipe: Recipe, folder: Path) -> dict[str, list[Sample]] | None:
    """The training samples of each task, or None where a file of them cannot be read; held-out files are looked at as well."""
    tasks: dict[str, list[Sample]] = {}
    for name, task in recipe.data.all_tasks().items():
        train = _samples(found, recipe, name, task.train, task, folder)
        if train is not None:
            tasks[name] = train
        if task.eval is not None:
            _samples(found, recipe, name, task.eval, task, folder)
    if len(tasks) < len(recipe.data.all_tasks()):
        return None
    for channel, why in _never_there(recipe, [sample for samples in tasks.values() for sample in samples]).items():
        found.missing.append(f"no sample has side channel {channel!r}: {why}")
    return tasks


def _samples(found: _Found, recipe: Recipe, task_name: str, path: str, task: Task, folder: Path) -> list[Sample] | None:
    """The samples of a file, or None where it cannot be read."""
    name = folder / path
    if not name.is_file():
        found.missing.append(f"{name}: the file of samples is not there")
        return None
    try:
        samples = read_task(task_name, path, task, folder, recipe.patch.side_channels)
    except ValueError as error:
        found.missing.append(str(error))
        return None
    if not samples:
        found.missing.append(f"{name}: the file holds no sample")
        return None
    unanswered = [s.id for s in samples if all(answer is None for _, answer in s.turns)]
    found.missing += [f"{name}: sample {sample_id!r} has no answer to learn from" for sample_id in unanswered]
    found.missing += [
        f"{name}: {file} is not there, {count} samples name it" for file, count in _absent(recipe, samples).items()
    ]
    return samples


def _absent(recipe: Recipe, samples: Sequence[Sample]) -> dict[str, int]:
    """Files that samples name and that are not there, with the number of samples that name them."""
    there: dict[tuple[str, bool], bool] = {}
    absent: dict[str, int] = {}
    for sample in samples:
        paths = [(sample.side_channels.get(channel), False) for channel in recipe.patch.side_channels]
        for path, is_video in [(sample.video, True), *paths]:
            if path is None:
                continue
            key = (path, is_video)
            if key not in there:  # a channel may be stored as a folder, a video may not
                there[key] = os.path.isfile(path) if is_video else os.path.exists(path)
            if not there[key]:
                absent[path] = absent.get(path, 0) + 1
    return absent


def _never_there(recipe: Recipe, samples: Sequence[Sample]) -> dict[str, str]:
    """Trained channels that no training sample has, and why; the run would be refused."""
    found = {}
    for name, channel in recipe.patch.side_channels.items():
        if not trains_channel(recipe.training.train, name):
            continue
        try:
            source = encoder_source(channel.encoder)
        except ValueError:
            continue  # _encoders says so
        if source == "video" or any(sample.side_channels.get(name) for sample in samples):
            continue
        if source != "audio":
            found[name] = f"its encoder {channel.encoder.name!r} reads a file for each sample, named under side_channels"
        elif not any(_has_sound(video) for video in {s.video for s in samples if name not in s.side_channels}):
            found[name] = "no video has sound, and no sample names a file under side_channels"
    return found


def _has_sound(video: str) -> bool:
    try:
        return probe(video).audio is not None
    except ValueError:  # what is missing or damaged is said elsewhere
        return True


# --- encoders, base, surroundings ------------------------------------------------------------------------------------------


def _encoders(found: _Found, recipe: Recipe) -> dict[str, SideEncoder[Any]]:
    """The encoders by channel, of those that can be built from what is on this machine."""
    built = {}
    for name, channel in recipe.patch.side_channels.items():
        models = _models_of(channel.encoder.to_dict())
        what = f"the encoder of side channel {name!r}"
        there = [_look_for(found, what, model, revision) for model, revision in models.items()]
        if not all(there):
            continue
        if any(not Path(model).is_dir() for model in models):
            found.notes.append(f"side channel {name!r}: its width is not checked, and it is counted with one token a step")
            continue
        try:
            encoder = build_encoder(channel.encoder)
        except (ValueError, MissingExtraError) as error:
            found.missing.append(f"side channel {name!r}: {error}")
            continue
        built[name] = encoder
        if encoder.width != channel.width:
            found.missing.append(
                f"side channel {name!r}: its encoder gives features of width {encoder.width}, but width is {channel.width}"
            )
    return built


def _streams(found: _Found, recipe: Recipe, encoders: Mapping[str, SideEncoder[Any]], train: Sequence[Sample] | None) -> None:
    """How much of some side streams can act; only those of encoders without weights are read."""
    channels = recipe.patch.side_channels
    light = {
        name: encoder
        for name, encoder in encoders.items()
        if not _models_of(channels[name].encoder.to_dict()) and encoder.width == channels[name].width
    }
    missing, notes = look_at_streams(recipe, light, train or ())
    found.missing += missing
    found.notes += notes


def _models_of(encoder: Mapping[str, Any]) -> dict[str, str | None]:
    """Models with weights that an encoder, or the encoder inside its settings, loads; with their revisions."""
    models = {} if encoder.get("model") is None else {encoder["model"]: encoder.get("revision")}
    inner = (encoder.get("settings") or {}).get("encoder")
    return models | (_models_of(inner) if isinstance(inner, dict) else {})


def _base(found: _Found, recipe: Recipe, folder: Path) -> Any:
    """The base's config, or None where it cannot be had."""
    name = str(base_of(recipe, folder))
    local = Path(model_path(name))
    if not local.is_dir():
        _look_for(found, "the base", name, recipe.base.revision)
    elif not any(local.glob("*.safetensors")):
        found.missing.append(f"the base {local} holds no weights (*.safetensors)")
    try:
        return load_config(model_path(name))
    except ValueError as error:
        found.notes.append(f"the cost is not known: {error}")
        return None


def _shares(found: _Found, config: Any) -> None:
    """Whether questions can share a video on this base."""
    try:
        check_base_shares(config, loaded=False)
    except ValueError as error:
        found.missing.append(str(error))


def _look_for(found: _Found, what: str, model: str, revision: str | None) -> bool:
    """Whether a model's files are on this machine or on the hub; says so."""
    import huggingface_hub
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if Path(model).is_dir():
        return True
    try:
        huggingface_hub.snapshot_download(model, revision=revision, local_files_only=True)
        return True
    except (OSError, ValueError):
        pass
    reason = "HF_HUB_OFFLINE is set"
    if not HF_HUB_OFFLINE:
        try:
            huggingface_hub.model_info(model, revision=revision, timeout=10)
            found.notes.append(f"{what}, {model}, is not on this machine; it will be downloaded first")
            return True
        except Exception as error:  # whatever stands between here and the hub
            reason = " ".join(str(error).split())[:200]
    found.missing.append(f"{what}, {model}, is no folder, not in the cache of the hub, and cannot be downloaded ({reason})")
    return False


def _surroundings(found: _Found, recipe: Recipe, folder: Path, resume: bool) -> None:
    """Extras, the feature store and the output folder."""
    for tracker in trackers(recipe.training):
        try:
            check_tracker(tracker)
        except (ValueError, MissingExtraError) as error:
            found.missing.append(str(error))
    store = recipe.data.store
    if store is not None and not (folder / store).is_dir():
        found.missing.append(f"{folder / store}: the feature store is not there; pave extract with this recipe fills it")
    elif store is not None:
        found.notes.append(
            "whether the feature store holds everything is not checked; pave extract with this recipe says so at once"
        )
    if recipe.init is not None and not (folder / recipe.init).is_dir():
        _look_for(found, "init, the patch to go on from", recipe.init, recipe.init_revision)
    checkpoint = last_checkpoint(recipe.output)
    if checkpoint is not None and not resume:
        found.missing.append(
            f"{recipe.output}: the folder holds checkpoints of an earlier run; go on with it (--resume), or choose another output"
        )
    if checkpoint is None and resume:
        found.missing.append(f"{recipe.output}: nothing to resume from, the folder holds no complete checkpoint")


# --- length and settings ---------------------------------------------------------------------------------------------------


def _settled(recipe: Recipe) -> TrainingConfig:
    """The numbers of the run, with those that the Trainer's own arguments change."""
    training, over = recipe.training, recipe.training.trainer
    return replace(
        training,
        batch_size=over.get("per_device_train_batch_size", training.batch_size),
        accumulation=over.get("gradient_accumulation_steps", training.accumulation),
    )


def _steps(recipe: Recipe, training: TrainingConfig, samples: int | None, processes: int) -> tuple[int, int | None]:
    """Samples per optimizer step, and optimizer steps."""
    per_step = training.batch_size * training.accumulation * processes
    if recipe.data.stages:
        return per_step, sum(stage.steps for stage in recipe.data.stages)
    if samples is None and training.steps is None:
        return per_step, None
    return per_step, training.num_steps(samples or 0, processes)


def _prompt_length(found: _Found, recipe: Recipe, config: Any, shape: StepShape, tokens: Tokens) -> None:
    """Whether the longest prompt fits; what is only estimated keeps no run from starting."""
    limit = recipe.data.max_length  # of what the patch puts into a prompt it does not know
    over = over_limit(tokens.total, config) or over_limit(tokens.total - tokens.extra, config, limit)
    surely = over_limit(tokens.video + tokens.extra, config) or over_limit(tokens.video, config, limit)
    if over is not None and surely and shape.grid is None and recipe.data.frames.num_frames is not None:
        found.missing.append(f"{over} (text estimated); nothing is truncated, so sample fewer frames (data.frames)")
    elif over is not None:
        found.notes.append(f"by the estimate {over}; the run would stop there, nothing is truncated")


def _settings(recipe: Recipe, config: Any, processes: int) -> StepSettings:
    training, dtype = recipe.training, recipe.base.dtype
    if dtype == "auto":
        stored = str(getattr(config, "dtype", None) or "bfloat16").removeprefix("torch.")
        dtype = stored if stored in ("float32", "bfloat16", "float16") else "float32"  # type: ignore[assignment]
    return StepSettings(
        base_dtype=dtype,
        mixed_precision=training.precision == "bfloat16",
        activation_checkpointing=training.activation_checkpointing,
        stored_vision=recipe.data.vision == "store",
        shards=processes if training.trainer.get("fsdp") else 1,
    )
