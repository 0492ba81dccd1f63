"""JSON files that vouch for the files beside them and for themselves, so that damage and mixtures are noticed.

Such a file holds hashes of other files, and under ``digest`` the SHA-256 of its own bytes, taken with zeros where the digest stands. It
tells damage and accidents; it is no proof of who wrote it, as anybody can compute it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DIGEST = "digest"
_PREFIX = "sha256:"
NO_DIGEST = _PREFIX + "0" * 64
"""What stands for the digest while it is computed."""
_PIECE = 4 * 2**20


def sha256_of(content: bytes) -> str:
    """``sha256:...`` of bytes."""
    return _PREFIX + hashlib.sha256(content).hexdigest()


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """``sha256:...`` of a file's content, read piece by piece."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return _PREFIX + digest.hexdigest()


def signed_text(values: Mapping[str, Any]) -> str:
    """``values`` as indented JSON that ends in its digest.

    Raises:
        ValueError: if ``values`` holds NaN or an infinity, or the text that stands for the digest.
    """
    text = json.dumps({**values, DIGEST: NO_DIGEST}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if text.count(NO_DIGEST) != 1:
        raise ValueError(f"the text {NO_DIGEST!r} cannot be part of a file that is signed")
    return text.replace(NO_DIGEST, sha256_of(text.encode()))


def is_signed(content: bytes, values: Any) -> bool:
    """Whether a file is, byte for byte, one that ``signed_text`` made.

    Args:
        content: of the file.
        values: the same, parsed.
    """
    found = values.get(DIGEST) if isinstance(values, dict) else None
    if not isinstance(found, str) or len(found) != len(NO_DIGEST) or content.count(found.encode()) != 1:
        return False
    return sha256_of(content.replace(found.encode(), NO_DIGEST.encode())) == found


def write_signed(path: Path, values: Mapping[str, Any]) -> None:
    """Write ``signed_text`` of values; for a folder that is not yet where it will be."""
    path.write_text(signed_text(values), encoding="utf-8", newline="\n")
