"""What the conformance suite found on each type of base, as it wrote it down; nothing here is claimed by hand.

``families.json`` is written by ``pytest tests/conformance/test_families.py --write-families src/pave/video_llms/families.json``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pave.video_llms import supported_types

RECORD = Path(__file__).with_name("families.json")
STORED_VISION = "stored vision features give what pixels give, without the vision tower"
"""The check of the suite that says whether vision features can be stored."""


@dataclass(frozen=True)
class VerifiedFamily:
    """One type of base."""

    model_type: str
    """``config.model_type``."""
    model_class: str
    """Its class in transformers; empty where nothing is recorded, as for a family registered from outside."""
    passed: tuple[str, ...]
    """Checks that passed."""
    limits: dict[str, str]
    """Checks that the base itself cannot meet, with or without a patch, and why."""
    open: dict[str, str]
    """Checks that failed or were not run."""
    facts: dict[str, Any]
    """Frames per step, names of linear layers and the like, as the suite saw them."""

    @property
    def stores_vision(self) -> bool:
        """Whether stored vision features were seen to take the place of pixels."""
        return STORED_VISION in self.passed


@cache
def _record() -> dict[str, Any]:
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return record


def transformers_version() -> str:
    """The version of transformers that the suite ran with."""
    return str(_record()["transformers"])


def verified_families() -> list[VerifiedFamily]:
    """Every described type of base with what the suite found, in the order of the table of families."""
    return [_family(model_type) for model_type in supported_types()]


def _family(model_type: str) -> VerifiedFamily:
    entry = dict(_record()["families"].get(model_type, {"checks": {}}))
    checks: dict[str, str] = entry.pop("checks")
    states = ("failed", "not run")
    return VerifiedFamily(
        model_type=model_type,
        model_class=entry.pop("class", ""),
        passed=tuple(check for check, state in checks.items() if state == "passed"),
        limits={check: state for check, state in checks.items() if state not in ("passed", *states)},
        open={check: state for check, state in checks.items() if state in states},
        facts=entry,
    )
