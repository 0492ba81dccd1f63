"""Video-LLaVA: one step per frame; every step starts with the vision tower's class token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from pave.video_llms.interface import VideoLayout, VideoLLMInterface
from pave.video_llms.llava_next_video import LlavaNextVideoInterface
from pave.video_llms.stand_ins import StandIn


class VideoLlavaInterface(LlavaNextVideoInterface):
    model_types = ("video_llava",)
    vision_path = "video_tower"

    def layouts(
        self, config: Any, arguments: Mapping[str, Any], frame_counts: Sequence[int] | None = None
    ) -> list[VideoLayout]:
        videos, frames, _, height, width = arguments["pixel_values_videos"].shape
        patch = config.vision_config.patch_size
        return [VideoLayout(steps=frames, grid=(height // patch, width // patch), leading=1)] * videos

    def vision_stand_ins(self, inner: Any) -> dict[nn.Module, StandIn]:
        return VideoLLMInterface.vision_stand_ins(self, inner)  # nothing pools before the projector
