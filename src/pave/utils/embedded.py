"""The base model inside the package, under the name by which configs and commands know it."""

from __future__ import annotations

import os
from pathlib import Path

PLAYGROUND = "playground"
"""Name of the small Video LLM inside the package, wherever a hub id or a folder of a model is taken."""


def model_path(name: str | os.PathLike[str]) -> str:
    """What transformers loads: the folder inside the package for ``PLAYGROUND``, else the name as it is."""
    text = os.fspath(name)
    return str(Path(__file__).parents[1] / "playground" / "base") if text == PLAYGROUND else text


def model_name(path: str | os.PathLike[str]) -> str:
    """What records say: ``PLAYGROUND`` for the folder inside the package, else the path as it is."""
    text = os.fspath(path)
    return PLAYGROUND if text == model_path(PLAYGROUND) else text
