"""The shape of a training step, as far as files say it and what is assumed where they do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pave.data.samples import Sample
from pave.patching.training_memory import StepShape
from pave.training.recipe import Recipe

BYTES_PER_TOKEN, TEMPLATE_TOKENS = 4, 16
"""Text is not tokenised here: a token is taken for 4 bytes of UTF-8, and a chat template for 16 tokens a turn."""
DEFAULT_TEXT, DEFAULT_ANSWER = 64, 16
"""Tokens of a prompt and of its answer where there are no samples to look at."""


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What no file says. Every number is printed with the estimate."""

    samples: int | None = None
    """Training samples, where their file is not there."""
    processes: int = 1
    """Processes, one for each device."""
    side_steps: int = 64
    """K of every channel whose encoder's settings do not say it."""
    video_size: tuple[int, int] = (360, 640)
    """Height and width of the videos, for bases of dynamic resolution."""
    seconds: float = 60.0
    """Length of a video, where frames are sampled by the second."""
    teraflops: float = 200.0
    """Operations that a device does in a second of training, in 10^12."""

    def __post_init__(self) -> None:
        for name in ("samples", "processes", "side_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("seconds", "teraflops"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if min(self.video_size) < 1:
            raise ValueError(f"video_size must be positive, got {self.video_size}")


def step_shape(
    recipe: Recipe, config: Any, train: Sequence[Sample] | None, assumed: Assumptions, tokens_per_step: dict[str, int]
) -> StepShape:
    """One forward pass of the run, of one sample.

    Args:
        recipe: what would be run.
        config: the base's.
        train: the training samples, or None where they are not there.
        assumed: what no file says.
        tokens_per_step: M of each channel where it is known; 1 where not.
    """
    frames = recipe.data.frames
    count = frames.num_frames
    if count is None:
        length = assumed.seconds if frames.end is None else frames.end - frames.start
        wanted = max(1, round(length * (frames.fps or 25.0)))
        count = wanted if frames.max_frames is None else min(wanted, frames.max_frames)
    text, answer = _text_tokens(train)
    channels = recipe.patch.side_channels
    return StepShape(
        num_frames=count,
        text_tokens=text + answer,
        answer_tokens=answer,
        side_steps={name: c.encoder.settings.get("steps") or assumed.side_steps for name, c in channels.items()},
        side_tokens_per_step={name: tokens_per_step.get(name, 1) for name in channels},
        grid=_grid(config, assumed.video_size),
    )


def _grid(config: Any, size: tuple[int, int]) -> tuple[int, int] | None:
    """Tokens of a time step where the base keeps the resolution of the video, by the resizing of its default video processor."""
    if config.model_type not in ("qwen2_vl", "qwen2_5_vl"):
        return None
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor, smart_resize

    vision = config.vision_config
    edge, limits = vision.patch_size * vision.spatial_merge_size, Qwen2VLVideoProcessor.size
    height, width = smart_resize(*size, edge, limits["shortest_edge"], limits["longest_edge"])
    return height // edge, width // edge


def _text_tokens(train: Sequence[Sample] | None) -> tuple[int, int]:
    """Tokens of the longest prompt, and of the longest answers, of the samples."""
    if not train:
        return DEFAULT_TEXT, DEFAULT_ANSWER
    questions, answers = [], []
    for sample in train:
        turns = sample.turns
        questions.append(sum(_tokens(question) + TEMPLATE_TOKENS for question, _ in turns))
        answers.append(sum(_tokens(answer) + 1 for _, answer in turns if answer is not None))
    return max(questions), max(1, max(answers))


def _tokens(text: str) -> int:
    return -(-len(text.encode()) // BYTES_PER_TOKEN)
