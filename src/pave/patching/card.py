"""The README that is written beside a patch, with the front matter that the hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from pave.config import PatchConfig
from pave.patching.record import PatchRecord
from pave.patching.storage import parameter_count, tensor_bytes
from pave.side_channels.own import own_modules
from pave.utils.embedded import PLAYGROUND
from pave.utils.optional import INSTALL


def patch_card(record: PatchRecord, fusion: Mapping[str, Tensor], adapter: Mapping[str, Tensor]) -> str:
    """Markdown that says what the patch is, on which base it works, how big it is and how to use it."""
    base = record.base.model_id or ""
    front = {"library_name": "pave", "tags": ["pave", "video", "patch", *record.patch.side_channels]}
    if "/" in base and not base.startswith(("/", ".")):
        front["base_model"] = base
    channels = [
        f"| {name} | {channel.kind} | {channel.encoder.name}{' ' + channel.encoder.model if channel.encoder.model else ''} "
        f"| {channel.width} | {channel.fusion.kind}, {channel.fusion.alignment} |"
        for name, channel in record.patch.side_channels.items()
    ]
    table = (
        ["| channel | kind | encoder | width | fusion |", "| --- | --- | --- | --- | --- |", *channels]
        if channels
        else ["None."]
    )
    provenance = [
        f"- {key}: {'; '.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in record.provenance.items()
        if not isinstance(value, dict)
    ]
    provenance += _parent(record.provenance.get("parent"))
    return "\n".join(
        [
            "---",
            yaml.safe_dump(front, sort_keys=False).strip(),
            "---",
            f"# Patch `{record.name}`",
            "",
            f"A patch for {_base_in_words(record)}, made with pave {record.pave_version}. The base's weights and code stay as they are.",
            "",
            "## Side channels",
            "",
            *table,
            "",
            *(f"- {line}" for line in prompt_settings(record.patch)),
            *([""] if prompt_settings(record.patch) else []),
            "## Size",
            "",
            f"- fusion: {_size(fusion)}",
            f"- LoRA: {_size(adapter)}",
            *(f"- {line}" for line in compression(record)),
            "",
            "## Use",
            "",
            "```python",
            "from pave import load_patch",
            "from pave.video_llms.loading import load_base",
            "",
            f"model, processor = load_base({_base_to_load(record)!r})",
            'load_patch(model, ".", processor=processor)  # this folder; or the id of this patch on the hub',
            "```",
            "",
            f"The library is installed from a clone of it ({INSTALL}).",
            *_own_code(record),
            "",
            "## Where it came from",
            "",
            *(provenance or ["Nothing was recorded."]),
            "",
            *_tasks(record.provenance),
        ]
    )


def prompt_settings(patch: PatchConfig) -> list[str]:
    """In words: what the patch changes of the prompt and of the choice of tokens, beside fusion and LoRA."""
    lines = []
    if patch.newline == "grid":
        lines.append("newline grid: the base's newline embedding stands behind every row of every frame")
    if patch.vocabulary is not None:
        lines.append(f"vocabulary {patch.vocabulary}: token ids from there on are never chosen")
    return lines


def compression(record: PatchRecord) -> list[str]:
    """In words: what ``pave compress`` did to the patch, from what it recorded."""
    done = record.provenance.get("compressed")
    if not isinstance(done, dict):
        return []
    lines = []
    ranks = done.get("lora_ranks")
    if isinstance(ranks, dict) and ranks:
        cut = ", ".join(f"{kind} {pair[0]} to {pair[1]}" for kind, pair in ranks.items())
        lines.append(f"compressed: the LoRA updates are cut to their largest singular values (rank of {cut})")
    if record.fusion_storage != "plain":
        lines.append(f"compressed: the fusion's matrices are stored in blocks of {record.fusion_storage[0]}-bit integers")
    if "bytes_before" in done and "bytes_after" in done:
        lines.append(
            f"compressed: {done['bytes_before'] / 1e6:.2f} MB of tensors before, {done['bytes_after'] / 1e6:.2f} MB after"
        )
    measured = done.get("measured")
    if isinstance(measured, dict):
        lines.append(f"compressed: {measured['sentence']}")
    return lines


def _parent(parent: Any) -> list[str]:
    if not isinstance(parent, dict):
        return []
    revision = f" at revision {parent['revision']}" if parent.get("revision") else ""
    return [f"- parent: went on from the patch {parent.get('patch')}{revision}, whose tensors are {parent.get('tensors')}"]


def _tasks(provenance: Mapping[str, Any]) -> list[str]:
    """A table of the tasks that the patch was trained on, where several were named."""
    data, losses = provenance.get("data"), provenance.get("eval_losses")
    tasks = data.get("tasks") if isinstance(data, dict) else None
    if not isinstance(tasks, dict):
        return []
    lines = ["## Tasks", "", "| task | samples | share | manifest | held-out loss |", "| --- | --- | --- | --- | --- |"]
    for name, task in tasks.items():
        loss = losses.get(name) if isinstance(losses, dict) else None
        share, shown = task.get("share"), "" if loss is None else f"{loss:.4g}"
        lines.append(f"| {name} | {task.get('train_samples')} | {share:.3g} | `{task.get('train')}` | {shown} |")
    return [*lines, ""]


def _base_to_load(record: PatchRecord) -> str:
    return record.base.model_id or f"FOLDER_OF_THE_{str(record.base.architecture.get('model_type')).upper()}_BASE"


def _base_in_words(record: PatchRecord) -> str:
    """What the base is called, useful on another computer too."""
    name, kind = record.base.model_id, record.base.architecture.get("model_type")
    if name is None:
        return f"a Video LLM of type {kind} whose name was not recorded"
    if name == PLAYGROUND:
        return f"`{name}`, the small Video LLM inside pave ({kind})"
    if Path(name).is_absolute() or name.startswith("."):
        return f"`{Path(name).name}` ({kind}), which was the folder `{name}` on the computer that made the patch"
    return f"`{name}` ({kind})"


def _own_code(record: PatchRecord) -> list[str]:
    modules = sorted({module for channel in record.patch.side_channels.values() for module in own_modules(channel.encoder)})
    if not modules:
        return []
    names = ", ".join(f"`{module}`" for module in modules)
    return [
        f"Its side channels need code that is no part of a patch: {names}; name it with `--encoders` or `encoders=` if you trust it."
    ]


def _size(tensors: Mapping[str, Tensor]) -> str:
    return f"{parameter_count(tensors):,} parameters, {tensor_bytes(tensors) / 1e6:.2f} MB"
