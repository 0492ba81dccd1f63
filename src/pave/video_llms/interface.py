"""What the rest of the library must know about a family of Video LLMs in transformers.

A patch attaches at the one method that turns pixels into tokens of the language model (``get_video_features``): its output is
frame-major with contiguous frames in every family, it runs once per prompt, before beams are expanded and before tokens are
dropped. An interface describes that output: how many time steps and tokens per step each video has, what trails behind
them, what the time of a step is, and where the features before the projector can be read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class VideoLayout:
    """The tokens of one video in the prompt: ``steps * tokens_per_step`` frame-major ones, then ``trailing`` others."""

    steps: int
    """T: time steps as the language model sees them."""
    grid: tuple[int, int]
    """(rows, columns) of the tokens of one step."""
    trailing: int = 0
    """Tokens after the last step that belong to no frame (a newline)."""

    @property
    def tokens_per_step(self) -> int:
        """S."""
        return self.grid[0] * self.grid[1]

    @property
    def num_tokens(self) -> int:
        return self.steps * self.tokens_per_step + self.trailing


class VideoLLMInterface(ABC):
    """Description of one family. Subclasses hold data and a few lines of arithmetic, never model code."""

    model_types: ClassVar[tuple[str, ...]]
    """``config.model_type`` values this interface describes."""
    features_method: ClassVar[str] = "get_video_features"
    """Method of the inner model that returns the video tokens in ``pooler_output``."""
    frames_per_step: ClassVar[int] = 1
    """Sampled frames that the model merges into one time step."""

    # --- static facts, from the config alone

    def llm_width(self, config: Any) -> int:
        """E."""
        return int(config.get_text_config().hidden_size)

    @abstractmethod
    def pre_projector_width(self, config: Any) -> int:
        """C of the features before the projector, pooled like the video tokens."""

    def placeholder_ids(self, config: Any) -> tuple[int, ...]:
        """Token ids that stand for vision tokens in a prompt."""
        ids = (getattr(config, "video_token_id", None), getattr(config, "image_token_id", None))
        return tuple(i for i in ids if i is not None)

    def video_token_id(self, config: Any) -> int:
        """The placeholder that is repeated once per video token."""
        return int(config.video_token_id)

    # --- what one call says

    @abstractmethod
    def layouts(self, config: Any, arguments: Mapping[str, Any]) -> list[VideoLayout]:
        """The layout of every video, from the bound arguments of the features method."""

    def split(self, pooler_output: Tensor | Sequence[Tensor], layouts: Sequence[VideoLayout]) -> list[Tensor]:
        """The tokens of each video, (num_tokens, E). Default: one tensor with a row per video, or one tensor per video."""
        return list(pooler_output)

    def join(self, videos: list[Tensor], like: Tensor | Sequence[Tensor]) -> Tensor | tuple[Tensor, ...]:
        """The inverse of ``split``."""
        return torch.stack(videos) if isinstance(like, Tensor) else tuple(videos)

    # --- the features before the projector

    @abstractmethod
    def projector(self, inner: Any) -> nn.Module:
        """The module whose input holds the features before the projector."""

    @abstractmethod
    def pre_projector(
        self, inner: Any, captured: Tensor, layouts: Sequence[VideoLayout], arguments: Mapping[str, Any]
    ) -> list[Tensor]:
        """Per video (T * S, C): what entered the projector, in frame order and pooled like the video tokens."""

    # --- the newline

    def newline(self, inner: Any) -> Tensor | None:
        """The embedding (E,) that ends a row of vision tokens, or None where the family has none."""
        return None

    # --- time

    def step_times(self, frame_times_BF: Tensor) -> Tensor:
        """Times of the model's steps from those of the sampled frames: the mean over the frames merged into a step.

        Args:
            frame_times_BF: seconds, NaN where a video has fewer frames.

        Returns:
            (B, T) seconds, NaN behind the last step. A group that the processor fills by repeating the last frame has
            the mean over its real frames and the repeated one, as the model sees it.
        """
        n = self.frames_per_step
        if n == 1:
            return frame_times_BF
        B, F = frame_times_BF.shape
        # repeat each row's last real frame into its last group
        counts = torch.isfinite(frame_times_BF).sum(1)
        last = frame_times_BF.gather(1, (counts - 1).clamp(min=0)[:, None])
        padded = torch.cat([frame_times_BF, frame_times_BF.new_full((B, -F % n), float("nan"))], dim=1)
        column = torch.arange(padded.shape[1], device=padded.device)
        needed = (counts + n - 1) // n * n
        fill = (column[None] >= counts[:, None]) & (column[None] < needed[:, None])
        padded = torch.where(fill, last, padded)
        return padded.view(B, -1, n).mean(dim=2)

    # --- positions

    def position_ids(self, config: Any, batch: Mapping[str, Tensor]) -> Tensor | None:
        """Explicit positions that a batch must carry, or None where the model's own are right."""
        return None

    # --- LoRA

    def decoder_linears(self, config: Any) -> tuple[str, ...]:
        """Names of the linear layers in one layer of the language model."""
        return ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
