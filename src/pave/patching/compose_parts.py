"""The patches that ``compose`` adds up: their names, their weights, and whether one patch can stand for them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pave.config import LoraSettings
from pave.patching.checkpoint import PatchTensors, read_files, resolve_patch
from pave.patching.fingerprint import differences
from pave.patching.record import PatchRecord, read_record
from pave.patching.rows import Strength, read_selection
from pave.patching.slot import check_name


@dataclass(frozen=True)
class Part:
    """One of the patches that are added."""

    name: str
    folder: Path
    record: PatchRecord
    tensors: PatchTensors
    weight: float = 1.0
    """Of the residual."""
    lora_weight: float = 1.0
    """Of the LoRA update."""
    channels: Mapping[str, str] = field(default_factory=dict)
    """What each of its channels is called in the sum."""

    @property
    def lora(self) -> LoraSettings | None:
        """None where it adds no LoRA update."""
        return self.record.patch.lora if self.lora_weight else None

    def scale_of(self, kind: str) -> float:
        """What the factors of a kind of layer are multiplied by, its weight included; its LoRA has the kind."""
        assert self.lora is not None
        return self.lora_weight * self.lora.scale_of(kind)

    @property
    def missing_channel(self) -> str:
        """What a video without any of its channels gets; without channels LoRA acts on every video."""
        return self.record.patch.missing_channel if self.record.patch.side_channels else "lora_only"


def read_parts(patches: Mapping[str, str | Path] | Sequence[str | Path]) -> dict[str, Path]:
    """The folders of patches by the names that they go by together: those given, else those that they were saved under; where several
    were saved under one name, a number is put behind it.

    Args:
        patches: folders or hub ids, by name or in a row.

    Raises:
        ValueError: if there are fewer than two, a name is no identifier, or one is no patch.
    """
    if len(patches) < 2:
        raise ValueError(f"compose takes at least two patches, got {len(patches)}")
    if isinstance(patches, Mapping):
        for name in patches:
            check_name("compose", name)
        return {name: resolve_patch(patch) for name, patch in patches.items()}
    folders = [resolve_patch(patch) for patch in patches]
    saved = [read_record(folder).name for folder in folders]
    names = [name if saved.count(name) == 1 else f"{name}_{saved[: i + 1].count(name)}" for i, name in enumerate(saved)]
    if len(set(names)) < len(names):
        raise ValueError(f"compose: the patches were saved under the names {', '.join(saved)}; give each a name of its own")
    return dict(zip(names, folders, strict=True))


def weighed_parts(folders: Mapping[str, Path], weights: Mapping[str, Strength]) -> tuple[Part, ...]:
    """The patches in folders, with their weights and with names for their channels that tell them apart.

    Raises:
        ValueError: if a weight is none, or is for no patch; if a patch is damaged.
    """
    unknown = [name for name in weights if name not in folders]
    if unknown:
        raise ValueError(f"weights: there is no patch {unknown[0]!r}; the patches are {', '.join(folders)}")
    uses = {use.name: use for use in read_selection({**dict.fromkeys(folders, 1.0), **weights}, list(folders))}
    parts = []
    for name, folder in folders.items():
        record = read_record(folder)
        use = uses[name]
        parts.append(Part(name, folder, record, read_files(folder, record), use.strength, use.lora_strength))
    return _with_channels(parts)


def _with_channels(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Channels of one name are told apart by the name of their patch."""
    counts = Counter(channel for part in parts for channel in part.record.patch.side_channels)
    named = tuple(
        dataclasses.replace(
            part,
            channels={c: c if counts[c] == 1 else f"{part.name}_{c}" for c in part.record.patch.side_channels},
        )
        for part in parts
    )
    taken = Counter(channel for part in named for channel in part.channels.values())
    twice = [channel for channel, count in taken.items() if count > 1]
    if twice:
        raise ValueError(f"compose: two channels of the sum would be called {twice[0]!r}; give the patches other names")
    return named


def check_adds(first: Part, part: Part) -> None:
    """Refuse to make one patch of two that no single one can stand for.

    Raises:
        ValueError: naming the second one and what differs: the base, how prompts are laid out, what a missing channel means.
    """
    unlike = differences(first.record.base, part.record.base)
    if unlike:
        raise ValueError(
            f"{part.folder} was trained on another base than {first.folder}: {'; '.join(unlike)}; add patches of one base"
        )
    for what in ("newline", "vocabulary"):
        mine, other = getattr(part.record.patch, what), getattr(first.record.patch, what)
        if mine != other:
            raise ValueError(
                f"{part.folder} has {what} {mine!r} and {first.folder} {other!r}: a patch lays out a prompt in one way; load both "
                "on one base instead, and choose in each call"
            )
    if part.missing_channel != first.missing_channel:
        raise ValueError(
            f"a video without their channels gets {part.missing_channel!r} from {part.folder} and {first.missing_channel!r} from "
            f"{first.folder}, and a patch has one missing_channel (a patch without channels always acts); load both on one base "
            "instead, and choose in each call"
        )
