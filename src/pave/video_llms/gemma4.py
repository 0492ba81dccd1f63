"""Gemma 4: one step per frame with its time written before it; how many tokens a frame has follows from its shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pave.video_llms.interface import VideoLayout, VideoLLMInterface


class Gemma4Interface(VideoLLMInterface):
    model_types = ("gemma4",)
    projector_path = "embed_vision"

    def pre_projector_width(self, config: Any) -> int:
        return int(config.vision_config.hidden_size)

    def layouts(
        self, config: Any, arguments: Mapping[str, Any], frame_counts: Sequence[int] | None = None
    ) -> list[VideoLayout]:
        pool = config.vision_config.pooling_kernel_size
        frames = arguments["num_frames_per_video"].tolist()
        out = []
        for positions in arguments["video_position_ids"].split(
            frames
        ):  # (frames, patches, 2) of columns and rows, -1 as padding
            columns, rows = (int(x) + 1 for x in positions.flatten(0, 1).amax(dim=0))
            out.append(VideoLayout(steps=len(positions), grid=(rows // pool, columns // pool)))
        return out

    def pre_projector(
        self, inner: Any, captured: Tensor, layouts: Sequence[VideoLayout], arguments: Mapping[str, Any]
    ) -> list[Tensor]:
        return self.split([captured], layouts)

    def decoder_linears(self, config: Any) -> tuple[str, ...]:
        per_layer = ("per_layer_input_gate", "per_layer_projection", "per_layer_model_projection")
        return (*super().decoder_linears(config), *(per_layer if config.get_text_config().hidden_size_per_layer_input else ()))
