"""Which patches are served, under which names, and how they come and go while requests run."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pave.patching import detach_patch, load_patch, patch_names, read_record, resolve_patch
from pave.serving.errors import ApiError, bad_request
from pave.side_channels import encoder_source

_DIGITS = 12


@dataclass(frozen=True)
class ServedPatch:
    """A patch on the model. It is what its content is: another content is another patch, whatever it is called."""

    name: str
    """What clients call it."""
    digest: str
    """``sha256:...`` of its record, which binds all of its files."""
    sources: dict[str, str]
    """By channel, what its encoder takes."""

    @property
    def id(self) -> str:
        """What the model calls it."""
        return f"{self.name}_{self.digest.removeprefix('sha256:')[:_DIGITS]}"

    @classmethod
    def of_folder(cls, name: str, folder: Path, encoders: Sequence[str] = ()) -> ServedPatch:
        """What a folder holds.

        Raises:
            ValueError: if it is no patch, is damaged, or names encoders that are not known.
        """
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", name):
            raise ValueError(f"the name of a patch is letters, digits and underscores, got {name[:80]!r}")
        record = read_record(folder)
        channels = record.patch.side_channels.items()
        return cls(name, record.digest, {channel: encoder_source(config.encoder, encoders) for channel, config in channels})


class Catalog:
    """The patches that are served. Thread-safe.

    Args:
        model: the base, on which every patch here is attached under its id.
        processor: of the base.
        base: what clients call the base.
        between: runs a function where no batch runs, and returns when it is done.
        encoders: modules with side encoders of one's own.
        allow_base_mismatch: load patches of other bases.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        base: str,
        between: Callable[[Callable[[], None]], None],
        *,
        encoders: Sequence[str] = (),
        allow_base_mismatch: bool = False,
    ) -> None:
        self.base = base
        self._model = model
        self._processor = processor
        self._between = between
        self._encoders = encoders
        self._allow_mismatch = allow_base_mismatch
        self._named: dict[str, ServedPatch] = {}
        self._users: dict[str, int] = {}
        """By id, the requests under way that began with a patch."""
        self._lock = threading.Lock()
        self._changing = threading.Lock()
        self._model_lock = _SharedLock()

    def load(self, name: str, folder: str | Path) -> ServedPatch:
        """Serve a patch under a name from now on, in place of one that had it.

        Raises:
            ValueError: if it cannot be loaded on this base, or the name is the base's.
        """
        if name == self.base:
            raise ValueError(f"{name!r} is the name of the base; give the patch another one")
        where = resolve_patch(folder)
        patch = ServedPatch.of_folder(name, where, self._encoders)
        with self._changing:
            if patch.id not in patch_names(self._model):
                self._change(
                    lambda: load_patch(
                        self._model, where, name=patch.id, processor=self._processor, allow_base_mismatch=self._allow_mismatch
                    )
                )
            with self._lock:
                self._named[name] = patch
            self._tidy()
        return patch

    def unload(self, name: str) -> None:
        """Serve a patch to nobody from now on. It leaves the memory when the last request that began with it is done.

        Raises:
            ApiError: 404, if there is none of that name.
        """
        with self._changing:
            with self._lock:
                if self._named.pop(name, None) is None:
                    raise self._unknown(name)
            self._tidy()

    def all(self) -> list[ServedPatch]:
        """Those that are served now."""
        with self._lock:
            return list(self._named.values())

    @contextlib.contextmanager
    def using(self, names: Sequence[str]) -> Iterator[list[ServedPatch]]:
        """Patches by name, or id, as they are now; they stay what they are until the block ends.

        Raises:
            ApiError: 404, if there is none of a name; 400, if one patch is named twice, by its name and by its id.
        """
        with self._lock:
            by_id = {patch.id: patch for patch in self._named.values()}
            found = [self._named.get(name) or by_id.get(name) for name in names]
            patches = [patch for patch in found if patch is not None]
            if len(patches) < len(names):
                raise self._unknown(names[found.index(None)])
            if len({patch.id for patch in patches}) < len(patches):
                raise bad_request("patches: one patch is listed by its name and by its id; list it once", "patches")
            for patch in patches:
                self._users[patch.id] = self._users.get(patch.id, 0) + 1
        try:
            yield patches
        finally:
            with self._lock:
                for patch in patches:
                    self._users[patch.id] -= 1
                    if not self._users[patch.id]:
                        del self._users[patch.id]
                idle = any(patch.id not in self._users and patch not in self._named.values() for patch in patches)
            if idle:  # this thread may be the event loop's, which must not wait for a batch to end
                threading.Thread(target=self.tidy, name="pave-unload", daemon=True).start()

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """No patch comes or goes while the block runs, which several threads may."""
        with self._model_lock.shared():
            yield

    def tidy(self) -> None:
        """Take patches off the model that no request and no name needs any more."""
        with self._changing:
            self._tidy()

    def _tidy(self) -> None:
        with self._lock:
            needed = {patch.id for patch in self._named.values()} | set(self._users)
        idle = [name for name in patch_names(self._model) if name not in needed]
        for name in idle:
            self._change(lambda name=name: detach_patch(self._model, name))  # type: ignore[misc]

    def _change(self, change: Callable[[], Any]) -> None:
        with self._model_lock.alone():  # first: while requests are read, batches go on
            self._between(change)

    def _unknown(self, name: str) -> ApiError:
        known = ", ".join([self.base, *self._named])
        return ApiError(404, f"there is no model {name[:80]!r}; there are {known}", code="model_not_found", param="model")


class _SharedLock:
    """Many at a time, or one alone."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._inside = 0

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        with self._condition:
            self._inside += 1
        try:
            yield
        finally:
            with self._condition:
                self._inside -= 1
                self._condition.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: not self._inside)
            yield
