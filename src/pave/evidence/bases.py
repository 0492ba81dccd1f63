"""Further bases to patch: trained once by a reproduction, into ``bases/NAME`` of its folder."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pave.evidence.processes import side_by_side
from pave.playground import base_path
from pave.utils.embedded import PLAYGROUND
from pave.utils.files import read_json

logger = logging.getLogger(__name__)

SMOLLM2 = "smollm2"
SHORT = "-short"
"""Behind the name of a base that was hardly trained: it shows only that everything runs."""
_HARDLY = {"clips": 12, "test_clips": 2, "language_steps": 2}


@dataclass(frozen=True)
class FurtherBase:
    """A base beside the playground's own."""

    title: str
    """What the page calls it."""
    short: dict[str, Any] = field(default_factory=lambda: {**_HARDLY, "tower_steps": 2})
    """Settings that hardly train it."""


FURTHER = {
    "small": FurtherBase("LLaVA-OneVision, smaller"),
    "large": FurtherBase("LLaVA-OneVision, larger"),
    "qwen2_5_vl": FurtherBase("tiny Qwen2.5-VL"),
    SMOLLM2: FurtherBase("SmolLM2-135M-Instruct behind the playground's vision tower", {**_HARDLY, "word_steps": 2}),
}


def folder_of(name: str, root: Path) -> str:
    """Where the base of a run is: a folder, or the playground's own by its name."""
    return name if name == PLAYGROUND else str(root / "bases" / name)


def report_of(name: str, root: Path) -> dict[str, Any]:
    """What was measured of a base when it was trained: ``parameters``, ``accuracy`` by question type, and how it was made."""
    folder = base_path() if name == PLAYGROUND else Path(folder_of(name, root))
    report: dict[str, Any] = read_json(folder / "accuracy.json")
    return report


def is_made(name: str, root: Path) -> bool:
    """Whether a base is there, trained and measured."""
    return (Path(folder_of(name, root)) / "accuracy.json").exists()


def make_bases(names: Iterable[str], root: Path, processes: int = 2) -> None:
    """Train the bases that are missing, side by side, each in a process with one thread.

    Args:
        names: of ``FURTHER``, with ``SHORT`` behind it where it is hardly trained; the playground's own is there always.
        root: of the reproduction.
        processes: at most.

    Raises:
        RuntimeError: naming the base that failed.
    """
    missing = [name for name in dict.fromkeys(names) if name != PLAYGROUND and not is_made(name, root)]
    if not missing:
        return
    logger.info("training %d bases: %s", len(missing), ", ".join(missing))
    decode = {name.endswith(SHORT): name for name in missing}  # the same clips for all of one length: made by one, used by all
    for step, names_now in ((_decode, decode.values()), (_make, missing)):
        for _ in side_by_side(step, [(f"base {name}", (name, root)) for name in names_now], processes):
            pass


def _settings(name: str) -> tuple[str, dict[str, Any]]:
    kind = name.removesuffix(SHORT)
    return kind, FURTHER[kind].short if name.endswith(SHORT) else {}


def _work(name: str, root: Path) -> Path:
    return root / "data" / f"silent{SHORT if name.endswith(SHORT) else ''}"


def _decode(name: str, root: Path) -> None:
    import torch

    from pave.playground.base_families import KINDS
    from pave.playground.train_base import TEST_CLIPS, prepare

    torch.set_num_threads(1)
    settings = _settings(name)[1]
    prepare(_work(name, root), settings.get("clips", KINDS[PLAYGROUND].clips), settings.get("test_clips", TEST_CLIPS), seed=0)


def _make(name: str, root: Path) -> None:
    import torch

    torch.set_num_threads(1)
    kind, settings = _settings(name)
    out, work = Path(folder_of(name, root)), _work(name, root)
    if kind == SMOLLM2:
        from pave.playground.smollm2 import make_smollm2

        make_smollm2(out, work, **settings)
    else:
        from pave.playground.train_base import make_base

        make_base(out, work, kind=kind, **settings)
