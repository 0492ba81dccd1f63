"""All knowledge about base models: one descriptive file per family, and the table below."""

from __future__ import annotations

from typing import Any

from pave.video_llms.interface import VideoLayout, VideoLLMInterface
from pave.video_llms.llava_onevision import LlavaOnevisionInterface
from pave.video_llms.qwen2_5_vl import Qwen2VLInterface

FAMILIES: tuple[type[VideoLLMInterface], ...] = (LlavaOnevisionInterface, Qwen2VLInterface)

_BY_TYPE = {model_type: family for family in FAMILIES for model_type in family.model_types}


def get_interface(config: Any) -> VideoLLMInterface:
    """The interface of a base model.

    Args:
        config: the base's ``config`` (a ``PretrainedConfig``).

    Raises:
        ValueError: if the family is not described here, with the ones that are.
    """
    model_type = getattr(config, "model_type", None)
    if model_type not in _BY_TYPE:
        raise ValueError(f"base models of type {model_type!r} are not supported; supported: {', '.join(sorted(_BY_TYPE))}")
    return _BY_TYPE[model_type]()


__all__ = ["FAMILIES", "LlavaOnevisionInterface", "Qwen2VLInterface", "VideoLLMInterface", "VideoLayout", "get_interface"]
