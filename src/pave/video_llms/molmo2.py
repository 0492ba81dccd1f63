"""Molmo 2: features are *added* onto the placeholders' embeddings; one placeholder serves images and videos, never both at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from pave.video_llms.interface import VideoLayout, VideoLLMInterface


class Molmo2Interface(VideoLLMInterface):
    model_types = ("molmo2",)
    projector_path = "multi_modal_projector"

    def pre_projector_width(self, config: Any) -> int:
        return int(config.vision_config.hidden_size) * len(config.adapter_config.vision_feature_layer)

    def video_token_id(self, config: Any) -> int:
        return int(config.image_token_id)

    def layouts(
        self, config: Any, arguments: Mapping[str, Any], frame_counts: Sequence[int] | None = None
    ) -> list[VideoLayout]:
        return [VideoLayout(steps=t, grid=(h, w)) for t, h, w in arguments["video_grids"].tolist()]

    def pre_projector(
        self, inner: Any, captured: Tensor, layouts: Sequence[VideoLayout], arguments: Mapping[str, Any]
    ) -> list[Tensor]:
        """The mean over the patches that attention pools into one token, which is also the query of that attention."""
        index = arguments["video_token_pooling"]
        index = index[(index >= 0).any(dim=-1)]
        real = (index >= 0)[..., None]
        patches = captured.reshape(-1, captured.shape[-1])[index.clamp(min=0)] * real
        return list((patches.sum(1) / real.sum(1)).split([layout.num_tokens for layout in layouts]))

    def join_processed(self, name: str, parts: Sequence[Tensor], pixels: Sequence[tuple[int, ...]]) -> Tensor:
        """Patches are numbered through the whole batch."""
        if name != "video_token_pooling":
            return super().join_processed(name, parts, pixels)
        firsts = [0, *accumulate(frames * patches for frames, patches, *_ in pixels)]
        return torch.cat([torch.where(part >= 0, part + first, part) for part, first in zip(parts, firsts, strict=False)])
