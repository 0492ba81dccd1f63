"""Video-LLaVA: one step per frame; every step starts with the vision tower's class token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pave.video_llms.interface import VideoLayout
from pave.video_llms.llava_next_video import LlavaNextVideoInterface


class VideoLlavaInterface(LlavaNextVideoInterface):
    model_types = ("video_llava",)

    def layouts(
        self, config: Any, arguments: Mapping[str, Any], frame_counts: Sequence[int] | None = None
    ) -> list[VideoLayout]:
        videos, frames, _, height, width = arguments["pixel_values_videos"].shape
        patch = config.vision_config.patch_size
        return [VideoLayout(steps=frames, grid=(height // patch, width // patch), leading=1)] * videos
