"""Reading JSON that others wrote: nothing is lost in silence, and nothing is read that cannot be meant.

Python's own reader keeps the last of two equal keys, takes NaN for a number, turns 1e999 into infinity, and waits for ever on a pipe.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any, NoReturn

from pave.utils.reading import read_bytes

MAX_JSON_BYTES = 64 * 2**20
"""Largest JSON file that is read where the caller names no other limit: far more than any config or description."""


def parse_json(text: str | bytes, *, any_number: bool = False) -> Any:
    """The value that a JSON text stands for; bytes are UTF-8.

    Args:
        text: the whole text.
        any_number: take numbers as Python does, NaN and infinities included, because the caller looks at each that it uses.

    Raises:
        ValueError: if it is no JSON, an object has a key twice, or a number is NaN or too large for a float of 64 bits. The message
            names no file.
    """
    try:
        numbers: dict[str, Any] = (
            {} if any_number else {"parse_constant": _no_constant, "parse_float": _finite, "parse_int": _whole}
        )
        return json.loads(text.decode("utf-8") if isinstance(text, bytes) else text, object_pairs_hook=_unique_keys, **numbers)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise ValueError(f"not JSON: {error.msg} at {place}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not JSON: byte {error.start} is no UTF-8") from None
    except RecursionError:
        raise ValueError("not JSON: lists or objects are nested too deeply") from None


def read_json(path: str | os.PathLike[str], *, limit: int = MAX_JSON_BYTES, remedy: str = "") -> Any:
    """The value in a JSON file.

    Args:
        path: of the file.
        limit: most bytes that are read.
        remedy: what to do about a file that is not valid, the end of the sentence.

    Raises:
        ValueError: naming the file, as ``read_bytes`` and ``parse_json`` do.
    """
    content = read_bytes(path, limit)
    try:
        return parse_json(content)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}{f'; {remedy}' if remedy else ''}") from None


def read_json_object(path: str | os.PathLike[str], *, limit: int = MAX_JSON_BYTES, remedy: str = "") -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: as ``read_json`` does, and if the file holds anything but an object.
    """
    found = read_json(path, limit=limit, remedy=remedy)
    if not isinstance(found, dict):
        raise ValueError(f"{os.fspath(path)}: a JSON object in braces is needed, got a {type(found).__name__}")
    return found


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key!r:.60} comes twice in an object")
            seen.add(key)
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON; write null for what is not known")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text:.40} is too large for a number")
    return value


def _whole(text: str) -> int:
    if len(text) > 300 and math.isinf(float(text)):
        raise ValueError(f"a number of {len(text)} digits is too large")
    return int(text)
