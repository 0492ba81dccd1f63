"""Models of this library inside other programs. A module here needs the program it is named after; nothing else imports it."""

from __future__ import annotations

from typing import Any


def lmms_eval_manifest() -> Any:
    """What lmms-eval finds under its entry points ``lmms_eval.models``: the model ``pave`` (``pave.integrations.lmms_eval``)."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="pave", simple_class_path="pave.integrations.lmms_eval.PaveForLmmsEval")
