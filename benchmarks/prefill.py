"""Time and memory of a prompt through a base of real size with random weights, with and without a patch.

For the other benchmarks, and for the section on cost of the evidence.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pave.config import PatchConfig, Strict
from pave.patching import attach_patch, patch_slot
from pave.tokens import SideTokens
from pave.video_llms import get_interface
from pave.video_llms.known import load_config

BASE = "llava-onevision-qwen2-0.5b"
_TEXT_TOKENS, _SIDE_STEPS = 64, 64


@dataclass(frozen=True, kw_only=True)
class Measurement(Strict):
    """The prefill of one prompt."""

    base: str
    """Its configuration; the weights are random."""
    frames: int
    tokens: int
    """Length of the prompt."""
    dtype: str
    rounds: int
    base_seconds: float
    """Median over the rounds."""
    ratio: float
    """Median over the rounds of the patched model's seconds over the base's in the same round."""
    fusion_seconds: float
    """Median of the time inside the fusion modules, part of the patched model's."""
    base_bytes: int | None
    """Most memory during a prompt through the base, weights included: on a CPU of the process; null where the system
    does not say."""
    patched_bytes: int | None
    """The same of the patched model."""
    machine: str
    patch: dict[str, Any]
    """Its configuration."""


def measure_prefill(
    patch: PatchConfig,
    *,
    frames: int = 32,
    rounds: int = 2,
    dtype: str = "bfloat16",
    device: str = "cpu",
    base: str = BASE,
    config: Any = None,
) -> Measurement:
    """Send one prompt through a randomly initialised base, with and without a patch, in turns.

    Args:
        patch: with one channel, whose features are random; its LoRA is not merged.
        frames: of the video.
        rounds: of both in turns; one prompt of each comes first and is not counted.
        dtype: of the base.
        device: where it is.
        base: name of a known LLaVA-OneVision configuration.
        config: another configuration of that family than the one of this name.
    """
    import transformers

    config = load_config(base) if config is None else config
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = transformers.AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, dtype)).eval()
    attach_patch(model, patch)
    batch = _prompt(config, frames, getattr(torch, dtype), device)
    sides = _sides(patch, frames, device)
    seconds: dict[str, list[float]] = {"base": [], "patched": [], "fusion": []}
    peaks: dict[str, list[int]] = {"base": [], "patched": []}
    with torch.no_grad(), _clocked(patch_slot(model), device) as inside:
        for round_number in range(rounds + 1):
            for name, given in (("base", {}), ("patched", sides)):
                inside.clear()
                fresh = forget_peak(device)
                start = _now(device)
                model(**batch, **given, logits_to_keep=1, use_cache=True)
                taken = _now(device) - start
                if round_number:
                    peak = peak_bytes(device) if fresh else None
                    peaks[name] += [] if peak is None else [peak]
                    seconds[name].append(taken)
                    seconds["fusion"] += [sum(inside)] if inside else []
    return Measurement(
        base=base,
        frames=frames,
        tokens=batch["input_ids"].shape[1],
        dtype=dtype,
        rounds=rounds,
        base_seconds=statistics.median(seconds["base"]),
        ratio=statistics.median(a / b for a, b in zip(seconds["patched"], seconds["base"], strict=True)),
        fusion_seconds=statistics.median(seconds["fusion"]),
        base_bytes=max(peaks["base"], default=None),
        patched_bytes=max(peaks["patched"], default=None),
        machine=_machine(device),
        patch=patch.to_dict(),
    )


def _prompt(config: Any, frames: int, dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    side = config.vision_config.image_size
    layout = get_interface(config).layouts(config, {"pixel_values_videos": torch.empty(1, frames, device="meta")})[0]
    video = torch.full((1, layout.steps * layout.tokens_per_step + layout.trailing), config.video_token_id)
    text = torch.randint(0, min(1000, config.video_token_id), (1, _TEXT_TOKENS))
    ids = torch.cat([video, text], dim=1).to(device)
    pixels = torch.randn(1, frames, 3, side, side).to(device, dtype)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": pixels}


def _sides(patch: PatchConfig, frames: int, device: str) -> dict[str, Any]:
    times = torch.linspace(0.5, frames - 0.5, frames, dtype=torch.float64)[None]
    steps = torch.linspace(0, frames, _SIDE_STEPS, dtype=torch.float64)
    sides = {
        name: SideTokens.from_videos([torch.randn(_SIDE_STEPS, channel.width)], [steps]).to(device)
        for name, channel in patch.side_channels.items()
    }
    return {"side_channels": sides, "frame_times": times}


@contextlib.contextmanager
def _clocked(slot: nn.Module, device: str) -> Iterator[list[float]]:
    """The seconds of every call of the fusion modules inside the block."""
    inside: list[float] = []
    starts: list[float] = []
    hooks = [
        slot.register_forward_pre_hook(lambda *_: starts.append(_now(device))),
        slot.register_forward_hook(lambda *_: inside.append(_now(device) - starts.pop())),
    ]
    try:
        yield inside
    finally:
        for hook in hooks:
            hook.remove()


def timed(run: Callable[[], object], device: str) -> float:
    """Seconds of a call, until the device is done with it."""
    start = _now(device)
    run()
    return _now(device) - start


def _now(device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def forget_peak(device: str) -> bool:
    """Let ``peak_bytes`` begin anew, with what is held now. Returns whether the system can do that."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_bytes(device: str) -> int | None:
    """Most memory held since the last ``forget_peak``: of a GPU what torch has given out, else what Linux counts for
    this process (VmHWM); None where neither is there. What the parent held is no part of it."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device)
    try:
        line = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    except OSError:
        return None
    return None if line is None else 1024 * int(line[1])


def _machine(device: str) -> str:
    return (
        f"{platform.machine()}, {os.cpu_count()} processors, {torch.get_num_threads()} threads, device {device}, "
        f"torch {torch.__version__}"
    )
