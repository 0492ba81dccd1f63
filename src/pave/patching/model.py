"""Attach a patch to a base model in place, and take it off again.

The mechanism: the *class* of the model and of its inner model is swapped for a cached dynamic subclass with the same name.
The outer subclass gives ``forward`` and ``generate`` the arguments ``side_channels`` and ``frame_times``; the inner one
lets the video features meet the side channels. Modules of the patch are looked up through the module tree at call time.
What this buys over the alternatives (hooks, instance wrappers, a wrapping module):

- ``isinstance``, ``generate``, ``config``, ``from_pretrained`` names and the Trainer's inspection of the signature work as
  for the base: the default Trainer drops columns that the signature does not name, so a keyword hook would lose them.
- deepcopy, pickling, FSDP and PEFT, which copy or replace submodules, never leave a stale reference behind.
- detaching restores the very class; nothing was wrapped.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import nn

from pave.config import PatchConfig
from pave.patching import lora
from pave.patching.call import CheckpointInCall
from pave.patching.classes import (
    PatchedVideoLLM,
    Swapped,
    capture_projector_input,
    check_forward,
    cut_vocabulary,
    rebind_forward,
    swap_classes,
    wrap_checkpointing,
)
from pave.patching.slot import SLOTS, PatchSlot
from pave.video_llms import VideoLLMInterface, get_interface

_Model = TypeVar("_Model", bound=nn.Module)


# --- attach and detach ----------------------------------------------------------------------------------------------


def attach_patch(model: _Model, config: PatchConfig, name: str = "default", seed: int = 0) -> _Model:
    """Attach a fresh patch to a base model, in place. Until it is trained, the model computes exactly what it did.

    Afterwards only the patch's parameters require gradients, and ``model(**batch, side_channels={"audio": SideTokens},
    frame_times=...)`` and ``model.generate`` with the same arguments use the side channels.

    Args:
        model: a Video LLM of transformers (a ``...ForConditionalGeneration``).
        config: what to attach. ``newline: grid`` needs a base with a newline embedding, ``vocabulary`` at most its head's rows.
        name: name of the patch, an identifier; it names the slot and the LoRA adapter.
        seed: of the fresh weights; the global random state is left alone.

    Returns:
        The same object.

    Raises:
        ValueError: if the family is unknown, the model carries a patch already, its ``forward`` was replaced on the instance,
            a LoRA target does not exist, or a channel adds tokens to the prompt on a family where that is not described.
    """
    if is_patched(model):
        raise ValueError(f"the model already carries the patch {patch_name(model)!r}; call detach_patch(model) first")
    check_name("name", name)
    for channel in config.side_channels:
        check_name("side_channels", channel)
    check_base(model)
    check_forward(model)
    base: Any = model
    interface = get_interface(base.config)
    longer = [c.fusion.kind for c in config.side_channels.values() if c.fusion.adds_llm_tokens]
    if longer and not interface.lengthens_prompt:
        raise ValueError(
            f"fusion.kind {longer[0]!r} adds tokens to the prompt, which is not described for base models of type "
            f"{base.config.model_type!r}; use cross_attention"
        )
    trainable = [path for path, p in model.named_parameters() if p.requires_grad]
    if config.lora is not None:
        lora.target_regex(model, config.lora)  # refuse before anything is touched
    _check_prompt_settings(base, config, interface)
    try:
        _put_on(base, config, name, seed, trainable, interface)
    except BaseException:  # out of memory, for instance
        _take_off(base, name, trainable)
        raise
    return model


def _put_on(base: Any, config: PatchConfig, name: str, seed: int, trainable: list[str], interface: VideoLLMInterface) -> None:
    """Everything that changes the model. What this does, all or part of it, ``_take_off`` undoes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        slot = build_slot(base.config, config)
        base.requires_grad_(False)
        if config.lora is not None:
            always = not config.side_channels or config.missing_channel == "lora_only"
            lora.inject(base, name, config.lora, default_weight=1.0 if always else 0.0)
    embeddings = base.get_input_embeddings().weight
    if embeddings.device.type != "meta":
        slot = slot.to(embeddings.device)
    base.add_module(SLOTS, nn.ModuleDict({name: slot}).train(base.training))
    base.pave_strength = base.pave_enabled_strength = 1.0
    base.pave_base_trainable = trainable
    swap_classes(base, interface.features_method)
    rebind_forward(base)
    for parameter in patch_parameters(base):
        parameter.requires_grad_(True)
    if slot.needs_pre_projector():
        projector = interface.projector(base.base_model)
        base.pave_hook = projector.register_forward_pre_hook(capture_projector_input, with_kwargs=True)
    wrap_checkpointing(base)
    if config.vocabulary is not None:
        base.pave_vocabulary_hook = base.get_output_embeddings().register_forward_hook(cut_vocabulary)


def _check_prompt_settings(base: Any, config: PatchConfig, interface: Any) -> None:
    if config.newline == "grid" and interface.newline(base.base_model) is None:
        raise ValueError(
            f"newline: bases of type {base.config.model_type!r} have no newline embedding; only 'base' is possible"
        )
    if config.vocabulary is not None:
        rows = base.get_output_embeddings().weight.shape[0]
        if config.vocabulary > rows:
            raise ValueError(f"vocabulary: the patch chooses from {config.vocabulary} ids, but the base's head has {rows} rows")


def detach_patch(model: _Model) -> _Model:
    """Take the patch off again: the very class, modules, parameters and ``requires_grad`` flags of the base.

    Raises:
        ValueError: if the model carries no patch, or its ``forward`` was replaced on the instance since it was attached.
    """
    name = patch_name(model)
    check_forward(model)
    base: Any = model
    _take_off(base, name, base.pave_base_trainable)
    return model


def _take_off(base: Any, name: str, trainable: Iterable[str]) -> None:
    """Undo ``_put_on``, wherever it stopped."""
    lora.remove(base, name)
    for swapped in (base, base.base_model):
        if isinstance(swapped, Swapped):
            swapped.__class__ = type(swapped)._pave_base
    rebind_forward(base)
    module: Any
    for module in base.modules():
        function = getattr(module, "_gradient_checkpointing_func", None)
        if isinstance(function, CheckpointInCall):
            module._gradient_checkpointing_func = function.function
    if SLOTS in base._modules:
        delattr(base, SLOTS)
    for hook in ("pave_hook", "pave_vocabulary_hook"):
        handle = base.__dict__.pop(hook, None)
        if handle is not None:
            handle.remove()
    for attribute in ("pave_strength", "pave_enabled_strength", "pave_base_trainable"):
        base.__dict__.pop(attribute, None)
    _restore_flags(base, trainable)


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


def build_slot(base_config: Any, config: PatchConfig) -> PatchSlot:
    """The fusion modules of a patch for a base, by the two configs alone; on the current default device."""
    interface = get_interface(base_config)
    return PatchSlot(
        config,
        llm_width=interface.llm_width(base_config),
        pre_projector_width=interface.pre_projector_width(base_config),
    )


def check_name(what: str, name: str) -> None:
    """Refuse a name of a patch or a channel that no submodule can have."""
    if not name.isidentifier() or hasattr(nn.ModuleDict(), name):
        reason = "is taken by torch" if name.isidentifier() else "must be a Python identifier"
        raise ValueError(f"{what}: a name of a patch or channel {reason}, got {name!r}; choose another one")


def _restore_flags(model: nn.Module, trainable: Iterable[str]) -> None:
    """Require gradients of exactly these parameters."""
    chosen = set(trainable)
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(path in chosen)


def is_patched(model: nn.Module) -> bool:
    """True if a patch is attached to ``model`` itself."""
    return isinstance(model, PatchedVideoLLM)


def patch_name(model: nn.Module) -> str:
    """The name of the attached patch.

    Raises:
        ValueError: if there is none.
    """
    if not is_patched(model):
        raise ValueError(f"this {type(model).__name__} carries no patch; call attach_patch or load_patch first")
    return next(iter(getattr(model, SLOTS)))


def patch_slot(model: nn.Module) -> PatchSlot:
    """The fusion modules of the attached patch."""
    slot: PatchSlot = getattr(model, SLOTS)[patch_name(model)]
    return slot


def patch_parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The trainable parameters by role: "fusion", "output_norm", "gate", "lora". Disjoint and complete."""
    groups: dict[str, list[nn.Parameter]] = {"fusion": [], "output_norm": [], "gate": []}
    fusion: Any
    for fusion in patch_slot(model).fusions.values():
        for role, parameters in fusion.parameter_groups().items():
            groups[role] += parameters
    groups["lora"] = lora.parameters(model, patch_name(model))
    return groups


def patch_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Every trainable parameter of the patch."""
    return [p for group in patch_parameter_groups(model).values() for p in group]
