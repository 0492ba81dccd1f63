"""The parameters of a patch as an optimizer gets them."""

from __future__ import annotations

from typing import Any

from torch import nn

from pave.patching import patch_parameter_groups
from pave.training.arguments import PatchTrainingArguments


def parameter_groups(model: nn.Module, args: PatchTrainingArguments) -> list[dict[str, Any]]:
    """Groups for an optimizer: the patch's parameters by role, matrices (decayed) apart from norms, biases and scalars.

    Args:
        model: a patched model.
        args: the rates and the weight decay.
    """
    rates = args.role_learning_rates()
    groups = []
    for role, parameters in patch_parameter_groups(model).items():
        for decayed in (True, False):
            chosen = [p for p in parameters if p.requires_grad and (p.ndim >= 2) == decayed]
            if chosen:
                decay = args.weight_decay if decayed else 0.0
                groups.append({"params": chosen, "lr": rates[role], "weight_decay": decay, "role": role})
    return groups
