"""What answering took, in a file beside the predictions: time depends on the machine, so it is no part of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pave.config import Strict, read_strict
from pave.patching import is_patched, patch_parameters
from pave.utils.files import atomic_write_json
from pave.utils.json_files import read_json

_SUFFIX = ".cost.json"


@dataclass(frozen=True, kw_only=True)
class RunCost(Strict):
    """Cost of a run."""

    samples: int
    """Samples that were answered in the time below; a run that was killed leaves out those before."""
    seconds: float
    """Wall-clock time, decoding and side encoders included, loading the model not."""
    device: str
    """Where the model was."""
    base_parameters: int
    """Of the frozen base."""
    patch_parameters: int = 0
    """Of fusion and LoRA; 0 without a patch."""


def cost_file(predictions: str | os.PathLike[str]) -> Path:
    """Where the cost of a run lies, by its predictions file."""
    return Path(predictions).with_suffix(_SUFFIX)


def forget_cost(predictions: Path) -> None:
    """Remove what an earlier run into this file took, because another one begins."""
    cost_file(predictions).unlink(missing_ok=True)


def record_cost(predictions: Path, model: Any, patch: bool, samples: int, seconds: float, go_on: bool) -> None:
    """Write the cost of a run beside its predictions.

    Args:
        predictions: the run's file.
        model: that answered.
        patch: whether its patch was on.
        samples: answered now.
        seconds: that took.
        go_on: add to what is recorded already.
    """
    own = sum(p.numel() for p in patch_parameters(model)) if is_patched(model) else 0
    whole = sum(p.numel() for p in model.parameters())
    path = cost_file(predictions)
    before = read_cost(path) if go_on and path.is_file() else None
    cost = RunCost(
        samples=samples + (before.samples if before else 0),
        seconds=round(seconds + (before.seconds if before else 0.0), 3),
        device=str(model.device),
        base_parameters=whole - own,
        patch_parameters=own if patch else 0,
    )
    atomic_write_json(path, cost.to_dict())


def read_cost(path: str | os.PathLike[str]) -> RunCost:
    """What ``record_cost`` wrote.

    Raises:
        ValueError: if the file is no such file; the message names it.
    """
    return read_strict(RunCost, read_json(path, remedy="remove it"), os.fspath(path))


def costs_in(folder: str | os.PathLike[str], name: str) -> RunCost | None:
    """The cost of the run of a predictions file, or of its parts together; None if none is recorded."""
    stem = name.removesuffix(".jsonl")
    files = [Path(folder) / f"{stem}{_SUFFIX}"]
    if not files[0].is_file():
        files = sorted(Path(folder).glob(f"{stem}-*-of-*{_SUFFIX}"))
    costs = [read_cost(path) for path in files]
    if not costs:
        return None
    return RunCost(
        samples=sum(cost.samples for cost in costs),
        seconds=sum(cost.seconds for cost in costs),
        device=", ".join(dict.fromkeys(cost.device for cost in costs)),
        base_parameters=costs[0].base_parameters,
        patch_parameters=costs[0].patch_parameters,
    )
