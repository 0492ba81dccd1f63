"""One experiment as one YAML file: which base, which patch, which data, how it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pave.config import PatchConfig, Strict, read_strict
from pave.data.media import FrameSampling
from pave.patching.branches import check_patch_shares
from pave.training.arguments import TrainingConfig
from pave.training.recipe_files import read_values
from pave.training.sampler import Stage


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

    train: str
    """Samples to learn from, a .jsonl file."""
    eval: str | None = None
    """Samples whose loss is watched, a .jsonl file."""
    root: str | None = None
    """Folder that the paths inside the sample files start from; default each file's own folder."""
    frames: FrameSampling = field(default_factory=lambda: FrameSampling(num_frames=32))
    """Which frames of a video the base sees."""
    max_length: int | None = None
    """Most tokens in a prompt, video tokens included; a longer one is an error. null: no limit."""
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
    stages: tuple[Stage, ...] = ()
    """What is learnt first and what is mixed in later, by sample type; default all samples throughout."""

    def __post_init__(self) -> None:
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


@dataclass(frozen=True, kw_only=True)
class Recipe(Strict):
    """A training run."""

    base: BaseConfig
    """The frozen Video LLM."""
    patch: PatchConfig
    """What is attached to it."""
    data: DataConfig
    """What it learns from."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How it learns."""
    output: str
    """Folder for checkpoints, logs and the finished patch (relative to where the command runs)."""

    def __post_init__(self) -> None:
        for name, value in (("base.model", self.base.model), ("data.train", self.data.train), ("output", self.output)):
            if not value.strip():
                raise ValueError(f"{name} is empty")
        if self.data.stages and self.training.steps is not None:
            raise ValueError("training.steps and data.stages both say how long to train; give only one of them")
        if self.training.eval_every and self.data.eval is None:
            raise ValueError("training.eval_every needs data.eval")
        if self.data.share_videos is not None:
            check_patch_shares(self.patch)
            if self.training.length_grouping is not None:
                raise ValueError(
                    "data.share_videos and training.length_grouping both say which samples stand in one forward pass; give only one "
                    "of them"
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
