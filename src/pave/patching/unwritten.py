"""Modules whose weights nobody draws, because they are read from a file next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_DRAWS = (Tensor.uniform_, Tensor.normal_, nn.init.kaiming_uniform_)


class Unwritten(TorchFunctionMode):
    """``with Unwritten():`` tensors that would be filled with random numbers keep what their memory holds; in this thread only."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func in _DRAWS:
            return args[0] if args else named["tensor"]
        return func(*args, **named)
