"""A base and its patches from disk or the hub; the base may be left to the patch's own record."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pave.patching import load_patch, resolve_patch
from pave.patching.base_of import base_of_patch
from pave.video_llms.loading import load_base

logger = logging.getLogger(__name__)

PatchPaths = str | Path | Mapping[str, str | Path] | None
"""A patch's folder or hub id, or several by the names they are to have; None for the base alone."""
_DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_model(
    base: str | Path | None,
    patches: PatchPaths,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    patch_revision: str | None = None,
    allow_base_mismatch: bool = False,
) -> tuple[Any, Any, str, str | None]:
    """A base in evaluation mode with its patches.

    Args:
        base: folder or hub id; None: that of the first patch, as its record says.
        patches: see ``PatchPaths``.
        device: "auto" takes an accelerator if there is one; else a torch device.
        dtype: "auto" holds the weights as they are stored; or float32, bfloat16, float16.
        revision: of the base on the hub.
        patch_revision: of the patches on the hub.
        allow_base_mismatch: load patches on another base than their own.

    Returns:
        The model, its processor, and the base and its revision that were loaded.

    Raises:
        ValueError: if there is no such base or patch, they do not fit, or the device or dtype does not exist.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    target = device_of(device)
    named = patches if isinstance(patches, Mapping) else {} if patches is None else {"": patches}
    folders = {name: resolve_patch(patch, patch_revision) for name, patch in named.items()}
    if base is None:
        if not folders:
            raise ValueError("there is neither a base nor a patch that says which base it was trained on; give base")
        name, folder = next(iter(folders.items()))
        base, recorded = base_of_patch(folder, str(named[name]))
        revision = revision or recorded
        logger.info("the base is %s: the patch %s was trained on it", base, named[name])
    model, processor = load_base(base, revision=revision, dtype=dtype)
    for name, folder in folders.items():
        load_patch(model, folder, name=name or None, processor=processor, allow_base_mismatch=allow_base_mismatch)
    return model.to(target).eval(), processor, str(base), revision


def device_of(name: str) -> torch.device:
    """The device of a name, "auto" for an accelerator if there is one.

    Raises:
        ValueError: if it cannot be used.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
