"""A base while it is trained: what differs between the families, and how each writes a conversation."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evidence.small_bases.models import (
    GRID,
    PATCH,
    TURN_END,
    TURN_START,
    BaseSize,
    build_model,
    build_processor,
    build_qwen_model,
    build_qwen_processor,
)
from pave.playground.world import DURATION, NUM_MOMENTS
from pave.video_llms import get_interface


@dataclass(frozen=True)
class Wording:
    """A conversation in pieces, as the base's chat template writes it."""

    start: str = f"{TURN_START} user "
    """In front of the video."""
    behind: str = ""
    """Directly behind the video."""
    turn: str = f" {TURN_START} user "
    """In front of every further question."""
    asked: str = f" {TURN_END} {TURN_START} assistant "
    """Between a question and its answer."""
    ended: str = f" {TURN_END}"
    """Behind an answer, and learnt with it."""


@dataclass
class BaseInTraining(ABC):
    """A base with its processor, its vision tower and the rest of it apart, in batches of N steps of frames.

    A step is what the tower turns into tokens at once: K frames. P is patches of a step, W the tower's width.
    """

    model: Any
    processor: Any
    wording: Wording = Wording()
    _ids: dict[str, list[int]] = field(default_factory=dict)

    frames_per_step: ClassVar[int] = 1
    """K."""

    def ids(self, text: str) -> list[int]:
        """Token ids of a piece of text."""
        if text not in self._ids:
            self._ids[text] = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._ids[text]

    def steps(self, frames_VF: NDArray[Any]) -> NDArray[Any]:
        """Frames of videos, or what is known of each, as steps: (V, F / K, K, ...)."""
        V, F, *rest = frames_VF.shape
        return frames_VF.reshape(V, F // self.frames_per_step, self.frames_per_step, *rest)

    @property
    @abstractmethod
    def tower(self) -> nn.Module:
        """The vision tower; the projector may be part of it."""

    @property
    @abstractmethod
    def projector(self) -> list[nn.Parameter]:
        """Everything between the tower and the language model."""

    @property
    @abstractmethod
    def vision_width(self) -> int:
        """W."""

    @abstractmethod
    def features(self, frames_NKHWC: NDArray[np.uint8]) -> Tensor:
        """What the projector gets: (N, P, W)."""

    @abstractmethod
    def labels(self, labels_NKPL: NDArray[np.int64]) -> NDArray[np.int64]:
        """From labels of every patch of every frame, row by row, those of the patches in ``features``: (N, P, L)."""

    @abstractmethod
    def video_tokens(self, features_VSPW: Tensor) -> Tensor:
        """From the features of S steps to what the language model reads of a video: (V, tokens, E)."""

    def positions(self, before: int, tokens: int, behind: int) -> Tensor:
        """Positions of a video with text before and behind it: (A, length), A axes."""
        return torch.arange(before + tokens + behind)[None]


class LlavaBase(BaseInTraining):
    """LLaVA-OneVision: frame by frame, patches pooled behind the projector, a newline token last."""

    @property
    def tower(self) -> nn.Module:
        tower: nn.Module = self.model.model.vision_tower
        return tower

    @property
    def projector(self) -> list[nn.Parameter]:
        return [*self.model.model.multi_modal_projector.parameters(), self.model.model.image_newline]

    @property
    def vision_width(self) -> int:
        return int(self.model.config.vision_config.hidden_size)

    def features(self, frames_NKHWC: NDArray[np.uint8]) -> Tensor:
        pixels = normalised(frames_NKHWC[:, 0])
        features: Tensor = self.tower(pixels, output_hidden_states=True).hidden_states[-1]
        return features

    def labels(self, labels_NKPL: NDArray[np.int64]) -> NDArray[np.int64]:
        return labels_NKPL[:, 0]

    def video_tokens(self, features_VSPW: Tensor) -> Tensor:
        inner = self.model.model
        projected = inner.multi_modal_projector(features_VSPW.float().flatten(0, 1))
        tokens = inner.apply_pooling(projected).reshape(len(features_VSPW), -1, projected.shape[-1])
        return torch.cat([tokens, inner.image_newline.expand(len(tokens), 1, -1)], dim=1)


class QwenBase(BaseInTraining):
    """Qwen2.5-VL: two frames a step, patches in groups of two by two that become one token, positions of time, row and
    column."""

    frames_per_step: ClassVar[int] = 2

    @property
    def tower(self) -> nn.Module:
        tower: nn.Module = self.model.model.visual
        return tower

    @property
    def projector(self) -> list[nn.Parameter]:
        return list(self.model.model.visual.merger.parameters())

    @property
    def vision_width(self) -> int:
        return int(self.model.config.vision_config.hidden_size)

    def features(self, frames_NKHWC: NDArray[np.uint8]) -> Tensor:
        N, K, half = len(frames_NKHWC), self.frames_per_step, GRID // 2
        pixels = normalised(frames_NKHWC.reshape(N * K, *frames_NKHWC.shape[2:]))
        pixels = pixels.reshape(N, K, 3, half, 2, PATCH, half, 2, PATCH).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        grid = torch.tensor([[1, GRID, GRID]]).expand(N, -1)
        visual = self.model.model.visual
        with _unmerged(visual, self.vision_width):
            groups: Tensor = visual(pixels.reshape(N * GRID**2, -1), grid_thw=grid).pooler_output
        return groups.reshape(N, GRID**2, self.vision_width)

    def labels(self, labels_NKPL: NDArray[np.int64]) -> NDArray[np.int64]:
        """What is seen in either frame of a step; the two lie in one segment, so the same object moves in both."""
        N, half = len(labels_NKPL), GRID // 2
        either = labels_NKPL.max(axis=1).reshape(N, half, 2, half, 2, -1)
        return either.transpose(0, 1, 3, 2, 4, 5).reshape(N, GRID**2, -1)

    def video_tokens(self, features_VSPW: Tensor) -> Tensor:
        merged: Tensor = self.model.model.visual.merger(features_VSPW.float().reshape(-1, self.vision_width))
        return merged.reshape(len(features_VSPW), -1, merged.shape[-1])

    def positions(self, before: int, tokens: int, behind: int) -> Tensor:
        kinds = torch.tensor([[0] * before + [2] * tokens + [0] * behind])
        steps = NUM_MOMENTS // self.frames_per_step
        batch = {
            "mm_token_type_ids": kinds,
            "video_grid_thw": torch.tensor([[steps, GRID, GRID]]),
            "second_per_grid_ts": torch.tensor([DURATION / steps]),
        }
        found = get_interface(self.model.config).position_ids(self.model.config, batch)
        assert found is not None
        return found[:, 0]


class _Groups(nn.Module):
    """In place of the merger: patches come out as they are, group by group, back in the order of the picture."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, patches: Tensor) -> Tensor:
        return patches.reshape(-1, 4 * self.width)


@contextlib.contextmanager
def _unmerged(visual: Any, width: int) -> Iterator[None]:
    merger, visual.merger = visual.merger, _Groups(width)
    try:
        yield
    finally:
        visual.merger = merger


def normalised(frames_NHWC: NDArray[np.uint8]) -> Tensor:
    """What the processors make of frames of the playground's size: (N, C, H, W) from -1 to 1."""
    return torch.from_numpy(frames_NHWC).permute(0, 3, 1, 2).float() / 127.5 - 1


@dataclass(frozen=True)
class Kind:
    """A base that can be trained from scratch."""

    family: type[BaseInTraining]
    size: BaseSize = field(default_factory=BaseSize)
    clips: int = 4000
    """Silent clips to train on."""
    tower_steps: int = 900
    """Steps of 64 steps of frames."""
    language_steps: int = 1500
    """Steps of 16 clips."""

    def build(self, seed: int) -> BaseInTraining:
        """A fresh one."""
        if issubclass(self.family, QwenBase):
            wording = Wording(start=f"{TURN_START} user <|vision_start|>", behind="<|vision_end|>")
            return self.family(build_qwen_model(seed, self.size), build_qwen_processor(), wording)
        return self.family(build_model(seed, self.size), build_processor())


KINDS = {
    "playground": Kind(LlavaBase),
    "small": Kind(LlavaBase, BaseSize(vision_width=64, vision_layers=3, width=96, layers=3)),
    "large": Kind(
        LlavaBase, BaseSize(vision_width=128, vision_layers=4, width=192, layers=4), tower_steps=800, language_steps=900
    ),
    "qwen2_5_vl": Kind(QwenBase),
}
"""By name; "playground" is the one inside the package."""
