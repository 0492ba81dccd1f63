"""Batches of videos whose vision features are stored: the base's processor writes the prompt, and nothing is decoded.

The processor hands frames to its video processor and reads from what that returns how many placeholders the prompt needs.
What the video processor made of each video is stored with its features, so it need not run again.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pave.data.items import VideoVision
from pave.video_llms import VideoLLMInterface
from pave.video_llms.encode import PIXELS, EncodedVideo


def processor_of_stored(processor: Any, videos: Sequence[VideoVision], interface: VideoLLMInterface) -> Any:
    """A processor that makes of these videos, whatever frames it is given, what it made of each when it was stored.

    Pixels have the right shape and hold nothing.

    Args:
        processor: the base's.
        videos: of the batch, in order.
        interface: of the base.
    """
    processor = copy.copy(processor)
    processor.video_processor = _StoredVideos(processor.video_processor, videos, interface)
    return processor


def features_for_pixels(data: dict[str, Any], videos: Sequence[VideoVision]) -> dict[str, Any]:
    """What such a processor made, with the stored features in place of the pixels."""
    kept = {key: value for key, value in data.items() if not key.startswith(PIXELS)}
    return {**kept, "vision_features": EncodedVideo.join([video.encoded for video in videos])}


class _StoredVideos:
    """Stands in for a video processor."""

    def __init__(self, inner: Any, videos: Sequence[VideoVision], interface: VideoLLMInterface) -> None:
        self._inner = inner
        self._videos = videos
        self._interface = interface

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, videos: Any, **kwargs: Any) -> Any:
        from transformers import BatchFeature
        from transformers.video_utils import make_batched_metadata

        made: dict[str, Any] = {key: self._joined(key) for key in self._videos[0].outputs}
        made |= {key: self._empty(key) for key in self._videos[0].pixels}
        if kwargs.get("return_metadata", getattr(self._inner, "return_metadata", False)):
            made["video_metadata"] = make_batched_metadata(videos, video_metadata=kwargs["video_metadata"])
        return BatchFeature(made)

    def _joined(self, key: str) -> Tensor:
        pixels = [next(iter(video.pixels.values()))[0] for video in self._videos]
        return self._interface.join_processed(key, [video.outputs[key] for video in self._videos], pixels)

    def _empty(self, key: str) -> Tensor:
        axis = self._interface.pixels_axis
        shapes = [list(video.pixels[key][0]) for video in self._videos]
        total = sum(shape[axis] for shape in shapes)
        whole, *others = [[*shape[:axis], total, *shape[axis + 1 :]] for shape in shapes]
        if any(other != whole for other in others):
            raise ValueError(f"the videos' {key} have different shapes ({shapes}) and cannot be stacked")
        return torch.zeros((), dtype=self._videos[0].pixels[key][1]).expand(whole)
