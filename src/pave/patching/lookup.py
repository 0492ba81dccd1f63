"""Which patches a model carries, and what belongs to each."""

from __future__ import annotations

from typing import Any

from torch import nn

from pave.patching import lora
from pave.patching.slot import SLOTS, PatchSlot


def is_patched(model: nn.Module) -> bool:
    """True if a patch is attached to ``model`` itself."""
    return hasattr(type(model), "_pave_base")  # what `patched_class` puts on the classes that it makes


def patch_names(model: nn.Module) -> tuple[str, ...]:
    """The names of the attached patches, in the order in which they were attached."""
    return tuple(getattr(model, SLOTS)) if is_patched(model) else ()


def patch_name(model: nn.Module, name: str | None = None) -> str:
    """The name of an attached patch.

    Args:
        model: a patched model.
        name: the one that is meant; None where there is only one.

    Raises:
        ValueError: if there is none (of that name), or several and none is named.
    """
    names = patch_names(model)
    if not names:
        raise ValueError(f"this {type(model).__name__} carries no patch; call attach_patch or load_patch first")
    if name is None and len(names) > 1:
        raise ValueError(f"the model carries several patches ({', '.join(names)}); say by name which one is meant")
    if name is not None and name not in names:
        raise ValueError(f"the model carries no patch {name!r}; attached: {', '.join(names)}")
    return names[0] if name is None else name


def patch_slot(model: nn.Module, name: str | None = None) -> PatchSlot:
    """The fusion modules of an attached patch, named where there are several."""
    slot: PatchSlot = getattr(model, SLOTS)[patch_name(model, name)]
    return slot


def patch_parameter_groups(model: nn.Module, name: str | None = None) -> dict[str, list[nn.Parameter]]:
    """The trainable parameters of a patch by role: "fusion", "output_norm", "gate", "lora". Disjoint and complete."""
    groups: dict[str, list[nn.Parameter]] = {"fusion": [], "output_norm": [], "gate": []}
    fusion: Any
    for fusion in patch_slot(model, name).fusions.values():
        for role, parameters in fusion.parameter_groups().items():
            groups[role] += parameters
    groups["lora"] = lora.parameters(model, patch_name(model, name))
    return groups


def patch_parameters(model: nn.Module, name: str | None = None) -> list[nn.Parameter]:
    """Every trainable parameter of a patch, named where there are several."""
    return [p for group in patch_parameter_groups(model, name).values() for p in group]
