"""All knowledge about base models: one descriptive file per family, and the table below."""

from __future__ import annotations

from typing import Any

from pave.video_llms.ernie4_5_vl import Ernie4_5VLInterface
from pave.video_llms.exaone4_5 import Exaone4_5Interface
from pave.video_llms.gemma4 import Gemma4Interface
from pave.video_llms.glm4v import Glm4vInterface
from pave.video_llms.instructblipvideo import InstructBlipVideoInterface
from pave.video_llms.interface import GridInterface, VideoLayout, VideoLLMInterface, videos_of_frames
from pave.video_llms.internvl import InternVLInterface
from pave.video_llms.lfm3_vl import Lfm3VLInterface
from pave.video_llms.llava_next_video import LlavaNextVideoInterface
from pave.video_llms.llava_onevision import LlavaOnevisionInterface
from pave.video_llms.minicpmv4_6 import MiniCPMV4_6Interface
from pave.video_llms.molmo2 import Molmo2Interface
from pave.video_llms.perception_lm import PerceptionLMInterface
from pave.video_llms.qwen2_vl import Qwen2_5VLInterface, Qwen2VLInterface
from pave.video_llms.qwen3_vl import Qwen3VLInterface
from pave.video_llms.qwen_omni import Qwen2_5OmniInterface, Qwen3OmniInterface
from pave.video_llms.smolvlm import SmolVLMInterface
from pave.video_llms.video_llama_3 import VideoLlama3Interface
from pave.video_llms.video_llava import VideoLlavaInterface

FAMILIES: tuple[type[VideoLLMInterface], ...] = (
    LlavaOnevisionInterface,
    LlavaNextVideoInterface,
    VideoLlavaInterface,
    Qwen2VLInterface,
    Qwen2_5VLInterface,
    Qwen3VLInterface,
    Qwen2_5OmniInterface,
    Qwen3OmniInterface,
    InternVLInterface,
    SmolVLMInterface,
    VideoLlama3Interface,
    Glm4vInterface,
    PerceptionLMInterface,
    InstructBlipVideoInterface,
    Gemma4Interface,
    MiniCPMV4_6Interface,
    Molmo2Interface,
    Ernie4_5VLInterface,
    Exaone4_5Interface,
    Lfm3VLInterface,
)
"""The families described here. ``register`` adds one of your own."""

NOT_SUPPORTED: dict[str, str] = {
    "qwen2_5_omni": "attach the patch to its thinker, model.thinker, which is what sees the video",
    "qwen3_omni_moe": "attach the patch to its thinker, model.thinker, which is what sees the video",
    "kimi_k25": "its tower pools a whole clip into one picture's tokens, so no token belongs to one time step",
}
"""Base models that one might expect here, and why they are not."""

_BY_TYPE: dict[str, type[VideoLLMInterface]] = {model_type: family for family in FAMILIES for model_type in family.model_types}


def register(family: type[VideoLLMInterface], *, replace: bool = False) -> type[VideoLLMInterface]:
    """Add a family of base models from outside the library; usable as a decorator of the class.

    Args:
        family: the description.
        replace: True to describe a type of model anew that is described already.

    Raises:
        ValueError: if the class is no description, names no type of model, or one that is described already.
    """
    if not (isinstance(family, type) and issubclass(family, VideoLLMInterface)):
        raise ValueError(f"register takes a subclass of VideoLLMInterface, got {family!r}")
    types = getattr(family, "model_types", ())
    if not types or isinstance(types, str):
        raise ValueError(f"{family.__name__}.model_types must be a tuple of config.model_type values, got {types!r}")
    taken = [model_type for model_type in types if model_type in _BY_TYPE]
    if taken and not replace:
        raise ValueError(f"{family.__name__}: {', '.join(taken)} is described already; pass replace=True to describe it anew")
    _BY_TYPE.update(dict.fromkeys(types, family))
    return family


def supported_types() -> list[str]:
    """All ``config.model_type`` values with a description, registered ones included, in the order of the table."""
    return list(_BY_TYPE)


def get_interface(config: Any) -> VideoLLMInterface:
    """The interface of a base model.

    Args:
        config: the base's ``config`` (a ``PretrainedConfig``).

    Raises:
        ValueError: if the family is not described here, with the reason where there is a known one, and the ones that are.
    """
    model_type = getattr(config, "model_type", None)
    if model_type in _BY_TYPE:
        return _BY_TYPE[model_type]()
    reason = NOT_SUPPORTED.get(str(model_type))
    because = f" ({reason})" if reason else ""
    raise ValueError(
        f"base models of type {model_type!r} are not supported{because}; supported: {', '.join(sorted(_BY_TYPE))}; "
        "docs/new_video_llm.md says how to describe another one"
    )


__all__ = [
    "FAMILIES",
    "NOT_SUPPORTED",
    "Ernie4_5VLInterface",
    "Exaone4_5Interface",
    "Gemma4Interface",
    "Glm4vInterface",
    "GridInterface",
    "InstructBlipVideoInterface",
    "InternVLInterface",
    "Lfm3VLInterface",
    "LlavaNextVideoInterface",
    "LlavaOnevisionInterface",
    "MiniCPMV4_6Interface",
    "Molmo2Interface",
    "PerceptionLMInterface",
    "Qwen2VLInterface",
    "Qwen2_5OmniInterface",
    "Qwen2_5VLInterface",
    "Qwen3OmniInterface",
    "Qwen3VLInterface",
    "SmolVLMInterface",
    "VideoLLMInterface",
    "VideoLayout",
    "VideoLlama3Interface",
    "VideoLlavaInterface",
    "get_interface",
    "register",
    "supported_types",
    "videos_of_frames",
]
