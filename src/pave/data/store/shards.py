"""The store on disk: shards that say themselves what they hold, and the index that is read from them.

::

    STORE/store.json                           what this folder is
    STORE/hashes.json                          content hashes of files that were seen
    STORE/features/ENCODER/encoder.json        what decides the features, in plain words
    STORE/features/ENCODER/SHARD.safetensors   features and times of several streams

A shard appears by one rename and is never changed. Its header lists its entries, so that there is no index on disk that could
disagree with it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from pave.side_channels.base import SideFeatures
from pave.utils.content import ContentHashes
from pave.utils.files import atomic_path, atomic_write_json
from pave.utils.json_files import parse_json, read_json, read_json_object

logger = logging.getLogger(__name__)

FORMAT = {"format": "pave feature store", "version": 1}
_HEADER = "pave_store"
_LEFTOVER_SECONDS = 3600.0
_OPEN_SHARDS = 32


@dataclass(frozen=True)
class ShardLimits:
    """How large a shard may become."""

    entries: int = 16
    """Most streams in a shard, and where features are extracted the unit of work that a process takes."""
    num_bytes: int = 256 * 2**20
    """A shard is closed before it would become larger, unless a single batch is."""

    def __post_init__(self) -> None:
        if self.entries < 1 or self.num_bytes < 1:
            raise ValueError(f"ShardLimits: entries and num_bytes must be at least 1, got {self.entries} and {self.num_bytes}")


PACKED = ShardLimits(entries=1024)
"""What a collection packs shards to."""


@dataclass(frozen=True)
class Entry:
    """One stream's features: where they are, and the file they were made of."""

    shard: Path
    key: str
    file: str
    """Name (without folders) of the file that was read first, for listings only."""
    num_bytes: int
    """0 where the file turned out not to have the channel."""
    checksum: int | None
    """CRC-32 of features and times; None where the channel is missing."""
    parts: tuple[str, ...] = ("features", "times")
    """Names of its tensors."""
    about: Mapping[str, Any] | None = None
    """What is stored beside the tensors, for entries that are no side features."""


@dataclass(frozen=True, eq=False)
class Parts:
    """Named tensors that are stored together, and what JSON says of them. Side features are ``features`` and ``times``."""

    tensors: Mapping[str, torch.Tensor]
    about: Mapping[str, Any] | None = None

    @property
    def num_bytes(self) -> int:
        """Of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass(frozen=True)
class EncoderSize:
    """What the features of one encoder take."""

    id: str
    name: str
    entries: int
    missing: int
    """Entries that say that a file has no such channel."""
    shards: int
    num_bytes: int
    """Of the shard files."""


class FeatureStore:
    """A folder of features.

    Args:
        folder: an existing store, or with ``create`` one that may be new.
        create: make it if it is not there.

    Raises:
        ValueError: if the folder is no store, or one of a later version.
    """

    def __init__(self, folder: str | os.PathLike[str], *, create: bool = False) -> None:
        self.folder = Path(folder)
        record = self.folder / "store.json"
        if not record.is_file():
            if not create:
                raise ValueError(f"{self.folder}: there is no feature store here; pave extract makes one")
            if self.folder.is_dir() and any(not name.startswith(".") for name in os.listdir(self.folder)):
                raise ValueError(
                    f"{self.folder}: the folder holds other files; choose an empty or new folder for the feature store"
                )
            atomic_write_json(record, FORMAT)
        try:
            found = read_json(record)
        except ValueError:
            found = None
        if found != FORMAT:
            raise ValueError(f"{record}: this is not a feature store that this version reads, it says {found!r:.80}")
        self._index: dict[str, dict[str, Entry]] = {}
        self._handles: OrderedDict[Path, Any] = OrderedDict()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": OrderedDict()}  # mapped files stay in their process

    @property
    def hashes_file(self) -> Path:
        """Where content hashes are remembered."""
        return self.folder / "hashes.json"

    def hashes(self) -> ContentHashes:
        """The remembered content hashes."""
        return ContentHashes(self.hashes_file)

    def encoder_folder(self, encoder: str) -> Path:
        """Where the shards of an encoder are."""
        return self.folder / "features" / encoder

    def encoders(self) -> list[str]:
        """Ids of all encoders that something was stored of."""
        parent = self.folder / "features"
        return sorted(p.name for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []

    def describe(self, encoder: str, facts: Mapping[str, Any]) -> None:
        """Write down what an encoder's id stands for."""
        target = self.encoder_folder(encoder) / "encoder.json"
        if not target.is_file():
            atomic_write_json(target, dict(facts))

    def facts(self, encoder: str) -> dict[str, Any]:
        """What ``describe`` wrote; empty if that is gone."""
        try:
            return read_json_object(self.encoder_folder(encoder) / "encoder.json")
        except ValueError:
            return {}

    # --- the index

    def shards(self, encoder: str) -> list[Path]:
        """Complete shards, sorted by name. What a killed writer left begins with a dot and is none."""
        folder = self.encoder_folder(encoder)
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
        return [folder / name for name in names if name.endswith(".safetensors") and not name.startswith(".")]

    def index(self, encoder: str, *, fresh: bool = False) -> dict[str, Entry]:
        """Entries by key, read from the shards' headers once, or anew if ``fresh``.

        Raises:
            ValueError: naming a shard that is damaged.
        """
        if fresh or encoder not in self._index:
            try:
                self._index[encoder] = self._read_index(encoder)
            except FileNotFoundError:  # another process compacts: what it removes is already in a shard of another name
                self._index[encoder] = self._read_index(encoder)
        return self._index[encoder]

    def _read_index(self, encoder: str) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        for shard in self.shards(encoder):
            for entry in read_header(shard):
                found.setdefault(entry.key, entry)
        return found

    def drop_damaged(self, encoder: str) -> list[Path]:
        """Remove shards whose header cannot be read; their entries count as never made."""
        dropped = []
        for shard in self.shards(encoder):
            try:
                read_header(shard)
            except ValueError as error:
                logger.warning("%s; it is removed and its features are made again", error)
                shard.unlink()
                dropped.append(shard)
        return dropped

    def remove_leftovers(self) -> None:
        """Remove files that a killed writer left, once they are too old to be anybody's work."""
        for file in (self.folder / "features").glob("*/.*.tmp*"):
            if time.time() - file.stat().st_mtime > _LEFTOVER_SECONDS:
                file.unlink(missing_ok=True)

    def sizes(self) -> list[EncoderSize]:
        """What each encoder's features take."""
        rows = []
        for encoder in self.encoders():
            entries = self.index(encoder, fresh=True)
            shards = self.shards(encoder)
            name = str(self.facts(encoder).get("spec", {}).get("name", "unknown"))
            missing = sum(entry.checksum is None for entry in entries.values())
            rows.append(EncoderSize(encoder, name, len(entries), missing, len(shards), sum(s.stat().st_size for s in shards)))
        return rows

    # --- features

    def load(self, encoder: str, key: str) -> SideFeatures | None:
        """The features of a key, None where the file has no such channel. Only the entry's own bytes are read.

        Raises:
            KeyError: if the store does not have them.
            ValueError: naming the shard, if it is damaged.
        """
        parts = self.load_parts(encoder, key)
        return None if parts is None else SideFeatures(parts.tensors["features"], parts.tensors["times"])

    def load_parts(self, encoder: str, key: str) -> Parts | None:
        """The tensors of a key, whatever was stored under it.

        Raises:
            KeyError: if the store does not have them.
            ValueError: naming the shard, if it is damaged.
        """
        if key not in self.index(encoder):
            self.index(encoder, fresh=True)
        try:
            return self._load(self._index[encoder][key])
        except FileNotFoundError:  # compacted by another process since the index was read
            return self._load(self.index(encoder, fresh=True)[key])

    def _load(self, entry: Entry) -> Parts | None:
        if entry.checksum is None:
            return None
        try:
            handle = self._open(entry.shard)
            tensors = {part: handle.get_tensor(f"{entry.key}.{part}").clone() for part in entry.parts}  # memory of its own
        except safetensors.SafetensorError as error:
            raise _damaged(entry.shard, error) from None
        if checksum(*tensors.values()) != entry.checksum:
            raise _damaged(entry.shard, f"the checksum of {entry.key} is wrong")
        return Parts(tensors, entry.about)

    def _open(self, shard: Path) -> Any:
        if os.getpid() != self._process:
            self._handles, self._process = OrderedDict(), os.getpid()
        if shard not in self._handles:
            if len(self._handles) >= _OPEN_SHARDS:
                self._handles.popitem(last=False)
            self._handles[shard] = safetensors.safe_open(shard, framework="pt")
        self._handles.move_to_end(shard)
        return self._handles[shard]


def read_header(shard: Path) -> list[Entry]:
    """The entries of a shard.

    Raises:
        FileNotFoundError: if it is not there any more.
        ValueError: naming the shard, if it is damaged.
    """
    try:
        with safetensors.safe_open(shard, framework="pt") as file:
            rows = parse_json((file.metadata() or {})[_HEADER])
            names = set(file.keys())
        entries = [_entry(shard, row) for row in rows]
    except FileNotFoundError:
        raise
    except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _damaged(shard, error) from None
    expected = {f"{e.key}.{part}" for e in entries if e.checksum is not None for part in e.parts}
    if names != expected:
        raise _damaged(shard, "its header and its tensors disagree")
    return entries


def _entry(shard: Path, row: Mapping[str, Any]) -> Entry:
    entry = Entry(shard, row["key"], row["file"], row["bytes"], row["crc"])
    return replace(entry, parts=tuple(map(str, row["parts"])), about=dict(row["about"])) if "parts" in row else entry


def write_shard(folder: Path, entries: Sequence[tuple[str, str, Parts | None]]) -> Path:
    """Write (key, file, parts) entries as one shard, whole or not at all. Its bytes are a function of the entries alone.

    Its name is a hash of its keys.
    """
    tensors: dict[str, torch.Tensor] = {}
    rows = []
    for key, file, parts in sorted(entries, key=lambda entry: entry[0]):
        row: dict[str, Any] = {"key": key, "file": os.path.basename(file), "bytes": 0, "crc": None}
        if parts is not None:
            own = {part: tensor.detach().cpu().contiguous() for part, tensor in parts.tensors.items()}
            tensors |= {f"{key}.{part}": tensor for part, tensor in own.items()}
            row |= {"bytes": parts.num_bytes, "crc": checksum(*own.values())}
            if parts.about is not None:
                row |= {"parts": list(own), "about": dict(parts.about)}
        rows.append(row)
    target = folder / f"{shard_name(row['key'] for row in rows)}.safetensors"
    with atomic_path(target) as work:
        # a single entry: the order of several is not fixed in the file
        safetensors.torch.save_file(tensors, work, metadata={_HEADER: json.dumps(rows)})
    return target


def shard_name(keys: Iterable[str]) -> str:
    """The name of the shard that holds these keys."""
    return hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()[:32]


def side_parts(features: SideFeatures) -> Parts:
    """Side features as they are stored."""
    return Parts({"features": features.features_KMC, "times": features.times_K})


def checksum(*tensors: torch.Tensor) -> int:
    """CRC-32 of the bytes of all, one after the other."""
    crc = 0
    for tensor in tensors:
        crc = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data, crc)
    return crc


def _damaged(shard: Path, reason: object) -> ValueError:
    text = " ".join(str(reason).split())[:120]
    return ValueError(f"{shard}: the shard is damaged ({text}); remove the file and run pave extract again")
