"""Who may ask: API keys and the administrator's token, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from collections.abc import Iterable

from pave.serving.errors import ApiError
from pave.utils.reading import read_text

_LARGEST = 2**20
_SHORTEST = 16


class Keys:
    """Secrets of which each opens the door.

    Args:
        secrets: the keys; with none, everybody may come in.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._digests = [_digest(secret) for secret in secrets]

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], option: str) -> Keys:
        """One key a line; empty lines and those that begin with # are left out.

        Raises:
            ValueError: if it is no regular file, others than its owner may write to it or read it, it holds no key, or one that can be guessed.
        """
        text = read_text(path, _LARGEST)
        if os.name == "posix" and os.stat(path).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ValueError(
                f"{option} {os.fspath(path)}: others than its owner can open the file; run: chmod 600 {os.fspath(path)}"
            )
        secrets = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        if not secrets:
            raise ValueError(f"{option} {os.fspath(path)}: the file holds no key; write one a line")
        short = next((number for number, secret in enumerate(secrets, 1) if len(secret) < _SHORTEST), None)
        if short is not None:
            raise ValueError(
                f"{option} {os.fspath(path)}: key {short} is shorter than {_SHORTEST} characters; make one with: openssl rand -hex 24"
            )
        return cls(secrets)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def holds(self, secret: str) -> bool:
        """Whether it is one of them. The time that takes says nothing about which, or how much of one was right."""
        given = _digest(secret)
        return sum(hmac.compare_digest(given, known) for known in self._digests) > 0

    def check(self, authorization: str | None) -> str:
        """The owner that a header ``Authorization: Bearer KEY`` stands for: nobody's secret, the same for the same key.

        Raises:
            ApiError: 401, if there are keys and it brings none of them.
        """
        scheme, _, secret = (authorization or "").partition(" ")
        secret = secret.strip()
        if not self:
            return "everybody"
        if scheme.lower() != "bearer" or not self.holds(secret):
            raise ApiError(
                401,
                "a valid API key is needed: send the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return _digest(secret).hex()[:16]


def _digest(secret: str) -> bytes:
    """Of one length for every secret, so that a comparison cannot tell lengths apart."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
