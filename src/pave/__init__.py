"""PAVE: patches that teach a frozen Video LLM to use sound, depth, further cameras or any sensor.

The public names load on first use, so that ``import pave`` stays fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pave.version import __version__

_HOMES = {
    "FusionConfig": "pave.config",
    "LoraSettings": "pave.config",
    "PatchConfig": "pave.config",
    "SideChannelConfig": "pave.config",
    "EncoderConfig": "pave.config",
    "SideTokens": "pave.tokens",
    "attach_patch": "pave.patching",
    "detach_patch": "pave.patching",
    "load_patch": "pave.patching",
    "save_patch": "pave.patching",
    "unload_patch": "pave.patching",
}

__all__ = [
    "EncoderConfig",
    "FusionConfig",
    "LoraSettings",
    "PatchConfig",
    "SideChannelConfig",
    "SideTokens",
    "__version__",
    "attach_patch",
    "detach_patch",
    "load_patch",
    "save_patch",
    "unload_patch",
]

if TYPE_CHECKING:
    from pave.config import EncoderConfig, FusionConfig, LoraSettings, PatchConfig, SideChannelConfig
    from pave.patching import attach_patch, detach_patch, load_patch, save_patch, unload_patch
    from pave.tokens import SideTokens


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'pave' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
