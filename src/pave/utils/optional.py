"""Imports of packages that only some features need."""

from __future__ import annotations

import importlib
from types import ModuleType

INSTALL = "pip install ."
"""How the library is installed: in a clone of it, as it is in no package index yet."""


class MissingExtraError(ImportError):
    """A feature was asked for whose package is not installed. The message names the command that installs it."""


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import ``module``, or say which extra brings it.

    Args:
        module: import name, such as ``"tensorboard"``.
        extra: the extra of this package that installs it.
        purpose: what needs it, the start of a sentence: ``"Logging to TensorBoard"``.

    Raises:
        MissingExtraError: if the package is not installed. An error inside an installed package is not hidden.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        wanted = module.split(".")[0]
        if error.name is None or error.name.split(".")[0] != wanted:
            raise
        raise MissingExtraError(
            f"{purpose} needs the package {wanted!r}, which is not installed; run in a clone of pave: pip install '.[{extra}]'",
            name=wanted,
        ) from None
