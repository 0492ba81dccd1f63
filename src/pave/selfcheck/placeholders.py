"""Texts of errors without the paths in them, for a report that others read."""

from __future__ import annotations

import os
import re
import sysconfig
import tempfile
from pathlib import Path

_ABSOLUTE = re.compile(r"(?<![\w/:.<>])(?:[A-Za-z]:[\\/]|/)(?:[^\s'\"/\\:,;()]+[\\/])+([^\s'\"/\\:,;()]*)")
"""A path of two parts or more; what stands in a URL or behind a placeholder is none."""


def without_paths(text: str) -> str:
    """The text with <site-packages>, <temp>, <cwd> and <home> for these folders, and <folder>/NAME for any other absolute path."""
    for folder, name in _folders():
        text = re.sub(rf"{re.escape(folder)}(?![\w.-])", f"<{name}>", text)
    return _ABSOLUTE.sub(r"<folder>/\1", text)


def told(error: Exception) -> str:
    """What an error of any kind says, in one line of at most 300 characters."""
    return f"{type(error).__name__}: {' '.join(without_paths(str(error)).split())[:300]}"


def _folders() -> list[tuple[str, str]]:
    """The longest first: one may lie in another."""
    found = {
        "site-packages": sysconfig.get_path("purelib"),
        "temp": tempfile.gettempdir(),
        "cwd": os.curdir,
        "home": str(Path.home()),
    }
    both = {(str(path), name) for name, folder in found.items() for path in (Path(folder).absolute(), Path(folder).resolve())}
    return sorted(((folder, name) for folder, name in both if len(folder) > 1), key=lambda pair: (-len(pair[0]), pair))
