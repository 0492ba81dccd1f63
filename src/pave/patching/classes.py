"""The classes that a patched model and its inner model are swapped to. ``attach_patch`` says why it is done this way."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pave.config import PatchConfig
from pave.patching.branches import with_branches
from pave.patching.call import CheckpointInCall, FrameTimes, PatchCall, current_call, strength_overridden, strength_override
from pave.patching.fuse import fuse, lengthen, put_newlines, touch_unused
from pave.patching.fuse import patch_call as _patch_call
from pave.patching.lengthen import at_given_positions
from pave.patching.slot import SLOTS
from pave.tokens import SideTokens
from pave.video_llms.vision import VisionFeatures, vision_played_back

logger = logging.getLogger(__name__)


class Swapped:
    """Common to both swapped classes: copies and pickles as itself."""

    _pave_base: type
    _pave_roles: tuple[str, bool, bool]

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = super().__reduce_ex__(protocol)
        return (_rebuild, (self._pave_base, *self._pave_roles), *state[2:])


class PatchedVideoLLM(Swapped):
    """What a patched model can do beyond its base. Mixed into the base's own class."""

    pave_strength: float
    pave_enabled_strength: float

    @property
    def patch_config(self) -> PatchConfig:
        """The attached patch's config."""
        return next(iter(getattr(self, SLOTS).values())).config

    @property
    def patch_strength(self) -> float:
        """How strongly the patch acts: 1 as trained, 0 exactly the base. Set it, or use ``patch_scaled`` for one block."""
        override = strength_override(self)  # type: ignore[arg-type]
        return self.pave_strength if override is None else override

    @patch_strength.setter
    def patch_strength(self, value: float) -> None:
        self.pave_strength = _checked_strength(value)

    def disable_patch(self) -> None:
        """Compute exactly what the base computes, until ``enable_patch``, or until ``patch_strength`` is set."""
        if self.pave_strength:
            self.pave_enabled_strength = self.pave_strength
        self.pave_strength = 0.0

    def enable_patch(self) -> None:
        """Act again at the strength from before ``disable_patch``; an enabled patch stays as it is."""
        if not self.pave_strength:
            self.pave_strength = self.pave_enabled_strength

    def patch_disabled(self) -> contextlib.AbstractContextManager[None]:
        """``with model.patch_disabled():`` computes exactly what the base computes, in this thread or task only."""
        return strength_overridden(self, 0.0)  # type: ignore[arg-type]

    def patch_scaled(self, strength: float) -> contextlib.AbstractContextManager[None]:
        """``with model.patch_scaled(0.5):`` scales residuals and LoRA updates, in this thread or task only."""
        return strength_overridden(self, _checked_strength(strength))  # type: ignore[arg-type]

    def patch_call(
        self,
        side_channels: Mapping[str, SideTokens] | None = None,
        frame_times: FrameTimes | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> contextlib.AbstractContextManager[PatchCall | None]:
        """For code that runs inner modules itself (``model.base_model(...)``): what ``forward`` sets up around a call."""
        return _patch_call(self, side_channels, frame_times, input_ids, attention_mask, labels)

    def save_pretrained(self, save_directory: Any, *args: Any, state_dict: Any = None, **kwargs: Any) -> Any:
        """Save the *base*, byte for byte as without the patch, and the patch beside it under ``pave_patches/<name>``."""
        from pave.patching.checkpoint import save_patch

        tensors = self.state_dict() if state_dict is None else state_dict  # type: ignore[attr-defined]
        super().save_pretrained(save_directory, *args, state_dict=base_state_dict(tensors), **kwargs)  # type: ignore[misc]
        folder = Path(save_directory) / SLOTS / next(iter(getattr(self, SLOTS)))
        if kwargs.get("is_main_process", True):
            save_patch(self, folder)  # type: ignore[arg-type]
            logger.info("saved the base to %s and its patch to %s", save_directory, folder)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Refuses a state dict without the patch's tensors, which a lenient load would skip in silence."""
        if not any(key.startswith(f"{SLOTS}.") or ".lora_" in key for key in state_dict):
            raise ValueError(
                "load_state_dict: the tensors hold no patch, but the model carries one; resume with PatchTrainer, or use "
                "load_patch on a base without a patch"
            )
        return super().load_state_dict(state_dict, strict=strict, assign=assign)  # type: ignore[misc]

    def enable_input_require_grads(self) -> None:
        """Called by activation checkpointing. Of the language model's embeddings only: transformers makes those of the vision
        tower require gradients too, and the frozen tower would be computed again and differentiated for nothing."""
        super().enable_input_require_grads()  # type: ignore[misc]
        wanted = self.get_input_embeddings()._forward_hooks  # type: ignore[attr-defined]
        for handle in getattr(self, "_require_grads_hooks", ()):
            if handle.id not in wanted:
                handle.remove()

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        super()._set_gradient_checkpointing(*args, **kwargs)  # type: ignore[misc]
        wrap_checkpointing(self)  # type: ignore[arg-type]


def _checked_strength(value: float) -> float:
    value = float(value)
    if not 0.0 <= value < float("inf"):
        raise ValueError(f"patch_strength must be a finite number that is not negative, got {value}")
    return value


@functools.cache
def _swapped_class(base: Any, method: str, outer: bool, inner: bool) -> type:
    namespace: dict[str, Any] = {key: getattr(base, key) for key in ("__module__", "__qualname__", "__doc__")}
    namespace.update(_pave_base=base, _pave_roles=(method, outer, inner))
    if inner:
        namespace[method] = _features_method(base, method)
    if outer:
        namespace.update(forward=_forward_method(base), generate=_generate_method(base))
    return type(base.__name__, (PatchedVideoLLM if outer else Swapped, base), namespace)


def swap_classes(model: Any, method: str) -> None:
    inner = model.base_model
    model.__class__ = _swapped_class(model.__class__, method, True, inner is model)
    if inner is not model:
        inner.__class__ = _swapped_class(inner.__class__, method, False, True)


def check_forward(model: Any) -> None:
    """Refuse a ``forward`` that something bound to the instance: it would go past the class that is swapped in or out.

    accelerate's hooks, which a base spread by ``device_map`` carries, are no obstacle: see ``rebind_forward``.

    Raises:
        ValueError: if there is one.
    """
    own = model.__dict__.get("_old_forward", model.__dict__.get("forward"))
    if own is not None and getattr(own, "__func__", None) is not type(model).forward:
        raise ValueError(
            f"the forward of this {type(model).__name__} was replaced on the instance (accelerator.prepare does that); attach and "
            "detach patches on the bare model, before it is prepared or after it is unwrapped"
        )


def rebind_forward(model: Any) -> None:
    """Let accelerate's hooks call the forward of the model's present class; they keep the one they found in ``_old_forward``."""
    if "_old_forward" in model.__dict__:
        model._old_forward = types.MethodType(type(model).forward, model)
        hooked: Any = functools.update_wrapper(model.forward, model._old_forward)
        hooked.__signature__ = inspect.signature(model._old_forward)


def _rebuild(base: type, method: str, outer: bool, inner: bool) -> Any:
    cls: Any = _swapped_class(base, method, outer, inner)
    return cls.__new__(cls)


def _forward_method(base: Any) -> Any:
    original = base.forward
    signature = inspect.signature(original)
    parameters = list(signature.parameters.values())
    at = len(parameters) - (parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)
    for name in ("branches", "vision_features", "frame_times", "side_channels"):
        parameters.insert(at, inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None))
    call_signature = signature

    @functools.wraps(original)
    def forward(
        self: Any,
        *args: Any,
        side_channels: Any = None,
        frame_times: Any = None,
        vision_features: Any = None,
        branches: Any = None,
        **kwargs: Any,
    ) -> Any:
        if branches is not None:
            given = call_signature.bind(self, *args, **kwargs).arguments
            further = given.pop("kwargs", {})
            args, kwargs = (), with_branches(self, branches, {**given, **further})
            del kwargs["self"]
        if vision_features is not None:
            with _played_back(self, vision_features, kwargs) as pixels:
                return forward(self, *args, side_channels=side_channels, frame_times=frame_times, **pixels)
        running = current_call()
        if side_channels is None and running is not None and running.owner is self:
            return original(self, *args, **kwargs)  # a step of generate, or inside patch_call
        given = call_signature.bind(self, *args, **kwargs).arguments
        named = {**given, **given.pop("kwargs", {})}
        del named["self"]
        prompt = (named.get("input_ids"), named.get("attention_mask"), named.get("labels"))
        with _patch_call(self, side_channels, frame_times, *prompt, named) as call:
            plan = lengthen(call, named)
            if plan is None:
                return touch_unused(call, original(self, *args, **kwargs))
            return at_given_positions(touch_unused(call, original(self, **plan.arguments)), plan, named)

    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    forward.__doc__ = (original.__doc__ or "") + _ARGUMENTS
    return forward


_ARGUMENTS = """
        side_channels (`dict[str, SideTokens]`, *optional*): tokens of each side channel, one row per video.
        frame_times (array, list or tensor of shape `(videos, frames)`, *optional*): seconds of the sampled frames, NaN-padded.
        vision_features (`VisionFeatures`, *optional*): stored frozen vision features of the videos, in place of their pixels.
        branches (`torch.LongTensor` of shape `(batch, tokens)`, *optional*): 0 where a token is seen by the whole row, else the number
            of the question that it belongs to, -1 at padding; questions do not see each other.
"""


def _generate_method(base: Any) -> Any:
    original = base.generate

    @functools.wraps(original)
    def generate(
        self: Any,
        inputs: Any = None,
        *args: Any,
        side_channels: Any = None,
        frame_times: Any = None,
        vision_features: Any = None,
        **kwargs: Any,
    ) -> Any:
        if vision_features is not None:
            with _played_back(self, vision_features, kwargs) as pixels:
                return generate(self, inputs, *args, side_channels=side_channels, frame_times=frame_times, **pixels)
        input_ids = kwargs.get("input_ids", inputs)
        with _patch_call(self, side_channels, frame_times, input_ids, kwargs.get("attention_mask"), None, kwargs) as call:
            plan = lengthen(call, {**kwargs, "input_ids": input_ids})
            if plan is None:  # a few families have another first argument than the prompt, so it is passed on only if given
                return original(self, *(() if inputs is None else (inputs,)), *args, **kwargs)
            output = original(self, None, *args, **plan.arguments)
            if isinstance(output, Tensor):
                return plan.shrink(output)
            output.sequences = plan.shrink(output.sequences)
            return output

    return generate


@contextlib.contextmanager
def _played_back(model: Any, features: Any, arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The arguments of a call with stored vision features in place of pixels."""
    if not isinstance(features, VisionFeatures):
        raise ValueError(f"vision_features: expected VisionFeatures, got {type(features).__name__}")
    given = [name for name, value in arguments.items() if name.startswith("pixel_values") and value is not None]
    if given:
        raise ValueError(f"vision_features stand in place of pixels, but {given[0]} was given as well; pass one of them")
    with vision_played_back(model, features) as pixels:
        yield {**arguments, **pixels}


def _features_method(base: Any, name: str) -> Any:
    original = getattr(base, name)
    signature = inspect.signature(original)

    @functools.wraps(original)
    def features(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        call = current_call()
        if call is None or call.owner.base_model is not self:
            return output
        bound = signature.bind(self, *args, **kwargs).arguments
        arguments = {**bound, **bound.pop("kwargs", {})}
        fuse(call, self, output, arguments)
        put_newlines(call, output, arguments)
        return output

    return features


def capture_projector_input(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    call = current_call()
    if call is not None and call.side_channels:
        call.captured = next(iter((*args, *kwargs.values())))


def cut_vocabulary(head: nn.Module, args: tuple[Any, ...], logits: Tensor) -> None:
    """A hook on the output embeddings: -inf for ids that the patch's ``vocabulary`` leaves out, in place.

    The softmax over the rest is then that of a head cut to ``vocabulary`` rows, in the loss and in decoding. Logits keep
    their shape, because the base's own loss flattens them by the vocabulary size of its config.
    """
    call = current_call()
    if call is not None and call.strength != 0.0:
        model: Any = call.owner
        if model.patch_config.vocabulary is not None:
            logits[..., model.patch_config.vocabulary :] = float("-inf")


def wrap_checkpointing(model: nn.Module) -> None:
    for module in model.modules():
        function = module.__dict__.get("_gradient_checkpointing_func")
        if function is not None and not isinstance(function, CheckpointInCall):
            module._gradient_checkpointing_func = CheckpointInCall(function)  # type: ignore[assignment]


def base_state_dict(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The base's own tensors under the base's own names, out of a patched model's state dict."""
    return {
        key.replace(".base_layer.", "."): value
        for key, value in tensors.items()
        if not key.startswith(f"{SLOTS}.") and ".lora_" not in key
    }
