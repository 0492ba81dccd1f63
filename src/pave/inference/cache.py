"""What was made of files, kept in memory up to a number of bytes. Keys say what a value was made of, so a value never goes stale."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

_ENTRY_BYTES = 256
"""Counted for an entry beside its tensors, so that entries of nothing (a video without sound) are bounded too."""


class ByteCache:
    """The values used last, in all threads.

    Args:
        max_bytes: most that is kept; 0 keeps nothing.

    Raises:
        ValueError: if that is negative.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"cache_bytes must not be negative, got {max_bytes}; 0 keeps nothing")
        self.max_bytes = max_bytes
        self.num_bytes = 0
        """Held at present."""
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def get(self, key: Hashable) -> tuple[bool, Any]:
        """Whether there is a value, and the value (which may be None)."""
        with self._lock:
            if key not in self._entries:
                self.misses += 1
                return False, None
            self.hits += 1
            self._entries.move_to_end(key)
            return True, self._entries[key][0]

    def put(self, key: Hashable, value: Any, num_bytes: int) -> None:
        """Keep a value, and let go of those that were not used for longest. One that is larger than all there may be is not kept."""
        size = num_bytes + _ENTRY_BYTES
        with self._lock:
            self._drop(key)
            if size > self.max_bytes:
                return
            while self.num_bytes + size > self.max_bytes:
                self._drop(next(iter(self._entries)))
            self._entries[key] = value, size
            self.num_bytes += size

    def drop(self, key: Hashable) -> None:
        """Let go of a value, if it is there."""
        with self._lock:
            self._drop(key)

    def _drop(self, key: Hashable) -> None:
        if key in self._entries:
            self.num_bytes -= self._entries.pop(key)[1]
