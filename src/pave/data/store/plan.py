"""Which features a list of samples needs, and the name of each: a hash of the encoder and of the content that it reads."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import inspect
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pave.data.samples import Sample
from pave.data.sources import files_read
from pave.data.vision import BaseVision, Encoder
from pave.side_channels import FEATURES_VERSION, OwnEncoder
from pave.utils.content import ContentHashes, Stamp, stamp_or_none

KEY_DIGITS, ENCODER_DIGITS = 40, 20
VISION = "the base's vision"
"""What stands in the place of a channel's name where the features are the base's own."""


@dataclass(frozen=True)
class EncoderIdentity:
    """Everything that decides what an encoder makes of a source, under a short name."""

    id: str
    """Names its folder in the store."""
    facts: dict[str, Any]
    """What the name is a hash of, in plain words."""


@dataclass(frozen=True)
class Wanted:
    """Features of one stream, which may serve many samples."""

    key: str
    """Hash of the encoder and of the content of the files."""
    encoder: str
    """``EncoderIdentity.id``."""
    video: str
    """Path of the sample's video."""
    path: str | None
    """The file or folder that the sample names for the channel."""
    stamps: tuple[tuple[str, Stamp | None], ...]
    """The files that decide the features, as they were before they were hashed; None for one that was not there."""

    @property
    def file(self) -> str:
        """What to name in a message."""
        return self.video if self.path is None else self.path


@dataclass(frozen=True)
class Failure:
    """Features that could not be made."""

    file: str
    channel: str
    samples: tuple[str, ...]
    """Ids of all samples that need them."""
    message: str


@dataclass
class Plan:
    """Features that samples need, each once."""

    encoders: dict[str, Encoder] = field(default_factory=dict)
    """By ``EncoderIdentity.id``."""
    identities: dict[str, EncoderIdentity] = field(default_factory=dict)
    """By its id."""
    wanted: dict[str, Wanted] = field(default_factory=dict)
    """By key."""
    users: dict[str, list[str]] = field(default_factory=dict)
    """Ids of the samples by key."""
    channels: dict[str, str] = field(default_factory=dict)
    """A channel by key."""
    failures: list[Failure] = field(default_factory=list)
    """Files that cannot even be hashed."""

    def keys_of(self, encoder: str) -> list[str]:
        """The keys of one encoder, sorted."""
        return sorted(key for key, want in self.wanted.items() if want.encoder == encoder)

    def failed(self, key: str, message: str) -> Failure:
        """The record that the features of a key could not be made."""
        return Failure(self.wanted[key].file, self.channels[key], tuple(self.users[key]), message)


def identify(encoder: Encoder, hashes: ContentHashes) -> EncoderIdentity:
    """Name an encoder by its settings, the content or commit of its weights, and the version of the code that runs it.

    Raises:
        ValueError: if it has weights of a hub without a commit, so that nobody could say which ones they are.
    """
    spec = encoder.spec()
    weights: list[str] = []
    known = {str(spec.model): encoder.files()} if isinstance(encoder, BaseVision) else {}
    facts: dict[str, Any] = {"spec": _with_weights(spec.to_dict(), hashes, weights, known), "pave": FEATURES_VERSION}
    if weights:
        facts["transformers"] = importlib.metadata.version("transformers")
    if ":" in spec.name or isinstance(encoder, OwnEncoder):
        facts["code"] = _code_hash(type(encoder), hashes)
    facts = json.loads(json.dumps(facts, sort_keys=True))
    return EncoderIdentity(_digest(facts)[:ENCODER_DIGITS], facts)


def _with_weights(value: Any, hashes: ContentHashes, weights: list[str], known: Mapping[str, list[str]]) -> Any:
    """A spec with every ``model`` (also of an encoder inside another one's settings) replaced by what its weights are; the
    models are added to ``weights``. ``known`` has the files that count of some models in folders, else all do."""
    if isinstance(value, (list, tuple)):
        return [_with_weights(item, hashes, weights, known) for item in value]
    if not isinstance(value, dict):
        return value
    plain = {key: _with_weights(item, hashes, weights, known) for key, item in value.items()}
    model = value.get("model")
    if not isinstance(model, str):
        return plain
    weights.append(model)
    if os.path.exists(model):
        return {**plain, "model": {"files": _folder_hash(model, hashes, known.get(model))}, "revision": None}
    if not value.get("revision"):
        raise ValueError(
            f"the encoder {value.get('name')!r}: nothing says which commit of {model!r} was loaded, so its features cannot be named; "
            "set the encoder's revision"
        )
    return {**plain, "model": {"hub": model, "commit": value["revision"]}}


def _folder_hash(model: str, hashes: ContentHashes, files: list[str] | None) -> str:
    if files is None:
        inside = (os.path.join(root, name) for root, _, names in os.walk(model) for name in names)
        files = [model] if os.path.isfile(model) else sorted(inside)
    found = _checked(hashes.of_all(files))
    return _digest([[os.path.relpath(file, model), found[file]] for file in files])


def _code_hash(cls: type, hashes: ContentHashes) -> str:
    """Of the module that an encoder of one's own stands in."""
    try:
        return hashes.of(inspect.getsourcefile(importlib.import_module(cls.__module__)) or "")
    except (TypeError, OSError, ValueError, ImportError):
        raise ValueError(
            f"the encoder {cls.__module__}:{cls.__qualname__} has no source file, so its features cannot be named; put the class "
            "into a module"
        ) from None


def plan_features(
    samples: Sequence[Sample], encoders: Mapping[str, Encoder], hashes: ContentHashes, plan: Plan | None = None
) -> Plan:
    """Every feature that the samples need. Files are hashed where their hash is not known yet.

    Args:
        samples: of one or several files.
        encoders: by channel.
        hashes: of contents.
        plan: to add to.

    Raises:
        ValueError: if an encoder cannot be named. A file that cannot be read becomes a failure of the plan.
    """
    plan = plan or Plan()
    names = {channel: identify(encoder, hashes) for channel, encoder in encoders.items()}
    for channel, name in names.items():
        plan.identities[name.id] = name
        plan.encoders.setdefault(name.id, encoders[channel])
    streams: dict[tuple[str, str, str | None], list[str]] = {}
    for sample in samples:
        for channel in encoders:
            if sample.side_channels.get(channel, "") is not None:  # null: the channel is missing
                stream = channel, sample.video, sample.side_channels.get(channel)
                streams.setdefault(stream, []).append(sample.id)
    read = {stream: files_read(encoders[stream[0]], stream[1], stream[2]) for stream in streams}
    behind = list(dict.fromkeys(file for files in read.values() if files for file in files))
    stamps = {
        file: stamp_or_none(file) for file in behind
    }  # before hashing: a file that changes meanwhile has another one later
    found = hashes.of_all(behind)
    for stream, ids in streams.items():
        files = read[stream]
        if files is None:  # nothing to read: the channel is missing
            continue
        channel, video, path = stream
        broken = next((error for file in files if isinstance(error := found[file], ValueError)), None)
        if broken is not None:
            plan.failures.append(Failure(video if path is None else path, channel, tuple(ids), str(broken)))
            continue
        contents = _checked({file: found[file] for file in files})
        key = _key(encoders[channel], names[channel].id, video, path, contents)
        want = Wanted(key, names[channel].id, video, path, tuple((file, stamps[file]) for file in contents))
        plan.wanted.setdefault(want.key, want)
        plan.channels.setdefault(want.key, channel)
        plan.users[want.key] = [*plan.users.get(want.key, []), *ids]
    return plan


def wanted_key(encoder: Encoder, identity: str, video: str, path: str | None, content_of: Callable[[str], str]) -> str | None:
    """The key of one stream; None if the sample lacks the channel.

    Args:
        encoder: of the channel.
        identity: ``EncoderIdentity.id``.
        video: path of the sample's video.
        path: the file or folder that the sample names for the channel.
        content_of: what stands for the content of a file: its hash where the key is to outlive the file's place, else what tells that
            it was not touched.

    Raises:
        ValueError: if ``content_of`` raises it.
    """
    files = files_read(encoder, video, path)
    return None if files is None else _key(encoder, identity, video, path, {file: content_of(file) for file in files})


def _key(encoder: Encoder, identity: str, video: str, path: str | None, contents: Mapping[str, str]) -> str:
    named = sorted([_name_of(encoder, file, video, path), content] for file, content in contents.items())
    own = [os.path.abspath(p) if p is not None else None for p in (video, path)] if encoder.source == "own" else None
    return _digest([identity, named, own])[:KEY_DIGITS]


def _name_of(encoder: Encoder, file: str, video: str, path: str | None) -> str:
    """What of a file's name its reader goes by: its ending; a camera's file is called after it; inside a folder, or beside a
    description, the place counts too."""
    if path is None or (file == video and file != path):
        return f"video:{os.path.splitext(file)[1].lower()}"
    if os.path.isdir(path):
        return os.path.relpath(file, path).replace(os.sep, "/")
    if encoder.source not in ("scene3d", "sensor", "views", "own"):
        return os.path.splitext(file)[1].lower()
    if file == path and encoder.source != "views":
        return os.path.splitext(file)[1].lower()
    return os.path.relpath(file, os.path.dirname(path) or ".").replace(os.sep, "/")


def _checked(found: Mapping[str, str | ValueError]) -> dict[str, str]:
    checked: dict[str, str] = {}
    for file, value in found.items():
        if isinstance(value, ValueError):
            raise value
        checked[file] = value
    return checked


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def chunked(keys: Iterable[str], size: int) -> list[list[str]]:
    """Sorted keys in groups of ``size``."""
    ordered = sorted(keys)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]
