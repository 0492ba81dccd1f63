"""The frozen vision features of a base: taken while it encodes a video, and played back in place of its vision tower.

What is stored is what enters the projector (of Qwen3-VL also what enters the mergers of its deepstack features). Everything from
there on - projector, pooling, newline, order of windows - is the base's own code on the base's own weights, in every call. The
tower's forward is replaced for the time of a call only, and only for the thread or task that makes it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pave.video_llms import VideoLLMInterface, get_interface

Pixels = tuple[tuple[int, ...], torch.dtype]
"""Shape and dtype of a tensor of pixels."""


class VisionFeatures:
    """The frozen vision features of a batch of videos, which a patched model takes in place of pixels.

    A plain class, as ``SideTokens`` is, so that wrappers that cast the floating tensors of a batch leave it alone.

    Args:
        videos: per video, what enters each of the modules of ``VideoLLMInterface.vision_points``, in any floating dtype.
        dtype: that the base computed them in and gets them back in.
        pixels: by the base's argument, shape and dtype of the pixels that they stand for.
    """

    __slots__ = ("dtype", "pixels", "videos")

    def __init__(self, videos: Sequence[tuple[Tensor, ...]], dtype: torch.dtype, pixels: Mapping[str, Pixels]) -> None:
        self.videos = list(videos)
        self.dtype = dtype
        self.pixels = dict(pixels)

    def __len__(self) -> int:
        return len(self.videos)

    def __repr__(self) -> str:
        shapes = [[tuple(x.shape) for x in video] for video in self.videos]
        return f"VisionFeatures({len(self)} videos, {shapes}, for {', '.join(self.pixels)})"

    def _map(self, function: Callable[[Tensor], Tensor]) -> VisionFeatures:
        return VisionFeatures([tuple(map(function, video)) for video in self.videos], self.dtype, self.pixels)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> VisionFeatures:
        """Move to a device. The dtype stays that of the storage."""
        return self._map(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> VisionFeatures:
        """Called by ``DataLoader(pin_memory=True)``."""
        return self._map(lambda x: x.pin_memory())


class _Taken(Exception):
    """Everything was recorded; the rest of the forward pass is not needed."""


class _Playback:
    """One call that stored features are played back in."""

    def __init__(self, inner: nn.Module, features: VisionFeatures, interface: VideoLLMInterface) -> None:
        self.inner, self.features, self.interface = inner, features, interface
        self.used = False

    def input(self, point: int, like: Tensor) -> Tensor:
        self.used = True
        videos = [video[point].to(like.device, self.features.dtype) for video in self.features.videos]
        # where generate repeats the pixels for beams before the base encodes them, the stand-in has as many pictures
        copies = like.shape[0] // sum(len(video) for video in videos) if self.interface.encodes_after_beams else 1
        return torch.cat([video for video in videos for _ in range(copies)], dim=self.interface.vision_axis)


_PLAYBACK: ContextVar[_Playback | None] = ContextVar("pave_vision_playback", default=None)
_LOCK = threading.Lock()
_PREPARED: WeakKeyDictionary[nn.Module, tuple[int, contextlib.ExitStack]] = WeakKeyDictionary()
"""Inner models whose tower can be skipped at present: how many calls are under way, and what undoes it."""


def why_vision_is_not_stored(model: Any) -> str | None:
    """One clause that says why stored vision features cannot take the place of this base's pixels; None if they can."""
    interface = get_interface(model.config)
    return None if interface.vision_stand_ins(model.base_model) else interface.vision_not_stored


def check_vision_stored(model: Any, *, training: bool = False) -> None:
    """Refuse a base whose vision features cannot be stored.

    Args:
        model: a base, patched or not.
        training: whether parameters that take gradients would change.

    Raises:
        ValueError: if its family does not allow it, or its tower is not that of its files: it has LoRA layers, or is trained.
    """
    reason = why_vision_is_not_stored(model)
    if reason is not None:
        raise ValueError(
            f"the vision features of a base of type {model.config.model_type!r} cannot be stored: {reason}; run its vision tower "
            "(data.vision: tower)"
        )
    towers = get_interface(model.config).vision_stand_ins(model.base_model)
    named = [pair for module in towers for pair in module.named_parameters()]
    trained = [name for name, p in named if ".lora_" in name or (training and p.requires_grad)]
    if trained:
        raise ValueError(
            f"the vision tower is trained ({len(trained)} of its parameters, the first is {trained[0]!r}), so its features change and "
            "cannot be stored: take LoRA off it and freeze it, or run it in every step (data.vision: tower)"
        )


@torch.no_grad()
def take_vision(model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Run the base on a batch up to its projector and return what the frozen tower hands on.

    Args:
        model: a base, patched or not.
        batch: what its processor makes of a prompt with one video.

    Returns:
        A tensor for each of ``VideoLLMInterface.vision_points``.

    Raises:
        ValueError: if the family does not allow it.
    """
    check_vision_stored(model)
    inner: nn.Module = model.base_model
    points = get_interface(model.config).vision_points(inner)
    taken: dict[int, Tensor] = {}

    def hook(point: int) -> Any:
        def take(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            taken[point] = next(iter((*args, *kwargs.values()))).clone()
            if point + 1 == len(points):
                raise _Taken

        return take

    training = [module for module in inner.modules() if module.training]
    with contextlib.ExitStack() as undo:
        for point, module in enumerate(points):
            undo.callback(module.register_forward_pre_hook(hook(point), with_kwargs=True).remove)
        for module in training:
            module.training = False
            undo.callback(setattr, module, "training", True)
        undo.enter_context(contextlib.suppress(_Taken))
        model(**batch)
    assert len(taken) == len(points)
    return tuple(taken[point] for point in range(len(points)))


@contextlib.contextmanager
def vision_played_back(model: Any, features: VisionFeatures) -> Iterator[dict[str, Tensor]]:
    """For the time of the block, the base encodes these videos, whatever pixels it gets, and does not run its vision tower.

    ``forward`` and ``generate`` of a patched model do this themselves with the argument ``vision_features``.

    Args:
        model: a base, patched or not.
        features: of the videos.

    Yields:
        Tensors to pass in place of the pixels; they hold one number each, whatever their shape.

    Raises:
        ValueError: if the family does not allow it, or no video was encoded in the block.
    """
    check_vision_stored(model, training=torch.is_grad_enabled())
    inner: nn.Module = model.base_model
    interface = get_interface(model.config)
    some = next(next(iter(interface.vision_stand_ins(inner))).parameters())
    pixels = {
        name: torch.zeros((), dtype=some.dtype if some.is_floating_point() else dtype, device=some.device).expand(shape)
        for name, (shape, dtype) in features.pixels.items()
    }
    playback = _Playback(inner, features, interface)
    with _prepared(inner, interface):
        token = _PLAYBACK.set(playback)
        try:
            yield pixels
        finally:
            _PLAYBACK.reset(token)
    if not playback.used:
        raise ValueError(
            "vision_features were given, but no video was encoded in this call; pass the prompt with the video's placeholders, or leave "
            "vision_features out"
        )


@contextlib.contextmanager
def _prepared(inner: nn.Module, interface: VideoLLMInterface) -> Iterator[None]:
    """Calls of several threads may overlap: the first puts the stand-ins into place, the last takes them away."""
    with _LOCK:
        count, undo = _PREPARED.get(inner, (0, contextlib.ExitStack()))
        if not count:
            _prepare(inner, interface, undo)
        _PREPARED[inner] = count + 1, undo
    try:
        yield
    finally:
        with _LOCK:
            count, undo = _PREPARED.pop(inner)
            if count > 1:
                _PREPARED[inner] = count - 1, undo
            else:
                undo.close()


def _prepare(inner: nn.Module, interface: VideoLLMInterface, undo: contextlib.ExitStack) -> None:
    for module, stand_in in interface.vision_stand_ins(inner).items():
        before = vars(module).get("forward")  # accelerate's hooks stand there
        module.forward = _forward(inner, module.forward, stand_in)
        undo.callback(setattr, module, "forward", before) if before else undo.callback(vars(module).pop, "forward")
    for point, module in enumerate(interface.vision_points(inner)):
        hook = _replace_input(inner, point)
        # first, so that hooks which read the input see the stored one
        undo.callback(module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True).remove)


def _forward(inner: nn.Module, original: Callable[..., Any], stand_in: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        playback = _PLAYBACK.get()
        mine = playback is not None and playback.inner is inner
        return stand_in(*args, **kwargs) if mine else original(*args, **kwargs)

    return forward


def _replace_input(inner: nn.Module, point: int) -> Any:
    def replace(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        playback = _PLAYBACK.get()
        if playback is None or playback.inner is not inner:
            return None
        if args:
            return (playback.input(point, args[0]), *args[1:]), kwargs
        name = next(iter(kwargs))
        return args, {**kwargs, name: playback.input(point, kwargs[name])}

    return replace
