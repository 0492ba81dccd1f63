"""Garbage collection: what no sample needs any more goes, and what stays is packed again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from filelock import FileLock

from pave.data.store.plan import Plan
from pave.data.store.shards import PACKED, Entry, FeatureStore, ShardLimits, shard_name, write_shard


@dataclass
class CollectReport:
    """What a collection removed, or would remove."""

    removed: list[tuple[str, Entry]] = field(default_factory=list)
    """(encoder id, entry)."""
    kept: int = 0
    """Entries that stay."""
    shards_before: int = 0
    shards_after: int | None = None
    """None where nothing was touched."""
    bytes_before: int = 0
    bytes_after: int | None = None
    """None where nothing was touched."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [
            {"encoder": encoder, "key": entry.key, "file": entry.file, "bytes": entry.num_bytes}
            for encoder, entry in self.removed
        ]
        return {**self.__dict__, "removed": rows}


def collect(store: FeatureStore, plan: Plan, *, remove: bool = True, limits: ShardLimits = PACKED) -> CollectReport:
    """List the entries that the plan does not need; remove them, and pack the rest.

    Afterwards the shards are a function of the entries and the limits alone, whatever was extracted when and in which order.
    New shards are complete before old ones go, so that it may be interrupted anywhere and run again. Do not run it while
    features are extracted into the same store; programs that read may go on.

    Args:
        store: to clean.
        plan: of all samples whose features are to stay.
        remove: False only lists.
        limits: of a shard.

    Raises:
        ValueError: if the plan has files that could not be read, because their features cannot be told from useless ones.
    """
    if plan.failures:
        raise ValueError(
            f"{len(plan.failures)} files of the samples cannot be read, so their features cannot be told from useless ones and nothing "
            f"was removed; the first: {plan.failures[0].message}"
        )
    report = CollectReport()
    with FileLock(store.folder / "collect.lock"):
        for encoder in store.encoders():
            _collect_encoder(store, encoder, plan, report, remove, limits)
    sizes = store.sizes()
    if remove:
        report.shards_after = sum(size.shards for size in sizes)
        report.bytes_after = sum(size.num_bytes for size in sizes)
    return report


def _collect_encoder(
    store: FeatureStore, encoder: str, plan: Plan, report: CollectReport, remove: bool, limits: ShardLimits
) -> None:
    if remove:
        store.drop_damaged(encoder)
    shards = store.shards(encoder)
    report.shards_before += len(shards)
    report.bytes_before += sum(shard.stat().st_size for shard in shards)
    entries = store.index(encoder, fresh=True)
    kept = [entries[key] for key in sorted(entries) if key in plan.wanted]
    report.removed += [(encoder, entries[key]) for key in sorted(entries) if key not in plan.wanted]
    report.kept += len(kept)
    if not remove:
        return
    stay = set()
    for group in _packed(kept, limits):
        target = store.encoder_folder(encoder) / f"{shard_name(entry.key for entry in group)}.safetensors"
        if target not in shards:
            write_shard(target.parent, [(entry.key, entry.file, store.load_parts(encoder, entry.key)) for entry in group])
        stay.add(target)
    for shard in shards:
        if shard not in stay:
            shard.unlink()
    if not kept:
        (store.encoder_folder(encoder) / "encoder.json").unlink(missing_ok=True)
        if not any(store.encoder_folder(encoder).iterdir()):
            store.encoder_folder(encoder).rmdir()
    store.index(encoder, fresh=True)


def _packed(entries: list[Entry], limits: ShardLimits) -> list[list[Entry]]:
    """Entries in their order, in groups that keep the limits."""
    groups: list[list[Entry]] = []
    size = 0
    for entry in entries:
        if not groups or len(groups[-1]) >= limits.entries or (size and size + entry.num_bytes > limits.num_bytes):
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += entry.num_bytes
    return groups
