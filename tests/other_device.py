"""A second device without hardware: CPU tensors that claim to be elsewhere, and a mode that refuses to mix the two.

An operation on a tensor here and one there raises, as it would with an accelerator; scalars and ``to`` are the exceptions.
Numbers are those of the CPU, so results can be compared.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("maia:0")
"""A device type that torch knows and nobody has."""


class Far(torch.Tensor):
    """A tensor on ``DEVICE``."""


def to_device(value: torch.Tensor) -> torch.Tensor:
    return value.as_subclass(Far)


def to_cpu(value: Any) -> Any:
    return torch.Tensor.as_subclass(value, torch.Tensor) if isinstance(value, Far) else value


def move(model: torch.nn.Module) -> torch.nn.Module:
    """Every parameter and buffer of ``model`` to ``DEVICE``, in place; for forward passes without gradients."""
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for name, value in own.items():
                if value is not None:
                    own[name] = to_device(value.detach())
    return model


class OtherDevice(TorchFunctionMode):
    """Within it ``DEVICE`` exists."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if name == "__get__" and function == torch.Tensor.device.__get__ and isinstance(args[0], Far):
            return DEVICE
        flat, _ = tree_flatten((args, kwargs))
        tensors = [x for x in flat if isinstance(x, torch.Tensor)]
        far = any(isinstance(x, Far) for x in tensors)
        named = flat if name == "to" else [kwargs.get("device"), "cpu" if name == "cpu" else None]
        wanted = [x for x in flat if isinstance(x, torch.device)] + [torch.device(x) for x in named if isinstance(x, str)]
        if far and name not in ("to", "cpu", "copy_", "__setitem__"):
            _refuse_mixture(name, tensors)
        out_far = wanted[0].type == DEVICE.type if wanted else far
        args, kwargs = tree_map(to_cpu, (args, kwargs))
        args, kwargs = tree_map(lambda x: torch.device("cpu") if isinstance(x, torch.device) else x, (args, kwargs))
        with torch._C.DisableTorchFunction():
            out = function(*args, **kwargs)
        return tree_map(lambda x: to_device(x) if out_far and type(x) is torch.Tensor else x, out)


def _refuse_mixture(name: str, tensors: list[torch.Tensor]) -> None:
    here = [tuple(x.shape) for x in tensors if not isinstance(x, Far) and x.ndim]
    # a tensor there may be indexed by one here, never the other way round
    if here and (name != "__getitem__" or not isinstance(tensors[0], Far)):
        raise RuntimeError(f"{name}: expected all tensors on one device, but those of shapes {here} are on the CPU")
