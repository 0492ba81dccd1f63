"""Go on from a saved patch: attach one of the same config, or a wider one, with the saved tensors in it."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from pave.config import PatchConfig, SideChannelConfig
from pave.patching.attach import attach_patch, check_base, detach_patch
from pave.patching.checkpoint import copy_into, first_difference, read_files, resolve_patch
from pave.patching.fingerprint import differences, fingerprint
from pave.patching.record import FUSION_FILE, LORA_FILE, LORA_FOLDER, PatchRecord, read_record


def continue_patch(
    model: Any, config: PatchConfig, parent: str | Path, *, revision: str | None = None, processor: Any = None, seed: int = 0
) -> PatchRecord:
    """Attach a patch that begins where a saved one ended, in place.

    Every channel of the saved patch, and its LoRA if it has one, must be part of ``config`` unchanged, but for dropout; they get the
    saved tensors, the measured mean and deviation of features included. Further channels, and a LoRA that the saved patch has not, are
    fresh: as a fresh channel adds exactly nothing, a video with the saved patch's channels gets what it got. ``missing_channel`` and
    ``storage_dtype`` may differ.

    Args:
        model: the base that the saved patch was trained on.
        config: what to attach.
        parent: a local folder, or the id of a repository on the hub.
        revision: of the hub repository.
        processor: the base's processor, to check tokenizer and chat template too.
        seed: of what is fresh.

    Returns:
        What the saved patch says of itself.

    Raises:
        ValueError: if the saved patch is damaged, belongs to another base or is no part of ``config``; the model is then as it was.
    """
    check_base(model)
    record = check_continues(config, parent, revision)
    folder = resolve_patch(parent, revision)
    found = differences(record.base, fingerprint(model, processor))
    if found:
        trained_on = record.base.model_id or record.base.architecture.get("model_type")
        raise ValueError(
            f"{parent}: the patch was trained on another base ({trained_on}), from which this one differs in: {'; '.join(found)}; go on "
            "from it on its own base, or begin with a fresh patch"
        )
    tensors = read_files(folder, record)
    attach_patch(model, config, seed=seed)
    try:
        copy_into(model, folder, tensors, channels=record.patch.side_channels)
    except BaseException:
        detach_patch(model)
        raise
    return record


def patch_digest(patch: str | Path, revision: str | None = None) -> str:
    """SHA-256 over the tensor files of a saved patch: ``sha256:...``."""
    folder = resolve_patch(patch, revision)
    digest = hashlib.sha256()
    for file in (folder / FUSION_FILE, folder / LORA_FOLDER / LORA_FILE):
        if file.is_file():
            digest.update(file.read_bytes())
    return f"sha256:{digest.hexdigest()}"


def check_continues(config: PatchConfig, parent: str | Path, revision: str | None = None) -> PatchRecord:
    """Look, without a base, whether a saved patch is part of a config, and say what it says of itself.

    Raises:
        ValueError: if there is no such patch, or it is no part of ``config``.
    """
    record = read_record(resolve_patch(parent, revision))
    _check_part_of(config, record.patch, str(parent))
    return record


def _check_part_of(config: PatchConfig, saved: PatchConfig, where: str) -> None:
    lost = [name for name in saved.side_channels if name not in config.side_channels]
    if lost:
        raise ValueError(f"{where}: the patch there has the side channel {lost[0]!r}, which this one lacks; name it as well")
    if saved.lora is not None and config.lora is None:
        raise ValueError(f"{where}: the patch there has LoRA, and this one has none; give it the same lora")
    channels = {name: _without_dropout(config.side_channels[name]) for name in saved.side_channels}
    adapter = None if saved.lora is None or config.lora is None else dataclasses.replace(config.lora, dropout=0.0)
    free: dict[str, Any] = {"missing_channel": "lora_only", "storage_dtype": "float32"}
    mine = dataclasses.replace(config, side_channels=channels, lora=adapter, **free)
    theirs = dataclasses.replace(
        saved,
        side_channels={name: _without_dropout(channel) for name, channel in saved.side_channels.items()},
        lora=None if saved.lora is None else dataclasses.replace(saved.lora, dropout=0.0),
        **free,
    )
    if mine != theirs:
        raise ValueError(
            f"{where}: the patch there is no part of this one: {first_difference(theirs, mine)}; what both have must be the same"
        )


def _without_dropout(channel: SideChannelConfig) -> SideChannelConfig:
    return dataclasses.replace(channel, fusion=dataclasses.replace(channel.fusion, dropout=0.0))
