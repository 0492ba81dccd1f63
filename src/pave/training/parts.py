"""Training some parts of a patch, while the others stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pave.config import PatchConfig
from pave.patching import patch_parameter_groups, patch_slot


def check_parts(parts: Sequence[str] | None, patch: PatchConfig) -> None:
    """Refuse names that are no part of the patch.

    Args:
        parts: ``fusion``, ``fusion.CHANNEL``, ``lora``; None for all.
        patch: the patch.

    Raises:
        ValueError: naming the first one, and the parts there are.
    """
    if parts is None:
        return
    channels = [f"fusion.{name}" for name in patch.side_channels]
    known = [*(["fusion", *channels] if channels else []), *([] if patch.lora is None else ["lora"])]
    if not parts:
        raise ValueError(
            f"training.train is empty, so nothing would be trained; the parts of the patch are: {', '.join(known)}"
        )
    for part in parts:
        if part not in known:
            raise ValueError(f"training.train: {part!r} is no part of the patch; its parts are: {', '.join(known)}")


def trains_channel(parts: Sequence[str] | None, channel: str) -> bool:
    """Whether the fusion of a channel is among the parts that are trained; None: all are."""
    return parts is None or "fusion" in parts or f"fusion.{channel}" in parts


def train_only(model: Any, parts: Sequence[str] | None) -> None:
    """Let only some parts of the attached patch require gradients: the rest gets no gradient and no optimizer state, and is saved as it
    is. Call it before the optimizer is made and the model is wrapped.

    Args:
        model: a patched model.
        parts: ``fusion``, ``fusion.CHANNEL``, ``lora``; None for all.

    Raises:
        ValueError: if one is no part of the patch.
    """
    slot = patch_slot(model)
    check_parts(parts, slot.config)
    groups = patch_parameter_groups(model)
    lora = {id(parameter) for parameter in groups["lora"]}
    channel_of = {id(p): name for name, fusion in slot.fusions.items() for p in fusion.parameters()}
    for parameter in (p for group in groups.values() for p in group):
        names = ["lora"] if id(parameter) in lora else ["fusion", f"fusion.{channel_of[id(parameter)]}"]
        parameter.requires_grad_(parts is None or any(name in parts for name in names))
