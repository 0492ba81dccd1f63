"""A recipe through the Trainer on the device that training takes, stopped and resumed."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pave.config import EncoderConfig, read_strict
from pave.selfcheck.checks import Check
from pave.selfcheck.machine import difference
from pave.selfcheck.placeholders import told
from pave.side_channels import build_encoder
from pave.training import run_recipe
from pave.training.arguments import uses_accelerator
from pave.training.recipe import Recipe

_STEPS = 4
_TOLERANCE = 1e-3
"""Of a tensor's largest value: an accelerator may add up in another order the second time."""


def check_recipe(folder: Path) -> Check:
    """Train as ``pave train`` does, from the clips of ``make_items`` in ``folder``; then again from the checkpoint in the middle.

    The second run has to end as the first did: bit for bit on a CPU, within a tolerance on an accelerator.
    """
    start = time.monotonic()
    name = "recipe, stopped and resumed"
    try:
        losses, off = _both_runs(folder)
    except Exception as error:  # of any kind: to find it is what this is for
        return Check(name, "failed", told(error), _since(start))
    seen = f"mean loss {losses:.3f}; resumed, " + (
        "the same bit for bit" if off == 0 else f"off by {off:.1e} of the largest value"
    )
    allowed = _TOLERANCE if uses_accelerator() else 0.0
    return Check(name, "ok" if off <= allowed else "failed", seen, _since(start))


def _both_runs(folder: Path) -> tuple[float, float]:
    recipe = read_strict(Recipe, _values(folder), "the recipe of pave selfcheck")
    first = run_recipe(recipe, folder=folder, progress=False)
    before = _tensors(first.patch)
    shutil.rmtree(first.patch)
    shutil.rmtree(folder / "run" / f"checkpoint-{_STEPS}")
    after = _tensors(run_recipe(recipe, folder=folder, progress=False, resume=True).patch)
    off = [difference(after[name], value) for name, value in before.items() if not torch.equal(after[name], value)]
    return first.train_loss or float("nan"), max(off, default=0.0)


def _values(folder: Path) -> dict[str, Any]:
    fusion = {"width": 64, "embed_width": 64, "num_heads": 4, "num_layers": 2}
    channel = {"kind": "audio", "width": build_encoder(EncoderConfig()).width, "fusion": fusion}
    lora = {"rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj"]}
    return {
        "base": {"model": "playground"},
        "patch": {"side_channels": {"audio": channel}, "lora": lora, "storage_dtype": "float32"},
        "data": {"train": "train.jsonl", "frames": {"num_frames": 8}, "cache": "memory"},
        "training": {"steps": _STEPS, "save_every": _STEPS // 2, "batch_size": 2, "learning_rate": 3e-3},
        "output": str(folder / "run"),
    }


def _tensors(patch: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.name}/{name}": value.double()
        for file in patch.rglob("*.safetensors")
        for name, value in load_file(file).items()
    }


def _since(start: float) -> float:
    return round(time.monotonic() - start, 2)
