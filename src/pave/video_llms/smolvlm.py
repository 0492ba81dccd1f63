"""SmolVLM: a video is a pile of pictures in the image path, padded to one number per prompt by black ones that are dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pave.video_llms.interface import VideoLayout, VideoLLMInterface, videos_of_frames


class SmolVLMInterface(VideoLLMInterface):
    model_types = ("smolvlm",)
    features_method = "get_image_features"
    video_key = "image"
    needs_frame_counts = True
    projector_path = "connector"
    vision_not_stored = "its processor pads the videos of a batch to one number of frames and writes that into every prompt"

    def pre_projector_width(self, config: Any) -> int:
        return int(config.vision_config.hidden_size)

    def video_token_id(self, config: Any) -> int:
        return int(config.image_token_id)

    def layouts(
        self, config: Any, arguments: Mapping[str, Any], frame_counts: Sequence[int] | None = None
    ) -> list[VideoLayout]:
        pixels = arguments["pixel_values"]
        real = max(1, int((pixels != 0).flatten(2).any(dim=2).sum()))
        side = pixels.shape[-1] // config.vision_config.patch_size // config.scale_factor
        counts = videos_of_frames(real, frame_counts, "SmolVLM")
        return [VideoLayout(steps=n, grid=(side, side)) for n in counts]

    def pre_projector(
        self, inner: Any, captured: Tensor, layouts: Sequence[VideoLayout], arguments: Mapping[str, Any]
    ) -> list[Tensor]:
        """The mean over the patches that are merged into one token."""
        F, _, C = captured.shape
        (rows, columns), k = layouts[0].grid, inner.config.scale_factor
        tokens = captured.view(F, rows, k, columns, k, C).mean(dim=(2, 4)).reshape(F, rows * columns, C)
        return self.split(torch.unbind(tokens), layouts)
