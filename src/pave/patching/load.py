"""A saved patch onto a base: what is on disk is compared with the base, then attached."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from pave.config import PatchConfig
from pave.patching import lora
from pave.patching.attach import attach_patch, build_slot, check_base, detach_patch
from pave.patching.checkpoint import PatchTensors, copy_into, read_files, resolve_patch
from pave.patching.fingerprint import differences, fingerprint, weights_compared
from pave.patching.record import CONFIG_FILE, FUSION_FILE, read_record

logger = logging.getLogger(__name__)

_Model = TypeVar("_Model", bound=nn.Module)


def load_patch(
    model: _Model,
    patch: str | Path,
    *,
    name: str | None = None,
    revision: str | None = None,
    processor: Any = None,
    allow_base_mismatch: bool = False,
) -> _Model:
    """Attach a saved patch to a base, in place. Several may be attached one after the other, under names of their own.

    Args:
        model: the base the patch was trained on.
        patch: a local folder, or the id of a repository on the hub.
        name: name of the patch on this model, which tells it from others there; default, the one it was saved under.
        revision: of the hub repository.
        processor: the base's processor, to check tokenizer and chat template too.
        allow_base_mismatch: load on another base all the same; a warning says what is overridden. Sizes must still fit.

    Returns:
        The same model, patched.

    Raises:
        ValueError: if anything is missing, unexpected or of another shape, or the base is another one; the model is then as it was.
    """
    check_base(model)
    folder = resolve_patch(patch, revision)
    record = read_record(folder)
    own = fingerprint(model, processor)
    if not weights_compared(record.base, own):
        logger.warning(
            "%s: the base's weights could not be compared with those the patch was trained on (sharded, offloaded, or not recorded); "
            "only the architecture was",
            patch,
        )
    found = differences(record.base, own)
    if found:
        trained_on = record.base.model_id or record.base.architecture.get("model_type")
        text = f"{patch}: the patch was trained on another base ({trained_on}); this one differs in: {'; '.join(found)}"
        if not allow_base_mismatch:
            raise ValueError(f"{text}. Load it on its own base, or pass allow_base_mismatch=True")
        logger.warning("%s. Loading it all the same, as asked", text)
    tensors = read_files(folder, record)
    _check_sizes(model, folder, record.patch, tensors)
    attach_patch(model, record.patch, name=name or record.name)
    try:
        copy_into(model, folder, tensors, name=name or record.name)
    except BaseException:
        detach_patch(model, name or record.name)
        raise
    return model


def _check_sizes(model: Any, folder: Path, patch: PatchConfig, tensors: PatchTensors) -> None:
    """Refuse a config that asks for other sizes than the files hold before it makes anything take memory."""
    layers = sum(channel.fusion.num_layers for channel in patch.side_channels.values())
    if layers > len(tensors.fusion):
        raise ValueError(
            f"{folder / FUSION_FILE} holds {len(tensors.fusion)} tensors, too few for {layers} layers in {CONFIG_FILE}"
        )
    try:
        with torch.device("meta"):
            own = build_slot(model.config, patch).fusions.state_dict()
    except (RuntimeError, TypeError, OverflowError) as error:
        raise ValueError(f"{folder / CONFIG_FILE}: sizes that no module can have ({str(error).splitlines()[0]})") from None
    lora.check_same_tensors(own, tensors.fusion, str(folder / FUSION_FILE))
