"""InstructBLIP for video: a Q-Former turns every frame into the same number of tokens, which form no grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pave.video_llms.interface import VideoLayout, VideoLLMInterface


class InstructBlipVideoInterface(VideoLLMInterface):
    model_types = ("instructblipvideo",)
    projector_path = "language_projection"
    vision_not_stored = "what enters its projector depends on the question, not on the video alone"

    def pre_projector_width(self, config: Any) -> int:
        return int(config.qformer_config.hidden_size)

    def layouts(
        self, config: Any, arguments: Mapping[str, Any], frame_counts: Sequence[int] | None = None
    ) -> list[VideoLayout]:
        videos, frames = arguments["pixel_values"].shape[:2]
        return [VideoLayout(steps=frames, grid=(1, config.num_query_tokens))] * videos

    def pre_projector(
        self, inner: Any, captured: Tensor, layouts: Sequence[VideoLayout], arguments: Mapping[str, Any]
    ) -> list[Tensor]:
        return self.split(captured, layouts)
