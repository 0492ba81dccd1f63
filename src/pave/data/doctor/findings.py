"""What the doctor says: findings, and the report that holds them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from pave.data.doctor.defects import DEFECTS, Severity
from pave.data.samples import Sample


@dataclass(frozen=True)
class Finding:
    """One defect of one file, in one file of samples."""

    code: str
    """A key of ``DEFECTS``."""
    severity: Severity
    split: str
    """The file of samples."""
    samples: tuple[str, ...]
    """Ids of the samples that it concerns, in their order; none where a line could not be read."""
    line: int | None
    """Number of such a line."""
    file: str | None
    """The media or side file; None where the text is meant."""
    channel: str | None
    message: str
    """What was found."""

    @property
    def sentence(self) -> str:
        """Everything for people, on one line."""
        who = "" if not self.samples else f"sample {self.samples[0]!r}"
        if len(self.samples) > 1:
            who += f" and {len(self.samples) - 1} more"
        where = [part for part in (who, self.file) if part]
        return f"{self.split}: {': '.join([*where, self.message])}; {DEFECTS[self.code].remedy}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "code": self.code,
            "severity": self.severity,
            "split": self.split,
            "samples": list(self.samples),
            "line": self.line,
            "file": self.file,
            "channel": self.channel,
            "message": self.message,
            "remedy": DEFECTS[self.code].remedy,
        }


@dataclass(frozen=True)
class Split:
    """A file of samples as it was read."""

    name: str
    samples: tuple[Sample, ...]
    lines: tuple[int, ...]
    """Number of each sample's line."""


@dataclass(frozen=True)
class Report:
    """What was looked at, and what was found."""

    splits: tuple[Split, ...]
    findings: tuple[Finding, ...]
    videos: int
    """Different videos."""
    quick: bool
    """True if files were only probed."""

    def count(self, severity: Severity) -> int:
        """Number of findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def codes(self) -> dict[str, int]:
        """Number of findings by code."""
        return dict(Counter(finding.code for finding in self.findings))

    def is_clean(self, strict: bool = False) -> bool:
        """True without an error; with ``strict`` also without a warning."""
        return not (self.count("error") or (strict and self.count("warning")))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "files": {split.name: len(split.samples) for split in self.splits},
            "videos": self.videos,
            "quick": self.quick,
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "notes": self.count("note"),
            "codes": self.codes,
            "findings": [finding.to_dict() for finding in self.findings],
        }
