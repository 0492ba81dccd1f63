"""Settings of encoders as they come from a recipe or a patch: the right kind of value, and no size that would fill the memory."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pave.config import EncoderConfig
    from pave.side_channels.base import SideEncoder

MOST = 1_000_000
"""Largest whole number that is a setting of an encoder of this library: counts, sizes and rates."""
WIDEST = 2**20
"""Most numbers in a feature vector, and most tokens in a step."""
_LARGEST = 1e12
_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "None": (type(None),),
}
_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "None": "null"}


def check_settings(config: EncoderConfig, encoder: type[Any], *, own: bool) -> None:
    """Refuse values that cannot be meant, before anything is made of them.

    Args:
        config: with the settings.
        encoder: the class that takes them.
        own: the class is no part of this library, whose counts have no limit here.

    Raises:
        ValueError: naming the setting, if it is of another kind than the class says, or too large.
    """
    parameters = inspect.signature(encoder).parameters
    for name, value in config.settings.items():
        where = f"the encoder {config.name!r} cannot be built: the setting {name}"
        for number in _numbers(value):
            if _LARGEST < abs(number) < math.inf:  # the encoders say themselves where infinity and NaN are none
                raise ValueError(f"{where} holds {str(number)[:20]}, which is too large to be meant")
        kinds = str(parameters[name].annotation).split(" | ") if name in parameters else []
        if kinds and set(kinds) <= set(_KINDS) and not any(_is_of(value, kind) for kind in kinds):
            raise ValueError(f"{where} is {' or '.join(_WORDS[kind] for kind in kinds)}, got {value!r:.60}")
        if not own and isinstance(value, int) and abs(value) > MOST:
            raise ValueError(f"{where} is at most {MOST:,}, got {value}")


def check_size(name: str, encoder: SideEncoder[Any]) -> None:
    """Refuse an encoder whose features would be too wide to be of use.

    Raises:
        ValueError: naming the encoder and what is too large.
    """
    for what, size in (("features of width", encoder.width), ("tokens per step", encoder.tokens_per_step)):
        if size > WIDEST:
            raise ValueError(f"the encoder {name!r} would give {size:,} {what}; at most {WIDEST:,} are taken")


def _is_of(value: Any, kind: str) -> bool:
    return isinstance(value, _KINDS[kind]) and (kind == "bool" or not isinstance(value, bool))


def _numbers(value: Any) -> Iterator[int | float]:
    """Every number in a setting, however deep."""
    if isinstance(value, (int, float)):
        yield value
    elif isinstance(value, (list, tuple, Mapping)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers(part)
