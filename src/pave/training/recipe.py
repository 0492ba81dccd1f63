"""One experiment as one YAML file: which base, which patch, which data, how it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from pave.config import NullIsEmpty, PatchConfig, Strict, read_strict
from pave.data.media import FrameSampling
from pave.patching.branches import check_patch_shares
from pave.side_channels.own import one_or_several
from pave.training.arguments import TrainingConfig
from pave.training.channel_dropout import check_not_shared, dropout_rates
from pave.training.parts import check_parts
from pave.training.recipe_files import read_values
from pave.training.sampler import Stage
from pave.training.tasks import Mixing, Task, check_task_names


@dataclass(frozen=True, kw_only=True)
class BaseConfig(Strict):
    """The frozen Video LLM."""

    model: str
    """Hub id, or a folder (relative to the recipe)."""
    revision: str | None = None
    """Commit, tag or branch on the hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """How its weights are held; auto as they are stored."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(Strict):
    """The samples and how their videos are read. Paths are relative to the recipe."""

    train: str | None = None
    """Samples to learn from, a .jsonl file. Not with tasks, which have files of their own."""
    eval: str | None = None
    """Samples whose loss is watched, a .jsonl file."""
    root: str | None = None
    """Folder that the paths inside the sample files start from; default each file's own folder."""
    tasks: Annotated[dict[str, Task], NullIsEmpty()] = field(default_factory=dict)
    """Several tasks that are learnt at once, by name, in place of train and eval."""
    mixing: Mixing = field(default_factory=Mixing)
    """How the tasks are mixed."""
    frames: FrameSampling = field(default_factory=lambda: FrameSampling(num_frames=32))
    """Which frames of a video the base sees."""
    max_length: int | None = None
    """Most tokens in a prompt, video tokens included; a longer one is an error. null: only the base's context is the limit."""
    cache: str | None = None
    """Decoded frames and side features are kept: memory, or a folder. null decodes every time."""
    store: str | None = None
    """Folder of the feature store that side features are read from; pave extract fills it. null runs the encoders on the fly."""
    vision: Literal["tower", "store", "memory"] = "tower"
    """Where the base's frozen vision features come from. tower: its vision tower runs in every step. store: pave extract has put
    them into data.store; no frame is decoded. memory: the tower runs once per video and the result is kept in memory."""
    vision_dtype: Literal["exact", "bfloat16", "float16"] = "exact"
    """How vision features are kept (store and memory): in the dtype that the tower gives, or rounded to 16 bits."""
    cache_gigabytes: float = 4.0
    """Most that the cache may hold in each process that decodes (memory) or on disk (folder); the memory of data.vision likewise."""
    broken_features: Literal["stop", "missing"] = "stop"
    """What a NaN or an infinity in the side features of a training sample does: stop the run and name the sample, or count the step as
    missing, as inference does."""
    share_videos: int | None = None
    """Most questions about one video in one row: they share its tokens and do not see each other. null: a row for each question."""
    labels: Literal["answers", "published"] = "answers"
    """What is learnt of a conversation. answers: the answers and their end-of-turn tokens. published: as the authors' code does, all of
    the assistant's turns with their headers and newlines, and every <|im_start|>, <|im_end|> and newline of the other turns."""
    stages: Annotated[tuple[Stage, ...], NullIsEmpty()] = ()
    """What is learnt first and what is mixed in later, by sample type; default all samples throughout."""

    def __post_init__(self) -> None:
        self._check_tasks()
        if not 0 < self.cache_gigabytes < float("inf"):
            raise ValueError(f"cache_gigabytes must be a positive, finite number, got {self.cache_gigabytes}")
        if self.vision == "store" and self.store is None:
            raise ValueError("vision is 'store', but there is no store; set data.store to the folder that pave extract fills")
        if self.vision == "tower" and self.vision_dtype != "exact":
            raise ValueError(
                f"vision_dtype {self.vision_dtype!r} says how features are kept, but vision is 'tower', which keeps none"
            )
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length must be at least 1 or null, got {self.max_length}")
        if self.share_videos is not None and self.share_videos < 2:
            raise ValueError(f"share_videos must be at least 2 or null, got {self.share_videos}")
        if self.share_videos is not None and self.labels == "published":
            raise ValueError(
                "labels 'published' are also of the text before the video, which questions that share it have in common; set labels to "
                "'answers', or leave share_videos out"
            )

    def _check_tasks(self) -> None:
        check_task_names(self.tasks)
        if self.tasks and (self.train is not None or self.eval is not None):
            raise ValueError("tasks have files of their own, but train or eval is given as well; name the files in one place")
        if not self.tasks and self.train is None:
            raise ValueError("there is nothing to learn from; give train, or tasks")
        if not self.tasks and self.mixing != Mixing():
            raise ValueError("mixing says how tasks are mixed, but there are no tasks")
        weighted = [name for name, task in self.tasks.items() if task.weight is not None]
        if weighted and self.mixing.temperature is not None:
            raise ValueError(
                f"mixing.temperature takes the shares from the sizes of the tasks, but the task {weighted[0]!r} has a weight; give one "
                "of them"
            )

    def all_tasks(self) -> dict[str, Task]:
        """The tasks with their roots; one with an empty name where none is named."""
        if not self.tasks:
            return {"": Task(train=str(self.train), eval=self.eval, root=self.root)}
        return {name: task if task.root is not None else replace(task, root=self.root) for name, task in self.tasks.items()}


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Strict):
    """What an evaluation on held-out samples makes beside their loss."""

    generate: bool = False
    """Answer them too, as pave eval does: eval_accuracy, and eval_TASK_accuracy of each task. The best checkpoint can be chosen by it."""
    max_new_tokens: int = 32
    """Most tokens of such an answer."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")


@dataclass(frozen=True, kw_only=True)
class Recipe(Strict):
    """A training run."""

    base: BaseConfig
    """The frozen Video LLM."""
    patch: PatchConfig
    """What is attached to it."""
    data: DataConfig
    """What it learns from."""
    init: str | None = None
    """A saved patch to go on from, a folder (relative to the recipe) or the id of a repository on the hub; its channels and its LoRA are
    part of this patch, which may have further ones. null: a fresh patch."""
    init_revision: str | None = None
    """Commit, tag or branch of init on the hub."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How it learns."""
    encoders: tuple[str, ...] = ()
    """Modules with side encoders of your own that the channels may name, such as my_package.my_module, or .py files (relative to the
    recipe). No other code is imported."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What held-out samples are evaluated by, beside their loss."""
    output: str
    """Folder for checkpoints, logs and the finished patch (relative to where the command runs)."""

    def __post_init__(self) -> None:
        texts = {"base.model": self.base.model, "data.train": self.data.train, "init": self.init, "output": self.output}
        for name, value in texts.items():
            if value is not None and not value.strip():
                raise ValueError(f"{name} is empty")
        if self.data.stages and self.training.steps is not None:
            raise ValueError(
                "training.steps and data.stages both say how long to train; set the steps of the stages (data.stages.0.steps=50), or "
                "leave the stages out (data.stages=null)"
            )
        if self.training.eval_every and all(task.eval is None for task in self.data.all_tasks().values()):
            raise ValueError("training.eval_every needs data.eval, or a task with eval")
        if self.evaluation.generate:
            if all(task.eval is None for task in self.data.all_tasks().values()):
                raise ValueError("evaluation.generate needs data.eval, or a task with eval")
            if self.training.trainer.get("fsdp"):
                raise ValueError(
                    "evaluation.generate needs the whole model in every process, but training.trainer.fsdp shards it"
                )
        if self.init_revision is not None and self.init is None:
            raise ValueError("init_revision is given, but there is no init")
        for name, task in self.data.tasks.items():
            unknown = [channel for channel in task.channels or () if channel not in self.patch.side_channels]
            if unknown:
                raise ValueError(
                    f"data.tasks.{name}.channels: the patch has no side channel {unknown[0]!r}; it has: "
                    f"{', '.join(self.patch.side_channels) or 'none'}"
                )
        check_not_shared(dropout_rates(self.training.channel_dropout, self.patch), self.data.share_videos)
        check_parts(self.training.train, self.patch)
        gated = [name for name, channel in self.patch.side_channels.items() if channel.fusion.gate]
        if gated and self.data.labels == "published":
            raise ValueError(
                f"data.labels 'published' begin at the first token, and the gate of side channel {gated[0]!r} reads the question up to the "
                "first label; set data.labels to 'answers', or fusion.gate to false"
            )
        self._check_best()
        if self.data.share_videos is not None:
            check_patch_shares(self.patch)
            if self.training.length_grouping is not None:
                raise ValueError(
                    "data.share_videos and training.length_grouping both say which samples stand in one forward pass; give only one "
                    "of them"
                )
            if self.data.mixing.batches == "per_task":
                raise ValueError(
                    "data.share_videos puts questions about one video together, whatever their tasks, and data.mixing.batches 'per_task' "
                    "keeps tasks apart; give only one of them"
                )

    def own_encoders(self, folder: str | Path) -> tuple[str, ...]:
        """``encoders`` with the paths of files as they are from here; ``folder`` is the recipe's own."""
        return tuple(str(Path(folder) / name) if name.endswith(".py") else name for name in one_or_several(self.encoders))

    def _check_best(self) -> None:
        """What the Trainer needs to choose the best checkpoint; it would speak in names of its own, or after the first evaluation."""
        further, save_every, eval_every = self.training.trainer, self.training.save_every, self.training.eval_every
        if not further.get("load_best_model_at_end"):
            return
        metric = str(further.get("metric_for_best_model") or "eval_loss")
        kinds = ("loss", "accuracy") if self.evaluation.generate else ("loss",)
        watched = ["eval", *(f"eval_{name}" for name, task in self.data.tasks.items() if task.eval is not None)]
        known = [f"{name}_{kind}" for kind in kinds for name in watched]
        if metric not in known and f"eval_{metric}" not in known:
            raise ValueError(
                f"training.trainer: metric_for_best_model is {metric!r}; what is watched are {', '.join(known)}"
                + ("" if self.evaluation.generate else " (with evaluation.generate also accuracies)")
            )
        if {"eval_strategy", "eval_steps", "save_strategy", "save_steps"} & set(further):
            return
        if not eval_every or not save_every or save_every % eval_every:
            raise ValueError(
                "training.trainer: load_best_model_at_end needs training.eval_every, and training.save_every as a multiple of it, got "
                f"{eval_every} and {save_every}"
            )


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe with the files that it extends, and apply overrides.

    Args:
        path: the YAML file.
        overrides: ``"training.learning_rate=1e-4"``: a dotted path (list items by number) and a YAML value; or the name of a
            .yaml file whose values are laid over the recipe's.

    Raises:
        ValueError: naming the file or the override, the key, and what was found.
    """
    values, where = read_values(path, overrides)
    return read_strict(Recipe, values, where)
