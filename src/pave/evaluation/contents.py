"""What was in a sample's files when it was asked about: an answer is about content, not about a path."""

from __future__ import annotations

from collections.abc import Mapping

from pave.data.descriptors import files_named
from pave.data.samples import Sample
from pave.utils.content import Stamp, content_digest, stamp_or_none

_MISSING_CHANNEL, _UNKNOWN = "none", ""


class SampleContents:
    """Digests of the files of samples (``pave.utils.content.content_digest``). A file is read again only if it was touched."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[Stamp | None, ...], str]] = {}

    def of(self, sample: Sample, lender: Sample | None = None) -> dict[str, str]:
        """By role (``video``, ``side_channels.NAME``) the digest of a sample's file.

        Args:
            sample: whose files.
            lender: a sample whose streams stand in for its own; their roles begin with ``borrowed.``.

        Returns:
            "none" for a channel that the sample says is missing, "" for a file that cannot be read.
        """
        found = {"video": self._digest(sample.video)}
        for name, path in sorted(sample.side_channels.items()):
            found[f"side_channels.{name}"] = _MISSING_CHANNEL if path is None else self._digest(path)
        borrowed = {} if lender is None else self.of(lender)
        return found | {f"borrowed.{role}": digest for role, digest in borrowed.items()}

    def _digest(self, path: str) -> str:
        files = files_named(path)
        stamps = tuple(map(stamp_or_none, files))
        before, digest = self._known.get(path, (None, _UNKNOWN))
        if before != stamps:
            try:
                digest = content_digest(files)
            except ValueError:  # whoever decodes it says what is wrong
                digest = _UNKNOWN
            self._known[path] = stamps, digest
        return digest


def other_content(first: Mapping[str, str], second: Mapping[str, str]) -> str | None:
    """The first role whose file is known on both sides and another one; None if there is none."""
    both = (role for role in first if first[role] and second.get(role))
    return next((role for role in both if first[role] != second[role]), None)
