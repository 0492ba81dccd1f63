"""Attach patches to a base model in place, and take them off again.

The mechanism: the *class* of the model is swapped for a cached dynamic subclass with the same name, whose ``forward`` and ``generate``
take ``side_channels``, ``frame_times`` and ``patches``, have the base encode the videos, add what the patches make of the side
channels, and hand the result over as ``mm_encoder_outputs``. Nothing below is touched but the linear layers that carry LoRA.
Modules of a patch are looked up through the module tree at call time. What this buys over the alternatives (hooks, instance
wrappers, a wrapping module):

- ``isinstance``, ``generate``, ``config``, ``from_pretrained`` names and the Trainer's inspection of the signature work as
  for the base: the default Trainer drops columns that the signature does not name, so a keyword hook would lose them.
- deepcopy, pickling, FSDP and PEFT, which copy or replace submodules, never leave a stale reference behind.
- detaching the last patch restores the very class; nothing was wrapped.
"""

from __future__ import annotations

import functools
import inspect
import types
from typing import Any, TypeVar

import torch
from torch import nn

from pave.config import PatchConfig
from pave.patching import lora
from pave.patching.lookup import is_patched, patch_name, patch_names
from pave.patching.patched import calls_under_way, cut_vocabulary, patched_class
from pave.patching.rows import InSameRows
from pave.patching.slot import SLOTS, PatchSlot, check_name
from pave.video_llms import VideoLLMInterface, get_interface

_Model = TypeVar("_Model", bound=nn.Module)


# --- attach and detach ------------------------------------------------------------------------------------------------


def attach_patch(model: _Model, config: PatchConfig, name: str = "default", seed: int = 0) -> _Model:
    """Attach a fresh patch to a base model, in place. Until it is trained, the model computes exactly what it did.

    Afterwards only patches' parameters require gradients, and ``model(**batch, side_channels={"audio": SideTokens},
    frame_times=...)`` and ``model.generate`` with the same arguments use the side channels. Several patches may be attached one
    after the other; ``patches=`` says in a call which of them act on which row.

    Args:
        model: a Video LLM of transformers (a ``...ForConditionalGeneration``), with patches or without.
        config: what to attach. ``newline: grid`` needs a base with a newline embedding, ``vocabulary`` at most its head's rows.
        name: name of the patch, an identifier; it names the slot and the LoRA adapter.
        seed: of the fresh weights; the global random state is left alone.

    Returns:
        The same object.

    Raises:
        ValueError: if the family is unknown, the model carries a patch of that name already, its ``forward`` was replaced on the
            instance, a LoRA target does not exist, or a channel adds tokens to the prompt on a family where that is not described.
    """
    lora.check_model(model)
    check_base(model)
    if name in patch_names(model):
        raise ValueError(
            f"the model already carries a patch {name!r}; call detach_patch(model, {name!r}) first, or give this one another name"
        )
    check_name("name", name)
    for channel in config.side_channels:
        check_name("side_channels", channel)
    check_forward(model)
    base: Any = model
    interface = get_interface(base.config)
    _check_prompt_settings(base, config, interface)
    if config.lora is not None:
        lora.target_regex(model, config.lora)  # refuse before anything is touched
    try:
        _put_on(base, config, name, seed)
    except BaseException:  # out of memory, for instance
        _take_off(base, name)
        raise
    return model


def _put_on(base: Any, config: PatchConfig, name: str, seed: int) -> None:
    """Everything that changes the model. What this does, all or part of it, ``_take_off`` undoes."""
    trainable = [path for path, p in base.named_parameters() if p.requires_grad]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        slot = build_slot(base.config, config)
        if config.lora is not None:
            lora.inject(base, name, config.lora)
    if not is_patched(base):
        _swap_class(base, trainable)
    embeddings = base.get_input_embeddings().weight
    if embeddings.device.type != "meta":
        slot = slot.to(embeddings.device)
    getattr(base, SLOTS)[name] = slot.train(base.training)
    if config.vocabulary is not None and "pave_vocabulary_hook" not in base.__dict__:
        base.pave_vocabulary_hook = base.get_output_embeddings().register_forward_hook(cut_vocabulary)


def _check_prompt_settings(base: Any, config: PatchConfig, interface: VideoLLMInterface) -> None:
    longer = [c.fusion.kind for c in config.side_channels.values() if c.fusion.adds_llm_tokens]
    if longer and not interface.lengthens_prompt:
        raise ValueError(
            f"fusion.kind {longer[0]!r} adds tokens to the prompt, which is not described for base models of type "
            f"{base.config.model_type!r}; use cross_attention"
        )
    if config.newline == "grid" and interface.newline(base.base_model) is None:
        raise ValueError(
            f"newline: bases of type {base.config.model_type!r} have no newline embedding; only 'base' is possible"
        )
    if config.vocabulary is not None:
        rows = base.get_output_embeddings().weight.shape[0]
        if config.vocabulary > rows:
            raise ValueError(f"vocabulary: the patch chooses from {config.vocabulary} ids, but the base's head has {rows} rows")


def _swap_class(base: Any, trainable: list[str]) -> None:
    swapped = patched_class(base.__class__)  # all that can fail comes first
    own = {id(p) for p in _lora_parameters(base)}
    for parameter in base.parameters():
        if id(parameter) not in own:
            parameter.requires_grad_(False)
    base.add_module(SLOTS, nn.ModuleDict().train(base.training))
    base.pave_base_trainable = trainable
    base.pave_strength = base.pave_enabled_strength = 1.0
    base.pave_selection = None
    base.__class__ = swapped
    rebind_forward(base)
    for module in base.modules():
        function = module.__dict__.get("_gradient_checkpointing_func")
        if function is not None and not isinstance(function, InSameRows):
            module._gradient_checkpointing_func = InSameRows(function)


def _lora_parameters(base: Any) -> list[nn.Parameter]:
    """Of patches whose LoRA is in place."""
    return [p for path, p in base.named_parameters() if ".lora_" in path and f".{lora.PREFIX}" in path]


def unload_patch(model: _Model, name: str) -> _Model:
    """Take one patch off again and free its memory; the others stay.

    Raises:
        ValueError: if the model carries no patch of that name.
    """
    return detach_patch(model, name)


def detach_patch(model: _Model, name: str | None = None) -> _Model:
    """Take a patch off again, or all of them; behind the last one come the very class, modules, parameters and ``requires_grad``
    flags of the base.

    Args:
        model: a patched model.
        name: of the patch; None takes off all there are.

    Raises:
        ValueError: if the model carries no patch (of that name), a call of it is under way, or its ``forward`` was replaced on the
            instance since then.
    """
    names = list(patch_names(model)) if name is None else [patch_name(model, name)]
    if not names:
        patch_name(model)  # says that there is none
    check_forward(model)
    running = calls_under_way(model)
    if running:
        raise ValueError(
            f"{running} call(s) of this model are under way and may use the patch; take it off when they have ended"
        )
    base: Any = model
    for each in names:
        _take_off(base, each)
    return model


def _take_off(base: Any, name: str) -> None:
    """Undo ``_put_on``, wherever it stopped."""
    lora.remove(base, name)
    if not is_patched(base):
        return
    slots = getattr(base, SLOTS)
    if name in slots:
        del slots[name]
    if base.pave_selection is not None:
        base.pave_selection.pop(name, None)
    if "pave_vocabulary_hook" in base.__dict__ and all(c.vocabulary is None for c in base.patch_configs.values()):
        base.pave_vocabulary_hook.remove()
        del base.pave_vocabulary_hook
    if not base.patch_names:
        _swap_back(base)


def check_base(model: Any) -> None:
    """Refuse what cannot carry a patch: a text model, a model without its head, anything that transformers did not make.

    Raises:
        ValueError: saying what was found and what is needed.
    """
    config = getattr(model, "config", None)
    kind = type(model).__name__
    if not isinstance(model, nn.Module) or getattr(config, "model_type", None) is None:
        raise ValueError(f"a patch goes on a Video LLM of transformers, and this {kind} is none")
    get_interface(config)
    if getattr(model, "get_output_embeddings", lambda: None)() is None:
        raise ValueError(f"this {kind} has no head that chooses tokens; load the base with AutoModelForImageTextToText")


def _swap_back(base: Any) -> None:
    base.__class__ = type(base)._pave_base
    rebind_forward(base)
    for module in base.modules():
        function = module.__dict__.get("_gradient_checkpointing_func")
        if isinstance(function, InSameRows):
            module._gradient_checkpointing_func = function.function
    delattr(base, SLOTS)
    trainable = set(base.pave_base_trainable)
    for path, parameter in base.named_parameters():
        if path in trainable:
            parameter.requires_grad_(True)
    del base.pave_strength, base.pave_enabled_strength, base.pave_selection, base.pave_base_trainable


def build_slot(base_config: Any, config: PatchConfig) -> PatchSlot:
    """The fusion modules of a patch for a base, by the two configs alone; on the current default device."""
    interface = get_interface(base_config)
    return PatchSlot(
        config,
        llm_width=interface.llm_width(base_config),
        pre_projector_width=interface.pre_projector_width(base_config),
    )


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
