"""The base's own features of a call's videos and images: made once, by the base's own methods, for any number of patches."""

from __future__ import annotations

import contextlib
import copy
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from pave.video_llms import VideoLayout, VideoLLMInterface, get_interface

PIXELS = "pixel_values"
"""What the names of all tensors of pixels begin with."""


@dataclass
class Features(BaseModelOutputWithPooling):
    """What a features method returns of videos, without the states of its tower: all that a base reads of it."""

    deepstack_features: Any = None
    """Per layer of the language model that adds some, as ``pooler_output`` holds the tokens."""


_PARTS = ("pooler_output", "deepstack_features")


class EncodedVideo:
    """What the base's encoders made of a call. Nobody changes it: keep it, and fuse it as often as you like.

    A plain class, as ``SideTokens`` is, so that wrappers that cast the floating tensors of a batch leave it alone.

    Args:
        outputs: by modality, as the base takes them in ``mm_encoder_outputs``: the videos, and images beside them.
        video_key: the modality that holds the videos ("image" where a family knows no other); not in ``outputs`` where there are
            none.
        layouts: of every video.
        pre_projector: per video (T * S, C), what enters the projector, where it was asked for.
        dtype: that the base computed in, and gets back in a call; None where nothing was rounded since.
    """

    __slots__ = ("dtype", "layouts", "outputs", "pre_projector", "video_key")

    def __init__(
        self,
        outputs: Mapping[str, Any],
        video_key: str,
        layouts: Sequence[VideoLayout] = (),
        pre_projector: Sequence[Tensor] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.outputs = dict(outputs)
        self.video_key = video_key
        self.layouts = tuple(layouts)
        self.pre_projector = None if pre_projector is None else tuple(pre_projector)
        self.dtype = dtype

    def __len__(self) -> int:
        return len(self.layouts)

    def __repr__(self) -> str:
        return f"EncodedVideo({len(self)} videos, {', '.join(self.outputs) or 'nothing'})"

    @property
    def has_videos(self) -> bool:
        return self.video_key in self.outputs

    def tensors(self) -> dict[str, Tensor]:
        """What was made of the videos, flat: by field, and number in it where that holds several."""
        output = self.outputs[self.video_key]
        parts = {name: getattr(output, name, None) for name in _PARTS} | {"pre_projector": self.pre_projector}
        return {name: tensor for field, value in parts.items() for name, tensor in _flat(field, value)}

    @classmethod
    def of_tensors(
        cls, tensors: Mapping[str, Tensor], video_key: str, layouts: Sequence[VideoLayout], dtype: torch.dtype | None
    ) -> EncodedVideo:
        """The inverse of ``tensors``."""
        parts = {field: _nested(field, tensors) for field in (*_PARTS, "pre_projector")}
        features = parts.pop("pre_projector")
        return cls({video_key: Features(**parts)}, video_key, layouts, features, dtype)

    @classmethod
    def join(cls, videos: Sequence[EncodedVideo]) -> EncodedVideo:
        """Several calls' videos as if they had been encoded in one, in order."""
        first = videos[0]
        outputs = [video.outputs[video.video_key] for video in videos]
        pooled = _joined([output.pooler_output for output in outputs])
        deep = [getattr(output, "deepstack_features", None) for output in outputs]
        layers = None if deep[0] is None else [_joined(layer) for layer in zip(*deep, strict=True)]
        features = [features for video in videos for features in video.pre_projector or ()]
        return cls(
            {first.video_key: Features(pooler_output=pooled, deepstack_features=layers)},
            first.video_key,
            [layout for video in videos for layout in video.layouts],
            features or None,
            first.dtype,
        )

    def to(
        self, device: torch.device | str | int, dtype: torch.dtype | None = None, non_blocking: bool = False
    ) -> EncodedVideo:
        """Move to a device; the dtype stays that of the storage unless one is given."""
        return self._map(lambda x: x.to(device, dtype or x.dtype, non_blocking=non_blocking))

    def pin_memory(self) -> EncodedVideo:
        """Called by ``DataLoader(pin_memory=True)``."""
        return self._map(lambda x: x.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> EncodedVideo:
        outputs = {}
        for key, output in self.outputs.items():
            outputs[key] = copy.copy(output)
            for field in _PARTS:
                if getattr(output, field, None) is not None:
                    setattr(outputs[key], field, _mapped(getattr(output, field), function))
        features = None if self.pre_projector is None else [function(x) for x in self.pre_projector]
        return EncodedVideo(outputs, self.video_key, self.layouts, features, self.dtype)


def _flat(name: str, value: Any) -> list[tuple[str, Tensor]]:
    if value is None or isinstance(value, Tensor):
        return [] if value is None else [(name, value)]
    return [pair for number, part in enumerate(value) for pair in _flat(f"{name}.{number}", part)]


def _nested(name: str, tensors: Mapping[str, Tensor]) -> Any:
    if name in tensors:
        return tensors[name]
    parts: list[Any] = []
    while any(key == f"{name}.{len(parts)}" or key.startswith(f"{name}.{len(parts)}.") for key in tensors):
        parts.append(_nested(f"{name}.{len(parts)}", tensors))
    return parts or None


def _joined(parts: Sequence[Any]) -> Any:
    return torch.cat(list(parts)) if isinstance(parts[0], Tensor) else tuple(tensor for part in parts for tensor in part)


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    return function(value) if isinstance(value, Tensor) else [_mapped(part, function) for part in value]


# --- encoding ---------------------------------------------------------------------------------------------------------


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
    layouts: Sequence[VideoLayout] = ()
    features: Sequence[Tensor] | None = None
    pixels = [name for name, value in batch.items() if name.startswith(PIXELS) and value is not None]
    with torch.set_grad_enabled(torch.is_grad_enabled() and bool(learning_parameters(model))):
        for key, method, arguments in _calls(inner, interface, batch):
            is_video = key == interface.video_key
            with _projector_input(interface, inner, pre_projector and is_video) as seen:
                output = _run(inner, method, arguments)
            if is_video:
                layouts = interface.layouts(model.config, arguments, frame_counts)
                if pre_projector:
                    features = interface.pre_projector(inner, seen[-1], layouts, arguments)
            outputs[key] = _light(output)
    if pixels and not outputs:
        raise ValueError(f"the call has {', '.join(pixels)}, which no features method of {type(inner).__name__} takes")
    return EncodedVideo(outputs, interface.video_key, layouts, features)


def _encoder_parameters(model: Any) -> dict[str, nn.Parameter]:
    """What stands before the language model."""
    decoder = {id(p) for p in model.get_decoder().parameters()}
    return {name: p for name, p in model.base_model.named_parameters() if id(p) not in decoder}


def learning_parameters(model: Any) -> list[str]:
    """The parameters before the language model that take gradients, so that encoding must be part of the graph."""
    head = model.get_output_embeddings()  # some families' inner model is the whole one
    patches = "pave_patches."
    own = set() if head is None else {id(p) for p in head.parameters()}
    named = _encoder_parameters(model).items()
    return [name for name, p in named if p.requires_grad and id(p) not in own and not name.startswith(patches)]


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


# --- features that are kept ---------------------------------------------------------------------------------------------


def check_vision_stored(model: Any, *, training: bool = False) -> None:
    """Refuse a base whose vision features cannot be stored.

    Args:
        model: a base, patched or not.
        training: whether parameters that take gradients would change.

    Raises:
        ValueError: if its family does not allow it, or what makes them is not that of its files: it has LoRA layers, or is trained.
    """
    reason = get_interface(model.config).vision_not_stored
    if reason:
        raise ValueError(
            f"the vision features of a base of type {model.config.model_type!r} cannot be stored: {reason}; run its vision tower "
            "(data.vision: tower)"
        )
    trained = [name for name in _encoder_parameters(model) if ".lora_" in name]
    trained += learning_parameters(model) if training else []
    if trained:
        raise ValueError(
            f"the vision tower is trained ({len(trained)} of the parameters before the language model, the first is {trained[0]!r}), so "
            "its features change and cannot be stored: take LoRA off it and freeze it, or run it in every step (data.vision: tower)"
        )


@torch.no_grad()
def encode_to_keep(
    model: Any, batch: Mapping[str, Any], *, frame_counts: Sequence[int] | None = None, pre_projector: bool = False
) -> EncodedVideo:
    """The features of a batch of videos as the frozen base makes them in evaluation mode, whatever mode it is in.

    Raises:
        ValueError: if the family does not allow it.
    """
    check_vision_stored(model)
    inner: nn.Module = model.base_model
    training = [module for module in inner.modules() if module.training]
    try:
        for module in training:
            module.training = False
        made = encode(model, batch, frame_counts=frame_counts, pre_projector=pre_projector)
    finally:
        for module in training:
            module.training = True
    made.dtype = next(iter(made.tensors().values())).dtype
    return made


def encoder_outputs(model: Any, encoded: EncodedVideo) -> dict[str, Any]:
    """``mm_encoder_outputs`` for one call of a base: its own code changes them in place, so they are copies."""
    ready = encoded.to(model.get_input_embeddings().weight.device, encoded.dtype)
    return {key: copy.copy(output) for key, output in ready.outputs.items()}
