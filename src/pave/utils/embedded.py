"""What the package holds beside code: a base model, a patch for it and a clip, under names that mean the same on every machine."""

from __future__ import annotations

import os
from pathlib import Path

PLAYGROUND = "playground"
"""Name of the small Video LLM inside the package, wherever a hub id or a folder of a model is taken."""
RECORDED = "pave:playground"
"""The same as records have it: no folder and no id on the hub can be called so."""
AUDIO_PATCH = "pave:audio"
"""A patch for it that hears, wherever a hub id or a folder of a patch is taken."""
WHISTLE = "pave:whistle"
"""A clip of its world in which a whistle sounds, wherever ``pave ask`` takes a video: the first that ``pave demo --seed 0`` tests on."""
_PLACES = {RECORDED: "base", AUDIO_PATCH: "audio_patch", WHISTLE: "whistle.mp4"}


def is_playground(name: str | os.PathLike[str] | None) -> bool:
    """Whether a name is one of those of the small base."""
    return name is not None and os.fspath(name) in (PLAYGROUND, RECORDED)


def embedded_path(name: str | os.PathLike[str]) -> str:
    """The path of a part of the package that a name with ``pave:`` is of; any other name as it is.

    Raises:
        ValueError: if the package has no part of that name.
    """
    text = os.fspath(name)
    if text in _PLACES:
        return str(Path(__file__).parents[1] / "playground" / _PLACES[text])
    if text.startswith("pave:"):
        raise ValueError(f"{text!r} is no part of pave; there are {', '.join(_PLACES)}")
    return text


def model_path(name: str | os.PathLike[str]) -> str:
    """What transformers loads: the folder inside the package for the small base's names, else the name as it is."""
    return embedded_path(RECORDED) if is_playground(name) else os.fspath(name)


def model_name(path: str | os.PathLike[str]) -> str:
    """What records say: ``RECORDED`` for the folder inside the package, else the path as it is."""
    text = os.fspath(path)
    return RECORDED if text == embedded_path(RECORDED) else text
