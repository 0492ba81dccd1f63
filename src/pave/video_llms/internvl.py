"""InternVL 3: a video is a pile of pictures in the image path; only the caller knows which pictures make a video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pave.video_llms.interface import VideoLayout, VideoLLMInterface, videos_of_frames


class InternVLInterface(VideoLLMInterface):
    model_types = ("internvl",)
    shares_videos = True
    features_method = "get_image_features"
    video_key = "image"
    needs_frame_counts = True
    projector_path = "multi_modal_projector"

    def pre_projector_width(self, config: Any) -> int:
        return int(config.vision_config.hidden_size * round(1 / config.downsample_ratio) ** 2)

    def video_token_id(self, config: Any) -> int:
        return int(config.image_token_id)

    def layouts(
        self, config: Any, arguments: Mapping[str, Any], frame_counts: Sequence[int] | None = None
    ) -> list[VideoLayout]:
        pictures, _, *size = arguments["pixel_values"].shape
        rows, columns = (
            int(side // patch * config.downsample_ratio)
            for side, patch in zip(size, config.vision_config.patch_size, strict=True)
        )
        return [VideoLayout(steps=n, grid=(rows, columns)) for n in videos_of_frames(pictures, frame_counts, "InternVL")]

    def pre_projector(
        self, inner: Any, captured: Tensor, layouts: Sequence[VideoLayout], arguments: Mapping[str, Any]
    ) -> list[Tensor]:
        return self.split(captured, layouts)
