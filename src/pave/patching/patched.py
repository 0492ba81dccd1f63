"""The class that a patched model is swapped to: ``forward`` and ``generate`` encode, fuse and hand over. ``attach`` says why so."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pave.config import PatchConfig
from pave.patching import lora
from pave.patching.branches import with_branches
from pave.patching.call import SideChannels, keep_rows, prepared, touched
from pave.patching.checkpoint import save_patch
from pave.patching.fuse import FrameTimes
from pave.patching.rows import (
    InSameRows,
    Patches,
    Plan,
    Selection,
    check_strength,
    current_rows,
    read_selection,
)
from pave.patching.slot import SLOTS, PatchSlot, base_state_dict, without_patches
from pave.video_llms import get_interface
from pave.video_llms.encode import EncodedVideo

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Override:
    """What holds for one model in one thread or task, for the time of a block."""

    strength: float | None = None
    patches: Any = None
    """A selection as a mapping, which None is not."""


_OVERRIDES: ContextVar[Mapping[int, _Override]] = ContextVar("pave_overrides")


@contextlib.contextmanager
def _overridden(owner: Any, **values: Any) -> Iterator[None]:
    overrides = _OVERRIDES.get({})
    token = _OVERRIDES.set({**overrides, id(owner): replace(overrides.get(id(owner), _Override()), **values)})
    try:
        yield
    finally:
        _OVERRIDES.reset(token)


def _override(owner: Any) -> _Override:
    return _OVERRIDES.get({}).get(id(owner), _Override())


class PatchedVideoLLM:
    """What a patched model can do beyond its base. Mixed into the base's own class."""

    _pave_base: type
    pave_strength: float
    pave_enabled_strength: float
    pave_selection: dict[str, Any] | None
    """Which patches act where a call says nothing, by name with strengths; None for all of them."""

    # --- which patches there are, and which act

    @property
    def patch_names(self) -> tuple[str, ...]:
        """Of the attached patches, in the order in which they were attached."""
        return tuple(getattr(self, SLOTS))

    @property
    def patch_configs(self) -> dict[str, PatchConfig]:
        """The config of every attached patch by name."""
        slots: Mapping[str, PatchSlot] = dict(getattr(self, SLOTS).items())
        return {name: slot.config for name, slot in slots.items()}

    @property
    def patch_config(self) -> PatchConfig:
        """The attached patch's config.

        Raises:
            ValueError: if there are several.
        """
        configs = self.patch_configs
        if len(configs) > 1:
            raise ValueError(f"the model carries several patches ({', '.join(configs)}); ask patch_configs for one of them")
        return next(iter(configs.values()))

    def select_patches(self, patches: Selection) -> None:
        """Which patches act where a call says nothing, until this is called again.

        Args:
            patches: a name, a mapping from names to strengths (or pairs of strengths: of the residual and of LoRA), or None for the base.

        Raises:
            ValueError: if a name is unknown or a strength is negative or not finite.
        """
        self.pave_selection = self._as_mapping(patches)

    def patches_selected(self, patches: Selection) -> contextlib.AbstractContextManager[None]:
        """``with model.patches_selected("hearing"):`` as ``select_patches``, in this thread or task only."""
        return _overridden(self, patches=self._as_mapping(patches))

    def _as_mapping(self, patches: Selection) -> dict[str, Any]:
        return {use.name: (use.strength, use.lora_strength) for use in read_selection(patches, self.patch_names)}

    @property
    def patch_strength(self) -> float:
        """Scales what every patch does: 1 as selected, 0 exactly the base. Set it, or use ``patch_scaled`` for one block."""
        override = _override(self).strength
        return self.pave_strength if override is None else override

    @patch_strength.setter
    def patch_strength(self, value: float) -> None:
        self.pave_strength = check_strength(value, "patch_strength")

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
        return _overridden(self, strength=0.0)

    def patch_scaled(self, strength: float) -> contextlib.AbstractContextManager[None]:
        """``with model.patch_scaled(0.5):`` scales residuals and LoRA updates, in this thread or task only."""
        return _overridden(self, strength=check_strength(strength, "patch_strength"))

    def selected_patches(self) -> dict[str, Any]:
        """Which patches act where a call says nothing, by name with strengths: those of ``patches_selected`` or ``select_patches``, else
        all as trained. What ``patch_strength`` says comes on top."""
        override = _override(self).patches
        chosen = self.pave_selection if override is None else override
        return dict.fromkeys(self.patch_names, 1.0) if chosen is None else dict(chosen)

    def plan(self, patches: Patches, num_rows: int) -> Plan:
        """Which patches act on which row of a call, how strongly.

        Args:
            patches: what the call says; None for ``selected_patches``.
            num_rows: of the batch.
        """
        said = self.selected_patches() if patches is None else patches
        return Plan.of(said, num_rows, self.patch_names, self.patch_strength)

    # --- calls

    @contextlib.contextmanager
    def patch_call(
        self,
        batch: Mapping[str, Any],
        side_channels: SideChannels | None = None,
        frame_times: FrameTimes | None = None,
        patches: Patches = None,
        vision_features: EncodedVideo | None = None,
        added_tokens: Tensor | None = None,
    ) -> Iterator[dict[str, Any]]:
        """For code that runs inner modules itself: what ``forward`` does around the base's own.

        Args:
            batch: the arguments of the call by name.
            side_channels: as ``forward`` takes them.
            frame_times: likewise.
            patches: likewise.
            vision_features: likewise.
            added_tokens: likewise.

        Yields:
            The arguments to call ``model.base_model`` with inside the block.
        """
        with prepared(self, batch, side_channels, frame_times, patches, vision_features, added_tokens) as call:
            yield call.inputs

    def save_pretrained(self, save_directory: Any, *args: Any, state_dict: Any = None, **kwargs: Any) -> Any:
        """Save the *base*, byte for byte as without patches, and each patch beside it under ``pave_patches/<name>``."""
        tensors = self.state_dict() if state_dict is None else state_dict  # type: ignore[attr-defined]
        with_adapters = getattr(self, "_hf_peft_config_loaded", False)  # then transformers saves those adapters, not the base
        kept = without_patches(tensors) if with_adapters else base_state_dict(tensors)
        super().save_pretrained(save_directory, *args, state_dict=kept, **kwargs)  # type: ignore[misc]
        if kwargs.get("is_main_process", True):
            folder = Path(save_directory) / SLOTS
            for name in self.patch_names:
                save_patch(self, folder / name, name=name)  # type: ignore[arg-type]
            logger.info("saved the base to %s and its patches (%s) to %s", save_directory, ", ".join(self.patch_names), folder)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Refuses a state dict without the patches' tensors, which a lenient load would skip in silence."""
        if not any(key.startswith(f"{SLOTS}.") or ".lora_" in key for key in state_dict):
            raise ValueError(
                "load_state_dict: the tensors hold no patch, but the model carries one; resume with PatchTrainer, or use "
                "load_patch on a base without a patch"
            )
        return super().load_state_dict(state_dict, strict=strict, assign=assign)  # type: ignore[misc]

    def set_adapter(self, adapter_name: str | list[str], *args: Any, **kwargs: Any) -> None:
        """PEFT's active adapter among its user's own. A patch's is never active: it would act on every row, and twice.

        Raises:
            ValueError: if the adapter is a patch's.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else adapter_name
        ours = [name for name in self.patch_names if lora.adapter_name(name) in names]
        if ours:
            raise ValueError(
                f"set_adapter: {lora.adapter_name(ours[0])!r} is the LoRA of a patch; choose patches by select_patches({ours[0]!r}) or by "
                "patches= in a call"
            )
        super().set_adapter(adapter_name, *args, **kwargs)  # type: ignore[misc]

    def enable_input_require_grads(self) -> None:
        """Called by activation checkpointing. Of the language model's embeddings only: transformers makes those of the vision
        tower require gradients too, and the frozen tower would be computed again and differentiated for nothing."""
        super().enable_input_require_grads()  # type: ignore[misc]
        wanted = self.get_input_embeddings()._forward_hooks  # type: ignore[attr-defined]
        for handle in getattr(self, "_require_grads_hooks", ()):
            if handle.id not in wanted:
                handle.remove()

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable[..., Any] = checkpoint, **settings: Any
    ) -> None:
        super()._set_gradient_checkpointing(enable, InSameRows(gradient_checkpointing_func), **settings)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = super().__reduce_ex__(protocol)
        return (_rebuild, (self._pave_base,), *state[2:])


# --- the class --------------------------------------------------------------------------------------------------------


@functools.cache
def patched_class(base: Any) -> type:
    """``base`` with ``PatchedVideoLLM`` before it, under its own name."""
    namespace: dict[str, Any] = {key: getattr(base, key) for key in ("__module__", "__qualname__", "__doc__")}
    namespace.update(_pave_base=base, forward=_forward_method(base), generate=_generate_method(base))
    return type(base.__name__, (PatchedVideoLLM, base), namespace)


def _rebuild(base: type) -> Any:
    cls: Any = patched_class(base)
    return cls.__new__(cls)


def _forward_method(base: Any) -> Any:
    original = base.forward
    signature = inspect.signature(original)
    parameters = list(signature.parameters.values())
    required = [p.name for p in parameters[1:] if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    at = len(parameters) - (parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)
    for name in ("branches", "vision_features", "patches", "added_tokens", "frame_times", "side_channels"):
        parameters.insert(at, inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None))

    @functools.wraps(original)
    def forward(
        self: Any,
        *args: Any,
        side_channels: Any = None,
        frame_times: Any = None,
        added_tokens: Any = None,
        patches: Any = None,
        vision_features: Any = None,
        branches: Any = None,
        **kwargs: Any,
    ) -> Any:
        running = current_rows()
        own = side_channels is None and patches is None and vision_features is None
        if own and running is not None and running.owner is self:
            return original(self, *args, **kwargs)  # a step of generate, or inside patch_call
        batch = dict(signature.bind_partial(self, *args, **kwargs).arguments)
        batch |= batch.pop("kwargs", {})
        del batch["self"]
        if branches is not None:
            batch = with_branches(self, branches, batch)
        with prepared(self, batch, side_channels, frame_times, patches, vision_features, added_tokens) as call:
            if call.encoded:
                call.inputs = {**dict.fromkeys(required), **call.inputs}  # some ask for pixels by position
            output = original(self, **call.inputs)
            if call.idle and self.training and torch.is_grad_enabled():
                output = touched(output, call.idle)
            keep_rows(output)
            return output

    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    forward.__doc__ = (original.__doc__ or "") + _ARGUMENTS
    return forward


_ARGUMENTS = """
        side_channels (`dict`, *optional*): tokens of each side channel (`SideTokens`, one row per video) by channel, or by patch and
            channel.
        frame_times (array, list or tensor of shape `(videos, frames)`, *optional*): seconds of the sampled frames, NaN-padded.
        added_tokens (`torch.LongTensor` of shape `(videos, tokens)`, *optional*): where the prompt has room for tokens that a patch adds,
            as `pave.lay_out_prompt` makes both; -1 behind the last.
        patches (*optional*): which patches act, for all rows or one entry a row: a name, a mapping from names to strengths, or None for
            the base. Default: those selected, else all.
        vision_features (`EncodedVideo`, *optional*): what the base made of the videos earlier, in place of their pixels.
        branches (`torch.LongTensor` of shape `(batch, tokens)`, *optional*): 0 where a token is seen by the whole row, else the number
            of the question that it belongs to, -1 at padding; questions do not see each other.
"""


def _generate_method(base: Any) -> Any:
    original = base.generate
    first = list(inspect.signature(original).parameters)[1]
    prompt = "input_ids" if first == "inputs" else first

    @functools.wraps(original)
    def generate(
        self: Any,
        inputs: Any = None,
        *args: Any,
        side_channels: Any = None,
        frame_times: Any = None,
        added_tokens: Any = None,
        patches: Any = None,
        vision_features: Any = None,
        **kwargs: Any,
    ) -> Any:
        batch = kwargs if inputs is None else {**kwargs, prompt: inputs}
        with prepared(self, batch, side_channels, frame_times, patches, vision_features, added_tokens) as call:
            if call.encoded:
                output = get_interface(self.config).generate(self, original, args, call.inputs)
            else:  # a few families have another first argument than the prompt: it is passed on only if given
                output = original(self, *(() if inputs is None else (inputs,)), *args, **kwargs)
            keep_rows(output)
            return output

    return generate
