"""MiniCPM-V 4.6: a tensor per frame of all videos together; only the caller knows which frames make a video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pave.video_llms.interface import VideoLayout, VideoLLMInterface, videos_of_frames
from pave.video_llms.qwen3_vl import GATED_DELTA_LINEARS


class MiniCPMV4_6Interface(VideoLLMInterface):
    model_types = ("minicpmv4_6",)
    needs_frame_counts = True
    projector_path = "merger"
    pixels_axis = 3

    def pre_projector_width(self, config: Any) -> int:
        return int(config.vision_config.hidden_size)

    def layouts(
        self, config: Any, arguments: Mapping[str, Any], frame_counts: Sequence[int] | None = None
    ) -> list[VideoLayout]:
        side = 2 if (arguments.get("downsample_mode") or config.downsample_mode) == "4x" else 4
        sizes = arguments["target_sizes_videos"]
        out, start = [], 0
        for frames in videos_of_frames(len(sizes), frame_counts, "MiniCPM-V"):
            if len({tuple(size) for size in sizes[start : start + frames].tolist()}) > 1:
                raise ValueError(
                    "the frames of one video have different sizes in target_sizes_videos: frames cut into slices are not described; "
                    "call the processor with videos_kwargs={'max_slice_nums': 1}"
                )
            rows, columns = (int(n) // side for n in sizes[start])
            out.append(VideoLayout(steps=frames, grid=(rows, columns)))
            start += frames
        return out

    def pre_projector(
        self, inner: Any, captured: Tensor, layouts: Sequence[VideoLayout], arguments: Mapping[str, Any]
    ) -> list[Tensor]:
        """The mean over the patches that are merged into one token."""
        C = captured.shape[-1]
        tokens = sum(layout.num_tokens for layout in layouts)
        k = round((captured.shape[1] / tokens) ** 0.5)
        out, start = [], 0
        for layout in layouts:
            rows, columns = layout.grid
            count = layout.num_tokens * k * k
            patches = captured[0, start : start + count].view(layout.steps, rows, k, columns, k, C)
            out.append(patches.mean(dim=(2, 4)).reshape(-1, C))
            start += count
        return list(map(torch.Tensor.contiguous, out))

    def decoder_linears(self, config: Any) -> tuple[str, ...]:
        return (*super().decoder_linears(config), *GATED_DELTA_LINEARS)  # its language model is Qwen3.5's
