"""What the rest of the library must know about a family of Video LLMs in transformers.

A patch acts on the output of the one method that turns pixels into tokens of the language model (``get_video_features``, or
``get_image_features`` where a family knows no other): it is frame-major with contiguous frames in every family, and made before
tokens are dropped. An interface describes that output: how many time steps and tokens per step each
video has, what belongs to no step, where the tokens stand in the prompt, what the time of a step is, and where the features
before the projector can be read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

ATTENTION_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_LINEARS = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class VideoLayout:
    """The tokens of one video: ``steps * tokens_per_step`` frame-major ones, then ``trailing`` others."""

    steps: int
    """T: time steps as the language model sees them."""
    grid: tuple[int, int]
    """(rows, columns) of the tokens of one step."""
    trailing: int = 0
    """Tokens after the last step that belong to no frame (a newline)."""
    leading: int = 0
    """Tokens of a step before its grid (a class token). They are fused as the others are."""

    @property
    def tokens_per_step(self) -> int:
        """S."""
        return self.leading + self.grid[0] * self.grid[1]

    @property
    def num_tokens(self) -> int:
        return self.steps * self.tokens_per_step + self.trailing


class VideoLLMInterface(ABC):
    """Description of one family. Subclasses hold data and a few lines of arithmetic, never model code."""

    model_types: ClassVar[tuple[str, ...]]
    """``config.model_type`` values this interface describes."""
    features_method: ClassVar[str] = "get_video_features"
    """Method of the inner model that returns the video tokens in ``pooler_output``."""
    video_key: ClassVar[str] = "video"
    """Modality under which the base takes them in ``mm_encoder_outputs``."""
    frames_per_step: ClassVar[int] = 1
    """Sampled frames that the model merges into one time step."""
    needs_frame_counts: ClassVar[bool] = False
    """True where the model's inputs do not say which frames make a video: ``frame_times`` has to."""
    lengthens_prompt: ClassVar[bool] = False
    """True where fusion by ``concat`` and ``interleave``, which add tokens to the prompt, is described and tested."""
    shares_videos: ClassVar[bool] = False
    """True where several questions in one row after one video (``pave.video_llms.branches``) are tested."""
    projector_path: ClassVar[str]
    """Where the module whose input holds the features before the projector is in the inner model."""
    pixels_axis: ClassVar[int] = 0
    """Axis of the pixels along which the videos of a batch follow each other."""
    vision_not_stored: ClassVar[str] = ""
    """Why what the features method makes of a video alone cannot take the place of its pixels; empty where it can."""

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
    def layouts(
        self, config: Any, arguments: Mapping[str, Any], frame_counts: Sequence[int] | None = None
    ) -> list[VideoLayout]:
        """The layout of every video.

        Args:
            config: the base's config.
            arguments: the bound arguments of the features method.
            frame_counts: sampled frames of every video as ``frame_times`` has them, None where the caller gave none. Used where
                ``needs_frame_counts``.

        Raises:
            ValueError: if ``frame_counts`` are needed and do not add up.
        """

    def encoder_inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call under the names that ``features_method`` has for those of the videos."""
        return dict(batch)

    def is_video_token(self, config: Any, input_ids: Tensor) -> Tensor:
        """True at the tokens of a prompt that stand for video tokens, shape (B, L)."""
        return input_ids == self.video_token_id(config)

    def tokens_in_prompt(self, layouts: Sequence[VideoLayout], inputs: Mapping[str, Any]) -> list[int]:
        """Tokens of each video that reach the language model; fewer than it has where the model drops some afterwards.

        Args:
            layouts: of every video.
            inputs: the arguments of ``forward`` or ``generate``.
        """
        return [layout.num_tokens for layout in layouts]

    def split(self, pooler_output: Tensor | Sequence[Tensor], layouts: Sequence[VideoLayout]) -> list[Tensor]:
        """The tokens of each video, (num_tokens, E), from any nesting that holds them one video after the other."""
        parts = [pooler_output] if isinstance(pooler_output, Tensor) else pooler_output
        flat = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])
        return list(flat.split([layout.num_tokens for layout in layouts]))

    def join(self, videos: list[Tensor], like: Tensor | Sequence[Tensor]) -> Tensor | tuple[Tensor, ...]:
        """The inverse of ``split``. Videos that grew keep one part each."""
        flat = torch.cat(videos)
        if isinstance(like, Tensor):
            return flat.view(like.shape) if flat.numel() == like.numel() else flat.view(len(like), -1, flat.shape[-1])
        sizes = [part[..., 0].numel() for part in like]
        return tuple(flat.split(sizes)) if sum(sizes) == len(flat) else tuple(videos)

    def generate(self, model: Any, original: Callable[..., Any], args: Sequence[Any], inputs: Mapping[str, Any]) -> Any:
        """Run the base's own ``generate`` on ``inputs`` that hold ``mm_encoder_outputs`` in place of pixels.

        Args:
            model: the patched model.
            original: the base's method, called with the model first.
            args: what the caller gave by position behind the prompt.
            inputs: the other arguments by name.
        """
        return original(model, None, *args, **inputs)

    # --- the features before the projector

    def projector(self, inner: Any) -> nn.Module:
        """The module whose input holds the features before the projector."""
        module: nn.Module = inner.get_submodule(self.projector_path)
        return module

    @abstractmethod
    def pre_projector(
        self, inner: Any, captured: Tensor, layouts: Sequence[VideoLayout], arguments: Mapping[str, Any]
    ) -> list[Tensor]:
        """Per video (T * S, C): what entered the projector, in frame order and pooled like the video tokens."""

    # --- stored vision features in place of pixels

    def join_processed(self, name: str, parts: Sequence[Tensor], pixels: Sequence[tuple[int, ...]]) -> Tensor:
        """What the video processor makes of a batch beside pixels, from what it made of each video alone.

        Args:
            name: of the output.
            parts: of every video.
            pixels: shapes of every video's pixels.
        """
        return torch.cat(list(parts))

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

    def timing_inputs(self, config: Any, batch: Mapping[str, Any], frame_times_BF: Tensor) -> dict[str, Any]:
        """Inputs that tell the base the videos' true times, where its processor cannot know them.

        Args:
            config: the base's config.
            batch: what the processor made.
            frame_times_BF: seconds of the sampled frames, NaN where a video has fewer.
        """
        return {}

    # --- positions

    def position_ids(self, config: Any, batch: Mapping[str, Tensor]) -> Tensor | None:
        """Explicit positions that a batch must carry, or None where the model's own are right."""
        return None

    def positions_of_rows(self, config: Any, batch: Mapping[str, Tensor]) -> Tensor | None:
        """The base's positions of every token of a batch, or None where they count the tokens. Used where ``shares_videos``."""
        return self.position_ids(config, batch)

    # --- LoRA

    def decoder_linears(self, config: Any) -> tuple[str, ...]:
        """Names of the linear layers in the language model, what ``lora.targets`` may name. Packed experts are none."""
        return (*ATTENTION_LINEARS, *MLP_LINEARS)


class GridInterface(VideoLLMInterface):
    """Families whose processor describes every video by ``video_grid_thw``: steps, rows and columns of patches before merging."""

    merge_size: ClassVar[str] = "spatial_merge_size"
    """Field of the vision config: side of the square of patches that becomes one token."""
    windowed: ClassVar[bool] = False
    """True where the vision tower works through the patches window by window, not in frame order."""
    width_field: ClassVar[str] = "hidden_size"
    """Field of the vision config with the width of what enters the projector."""
    projector_path = "visual.merger"

    def pre_projector_width(self, config: Any) -> int:
        return int(getattr(config.vision_config, self.width_field))

    def layouts(
        self, config: Any, arguments: Mapping[str, Any], frame_counts: Sequence[int] | None = None
    ) -> list[VideoLayout]:
        merge = getattr(config.vision_config, self.merge_size)
        grids = arguments["video_grid_thw"].tolist()
        return [VideoLayout(steps=t, grid=(h // merge, w // merge)) for t, h, w in grids]

    def pre_projector(
        self, inner: Any, captured: Tensor, layouts: Sequence[VideoLayout], arguments: Mapping[str, Any]
    ) -> list[Tensor]:
        """The mean over the patches that are merged into one token."""
        vision = inner.config.vision_config
        tokens = sum(layout.num_tokens for layout in layouts)
        merged = captured.reshape(tokens, -1, captured.shape[-1]).mean(dim=1)
        if self.windowed:
            from transformers.vision_utils import get_vision_window_index

            window_index, _ = get_vision_window_index(
                arguments["video_grid_thw"], vision.spatial_merge_size, vision.window_size, vision.patch_size
            )
            merged = merged[torch.argsort(window_index).to(merged.device)]
        return list(merged.split([layout.num_tokens for layout in layouts]))


def videos_of_frames(total: int, frame_counts: Sequence[int] | None, what: str) -> list[int]:
    """How many frames each video has, where the base's inputs are a pile of pictures.

    Args:
        total: pictures in the call.
        frame_counts: what ``frame_times`` says; None takes all pictures as one video.
        what: name of the base, for the message.

    Raises:
        ValueError: if the counts do not add up to ``total``.
    """
    counts = [total] if frame_counts is None else list(frame_counts)
    if sum(counts) != total:
        raise ValueError(
            f"frame_times describes {counts} frames, but the call has {total} pictures: {what} does not say which pictures make a "
            "video, so every picture needs a time; give a still image as a video of one frame without side tokens"
        )
    return counts
