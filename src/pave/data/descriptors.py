"""Side channels of several files: small JSON files that describe them, and what of the disk stands behind a path."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

from pave.utils.json_files import read_json


def read_descriptor(path: str, known: tuple[str, ...], required: tuple[str, ...]) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: naming the file, if it is missing, no JSON object, or has other keys.
    """
    content = read_json(path)
    check_keys(path, content, known, required)
    found: dict[str, Any] = content
    return found


def check_keys(where: str, content: Any, known: tuple[str, ...], required: tuple[str, ...]) -> None:
    """Refuse anything but an object with these keys.

    Raises:
        ValueError: naming ``where`` and the key.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{where}: an object in braces is needed, got {type(content).__name__}")
    unknown = [key for key in content if key not in known]
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; known keys: {', '.join(known)}")
    missing = [key for key in required if key not in content]
    if missing:
        raise ValueError(f"{where}: the key {missing[0]!r} is missing")


def number(where: str, value: Any) -> float:
    """A finite number of JSON.

    Raises:
        ValueError: naming ``where``.
    """
    try:
        found = float("nan") if isinstance(value, bool) or not isinstance(value, (int, float)) else float(value)
    except OverflowError:  # a whole number of hundreds of digits
        found = float("inf")
    if not math.isfinite(found):
        raise ValueError(f"{where}: a number is needed, got {value!r:.60}")
    return found


def beside(path: str, where: str, value: Any) -> str:
    """A path in a descriptor, which counts from the descriptor's own folder.

    Raises:
        ValueError: naming ``where``, if it is no text.
    """
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where}: the path of a file is needed, got {value!r:.60}")
    return os.path.join(os.path.dirname(path), value)


def files_named(path: str) -> list[str]:
    """What decides the content of a path, for a cache to notice that something changed: every file of a folder; a descriptor
    and the files that it names. A missing or damaged file is reported by the reader, not here."""
    if os.path.isdir(path):
        return sorted(_files_below(path))
    if not path.lower().endswith(".json"):
        return [path]
    try:
        named = {os.path.join(os.path.dirname(path), text) for text in _texts(read_json(path))}
    except ValueError:
        return [path]
    return [path, *sorted(name for name in named if "\0" not in name and os.path.isfile(name))]


def _files_below(folder: str) -> Iterator[str]:
    for root, _, names in os.walk(folder):
        yield from (os.path.join(root, name) for name in names)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)
