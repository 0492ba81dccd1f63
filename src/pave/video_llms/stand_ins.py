"""What takes the place of a frozen vision tower while stored features are played back: shapes without numbers.

What a stand-in returns never reaches an output: everything that is computed from it ends at a projector, whose input is
replaced by the stored features. It only has to get there cheaply through the base's own code in between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

StandIn = Callable[..., Any]
"""Called with the arguments of the forward that it replaces."""

_TOKENS, _WIDTH = 5, 4
"""Of a picture that stands in for another: a class token and 2 x 2 patches, so that it can be cut and merged as the real one."""


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return next(iter((*args, *kwargs.values())))


def tower(layers: int) -> StandIn:
    """For a whole vision tower: one small constant picture for every picture, as the output of every layer.

    Args:
        layers: how many states the real tower can return.
    """

    def forward(*args: Any, **kwargs: Any) -> BaseModelOutputWithPooling:
        pixels: Tensor = _first(args, kwargs)
        hidden: Any = pixels.new_zeros(()).expand(len(pixels), _TOKENS, _WIDTH)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, hidden_states=(hidden,) * layers)

    return forward


def patches(*args: Any, **kwargs: Any) -> Tensor:
    """For the first layer of a tower that works on a flat list of patches: a number for every patch."""
    pixels: Tensor = _first(args, kwargs)
    return pixels.new_zeros(()).expand(len(pixels), 1)


def unchanged(*args: Any, **kwargs: Any) -> Any:
    """For a layer: its input."""
    return _first(args, kwargs)


def rows_of_width(width: int) -> StandIn:
    """For a layer that makes one vector of every entry of its input."""

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        entries: Tensor = _first(args, kwargs)
        return entries.new_zeros(()).expand(len(entries), width)

    return forward


def layers_of(modules: Any) -> dict[nn.Module, StandIn]:
    """``unchanged`` for each of several layers."""
    return dict.fromkeys(modules, unchanged)
