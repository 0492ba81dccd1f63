"""Running an encoder over a chunk of streams and writing shards: the one piece of work that every way of running shares."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pave.data.items import VideoVision
from pave.data.sources import read_source
from pave.data.store.plan import Wanted
from pave.data.store.shards import FeatureStore, Parts, ShardLimits, side_parts, write_shard
from pave.data.store.vision import vision_parts
from pave.data.vision import Encoder
from pave.side_channels.multiview import View
from pave.utils.content import changed_file, stamp_or_none

Report = Callable[[dict[str, Any]], None]
"""Called with ``{"event": "files" | "failed" | "shard", ...}``, plain values that go through JSON."""


@dataclass
class _Clock:
    decode: float = 0.0
    encode: float = 0.0


@dataclass(frozen=True)
class _Timed:
    """A source that decodes while an encoder goes through it; the time that takes is decoding."""

    source: Any
    clock: _Clock

    def __iter__(self) -> Iterator[Any]:
        parts = iter(self.source)
        while True:
            start = time.monotonic()
            part = next(parts, None)
            spent = time.monotonic() - start
            self.clock.decode += spent
            self.clock.encode -= spent
            if part is None:
                return
            yield part


@dataclass
class _Pending:
    """Features on their way into a shard."""

    entries: list[tuple[str, str, Parts | None]] = field(default_factory=list)
    num_bytes: int = 0


def fill_chunk(
    store: FeatureStore,
    encoder: Encoder,
    chunk: Sequence[Wanted],
    report: Report,
    *,
    batch_size: int = 1,
    limits: ShardLimits | None = None,
) -> None:
    """Make the features of a chunk that the store lacks, in the order of the chunk.

    A shard is closed between batches only, so that a chunk that is taken up again after some of its shards were written goes
    on with the very batches, and the very shards, of an uninterrupted run.

    Args:
        store: that gets them.
        encoder: that all of the chunk belongs to.
        chunk: sorted by key.
        report: gets an event before files are read, for every failure, and for every shard that was written.
        batch_size: streams that are encoded together.
        limits: of a shard.
    """
    limits = limits or ShardLimits()
    clock, pending = _Clock(), _Pending()
    for start in range(0, len(chunk), batch_size):
        batch = chunk[start : start + batch_size]
        report({"event": "files", "keys": [want.key for want in batch]})
        made = _encoded(encoder, batch, clock, report)
        size = sum(parts.num_bytes for _, _, parts in made if parts is not None)
        if pending.entries and pending.num_bytes + size > limits.num_bytes:
            _close(store, chunk[0].encoder, pending, clock, report)
            pending = _Pending()
        pending.entries += made
        pending.num_bytes += size
    _close(store, chunk[0].encoder, pending, clock, report)


def _close(store: FeatureStore, encoder: str, pending: _Pending, clock: _Clock, report: Report) -> None:
    if pending.entries:
        write_shard(store.encoder_folder(encoder), pending.entries)
    missing = sum(features is None for _, _, features in pending.entries)
    times = {"decode": clock.decode, "encode": clock.encode}
    report({"event": "shard", "entries": len(pending.entries), "missing": missing, "bytes": pending.num_bytes, **times})
    clock.decode = clock.encode = 0.0


def _encoded(encoder: Encoder, batch: Sequence[Wanted], clock: _Clock, report: Report) -> list[tuple[str, str, Parts | None]]:
    """(key, file, parts) of the batch without those that failed. A batch that fails as a whole is tried one by one."""
    sources = {}
    for want in batch:
        start = time.monotonic()
        try:
            sources[want.key] = _timed(read_source(encoder, want.video, want.path), clock)
        except Exception as error:  # whatever a hostile file makes a decoder raise concerns that file only
            report({"event": "failed", "key": want.key, "message": _sentence(error)})
        clock.decode += time.monotonic() - start
    read = [want for want in batch if want.key in sources]
    present = [want for want in read if sources[want.key] is not None]
    start = time.monotonic()
    features: dict[str, Parts] = {}
    try:
        made = encoder.encode_batch([sources[want.key] for want in present]) if present else []
        parts = [vision_parts(x) if isinstance(x, VideoVision) else side_parts(x) for x in made]
        features = dict(zip([want.key for want in present], parts, strict=True))
    except Exception as error:
        if len(batch) > 1:
            return [entry for want in read for entry in _encoded(encoder, [want], clock, report)]
        report({"event": "failed", "key": batch[0].key, "message": _sentence(error)})
        return []
    finally:
        clock.encode += time.monotonic() - start
    return [(want.key, want.file, features.get(want.key)) for want in read if _unchanged(want, report)]


def _timed(source: Any, clock: _Clock) -> Any:
    if isinstance(source, Mapping):
        return {
            name: replace(view, frames=_Timed(view.frames, clock)) if isinstance(view, View) else view
            for name, view in source.items()
        }
    lazy = hasattr(source, "__iter__") and not isinstance(source, (str, bytes, Sequence)) and not hasattr(source, "__len__")
    return _Timed(source, clock) if lazy else source


def _unchanged(want: Wanted, report: Report) -> bool:
    """Whether the files are still those that the key was made of."""
    for file, stamp in want.stamps:
        if stamp is None or stamp_or_none(file) != stamp:
            report({"event": "failed", "key": want.key, "message": str(changed_file(file))})
            return False
    return True


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no further message"
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
