"""Further bases to patch: trained once by a reproduction, into ``bases/NAME`` of its folder."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pave.playground import base_path
from pave.utils.embedded import PLAYGROUND
from pave.utils.files import read_json
from pave.utils.processes import side_by_side

logger = logging.getLogger(f"pave.{__name__}")

SMOLLM2 = "smollm2"
SHORT = "-short"
"""Behind the name of a base that was hardly trained: it shows only that everything runs."""
_HARDLY = {"clips": 12, "test_clips": 2, "language_steps": 2}
_REPORT = "accuracy.json"


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
    """What was measured of a base after its training: ``parameters``, ``accuracy`` by question type, how it was
    made."""
    folder = base_path() if name == PLAYGROUND else Path(folder_of(name, root))
    report: dict[str, Any] = read_json(folder / _REPORT)
    return report


def is_made(name: str, root: Path) -> bool:
    """Whether a base is there, trained and measured."""
    return name == PLAYGROUND or (Path(folder_of(name, root)) / _REPORT).exists()


def make_bases(names: Iterable[str], root: Path, processes: int = 2) -> None:
    """Train the bases that are missing, side by side, each in a process with one thread.

    Args:
        names: keys of ``FURTHER``, with ``SHORT`` behind one that is hardly trained; the playground's own is there
            always.
        root: folder of the reproduction.
        processes: how many at most.

    Raises:
        RuntimeError: naming the base that failed.
    """
    missing = [name for name in dict.fromkeys(names) if not is_made(name, root)]
    if not missing:
        return
    logger.info("training %d bases: %s", len(missing), ", ".join(missing))
    one_of_each_length = {name.endswith(SHORT): name for name in missing}  # the clips are made by one and used by all
    for step, chosen in ((_decode, one_of_each_length.values()), (_make, missing)):
        for _ in side_by_side(step, [(f"base {name}", (name, root)) for name in chosen], processes):
            pass


def _settings(name: str, root: Path) -> tuple[str, dict[str, Any], Path]:
    """Kind, changed settings and folder of the clips."""
    kind, short = name.removesuffix(SHORT), name.endswith(SHORT)
    return kind, FURTHER[kind].short if short else {}, root / "data" / f"silent{SHORT if short else ''}"


def _decode(name: str, root: Path) -> None:
    import torch

    from evidence.small_bases.families import KINDS
    from evidence.small_bases.making import TEST_CLIPS, prepare

    torch.set_num_threads(1)
    _, settings, work = _settings(name, root)
    clips = settings.get("clips", KINDS[PLAYGROUND].clips)
    prepare(work, clips, settings.get("test_clips", TEST_CLIPS), seed=0)


def _make(name: str, root: Path) -> None:
    import torch

    from evidence.small_bases.making import make_base
    from evidence.small_bases.smollm2 import make_smollm2

    torch.set_num_threads(1)
    kind, settings, work = _settings(name, root)
    out = Path(folder_of(name, root))
    if kind == SMOLLM2:
        make_smollm2(out, work, **settings)
    else:
        make_base(out, work, kind=kind, **settings)
