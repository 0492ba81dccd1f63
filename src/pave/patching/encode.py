"""The base's own features of a call's videos and images: made once, by the base's own methods, for any number of patches."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pave.video_llms import VideoLayout, VideoLLMInterface, get_interface

PIXELS = "pixel_values"
"""What the names of all tensors of pixels begin with."""


@dataclass(frozen=True)
class EncodedVideo:
    """What the base's encoders made of a call. Nobody changes it: keep it, and fuse it as often as you like."""

    outputs: Mapping[str, Any]
    """By modality, as the base takes them in ``mm_encoder_outputs``: the videos, and images beside them."""
    video_key: str
    """The modality that holds the videos ("image" where a family knows no other); not in ``outputs`` where there are none."""
    layouts: tuple[VideoLayout, ...] = ()
    """Of every video."""
    pre_projector: tuple[Tensor, ...] | None = None
    """Per video (T * S, C), what enters the projector, where it was asked for."""

    @property
    def has_videos(self) -> bool:
        return self.video_key in self.outputs


@torch.compiler.disable  # type: ignore[untyped-decorator]
def encode(
    model: Any, batch: Mapping[str, Any], *, frame_counts: Sequence[int] | None = None, pre_projector: bool = False
) -> EncodedVideo:
    """The base's features of every video and image of a batch.

    Args:
        model: a base, patched or not.
        batch: what the base's processor made, at least all that describes pixels.
        frame_counts: sampled frames of every video, for families whose pixels do not say which frames make a video.
        pre_projector: also keep what enters the projector, for patches that make their queries of it.

    Raises:
        ValueError: if the batch has pixels that no features method of the base takes, or ``frame_counts`` do not add up.
    """
    interface = get_interface(model.config)
    inner = model.base_model
    outputs: dict[str, Any] = {}
    layouts: tuple[VideoLayout, ...] = ()
    features: tuple[Tensor, ...] | None = None
    pixels = [name for name, value in batch.items() if name.startswith(PIXELS) and value is not None]
    with torch.set_grad_enabled(torch.is_grad_enabled() and encoders_learn(model)):
        for key, method, arguments in _calls(inner, interface, batch):
            is_video = key == interface.video_key
            with _projector_input(interface, inner, pre_projector and is_video) as seen:
                output = _run(inner, method, arguments)
            if is_video:
                layouts = tuple(interface.layouts(model.config, arguments, frame_counts))
                if pre_projector:
                    features = tuple(interface.pre_projector(inner, seen[-1], layouts, arguments))
            outputs[key] = _light(output)
    if pixels and not outputs:
        raise ValueError(f"the call has {', '.join(pixels)}, which no features method of {type(inner).__name__} takes")
    return EncodedVideo(outputs, interface.video_key, layouts, features)


def encoders_learn(model: Any) -> bool:
    """Whether some parameter before the language model takes gradients, so that encoding must be part of the graph."""
    decoder = {id(p) for p in model.get_decoder().parameters()}
    return any(p.requires_grad and id(p) not in decoder for p in model.base_model.parameters())


def _calls(inner: Any, interface: VideoLLMInterface, batch: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(modality, features method, its arguments) of every kind of pixels in a batch."""
    methods = {"image": "get_image_features", "video": "get_video_features"}
    methods[interface.video_key] = interface.features_method
    for key, name in methods.items():
        if not hasattr(inner, name):
            continue
        given = interface.encoder_inputs(batch) if key == interface.video_key else dict(batch)
        # of the class: FSDP's register_fsdp_forward_method leaves a bound wrapper whose signature lacks the pixels
        known = inspect.signature(getattr(type(inner), name)).parameters
        arguments = {argument: value for argument, value in given.items() if argument in known and value is not None}
        if any(argument.startswith(PIXELS) for argument in arguments):
            yield key, name, arguments


def _run(inner: Any, method: str, arguments: dict[str, Any]) -> Any:
    hook = getattr(inner, "_hf_hook", None)  # accelerate's, which brings in weights that are elsewhere
    if hook is not None:
        _, arguments = hook.pre_forward(inner, **arguments)
    output = getattr(inner, method)(**arguments, return_dict=True)
    return output if hook is None else hook.post_forward(inner, output)


def _light(output: Any) -> Any:
    """Without the states of the tower's layers: most of the bytes, and nobody reads them behind the projector."""
    for states in {"last_hidden_state", "hidden_states", "attentions"} & set(output):
        output[states] = None
    return output


@contextlib.contextmanager
def _projector_input(interface: VideoLLMInterface, inner: Any, wanted: bool) -> Iterator[list[Tensor]]:
    """What enters the projector in this thread, by a hook that lives as long as the block."""
    seen: list[Tensor] = []
    thread = threading.get_ident()

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if threading.get_ident() == thread:
            seen.append(next(iter((*args, *kwargs.values()))))

    hook = interface.projector(inner).register_forward_pre_hook(keep, with_kwargs=True) if wanted else None
    try:
        yield seen
    finally:
        if hook is not None:
            hook.remove()
