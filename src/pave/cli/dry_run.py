"""The text of ``pave train --dry-run``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pave.cli.shared import FAILED, Result

if TYPE_CHECKING:
    from pave.patching.training_cost import TrainingCost
    from pave.patching.training_memory import Memory
    from pave.training.dry_run import DryRun
    from pave.training.dry_run_shape import Assumptions
    from pave.training.recipe import Recipe

_SHOWN = 20
_PARTS = (
    "base_weights",
    "patch_weights",
    "gradients",
    "optimizer",
    "activations",
    "working",
    "logits",
    "vision",
    "peak",
)


def result_of(plan: Recipe, folder: Path, assumed: Assumptions, resume: bool) -> Result:
    """What the verb returns: exit code 1 where something is missing."""
    from pave.training.dry_run import dry_run

    found = dry_run(plan, folder, assumed, resume=resume)
    lines = [f"{plan.base.model}, output {plan.output}", *_length(found)]
    if found.cost is not None:
        lines += ["", *_sizes(found.cost, found), "", *_memory(found.cost, plan.training.activation_checkpointing)]
        lines += ["", *_operations(found.cost, found)]
    lines += ["", *(f"note: {note}" for note in found.notes)] if found.notes else []
    return Result("\n".join([*lines, "", *_verdict(found)]), found.to_dict(), exit_code=FAILED if found.missing else 0)


def _length(found: DryRun) -> list[str]:
    samples = found.samples if found.samples is not None else found.assumed.samples
    processes = f" on {found.assumed.processes} devices" if found.assumed.processes > 1 else ""
    if found.steps is None:
        return [f"steps of {found.samples_per_step} samples each{processes}; how many depends on the samples (--samples N)"]
    known = "" if samples is None else f"{samples:,} samples, "
    return [f"{known}{found.steps:,} steps of {found.samples_per_step} samples each{processes}"]


def _sizes(cost: TrainingCost, found: DryRun) -> list[str]:
    tokens, shape = cost.tokens, found.shape
    assert shape is not None
    grid = (
        ""
        if shape.grid is None
        else f" ({shape.grid[0]} x {shape.grid[1]} a step at {found.assumed.video_size[1]} x {found.assumed.video_size[0]})"
    )
    shared = shape.shared
    together = (
        []
        if shared is None
        else [
            f"of {shape.batch_size} questions in a forward pass: {shared.mean_rows:.3g} videos on average and at most {shared.rows}, "
            f"with up to {shared.longest} questions each (data.share_videos)"
        ]
    )
    side = ", ".join(f"{name} {K} x {M}" for name in shape.side_steps for K, M in [shape.side(name)]) or "none"
    return [
        f"base {cost.base_parameters:,} parameters; patch {cost.fusion_parameters + cost.lora_parameters:,}, {cost.patch_bytes / 1e6:.2f} MB "
        f"(fusion {cost.fusion_parameters:,}, LoRA {cost.lora_parameters:,})",
        f"tokens per sample: video {tokens.video:,} of {shape.num_frames} frames{grid}, extra {tokens.extra:,}, text {tokens.text:,}, "
        f"all {tokens.total:,}; side tokens (steps x tokens): {side}",
        *together,
    ]


def _memory(cost: TrainingCost, checkpointing: bool) -> list[str]:
    names = ("with", "without") if checkpointing else ("without", "with")
    columns: list[Memory] = [cost.memory, cost.memory_other]
    unit, size = ("GB", 1e9) if cost.memory.peak >= 1e9 else ("MB", 1e6)
    rows = [f"{f'memory of a device, {unit}':<26}" + "".join(f"{name + ' recomputed activations':>34}" for name in names)]
    for part in _PARTS:
        rows.append(f"  {part.replace('_', ' '):<24}" + "".join(f"{getattr(column, part) / size:>34.2f}" for column in columns))
    rows.append(
        "  the peak has either vision, or activations, working and logits; the device's runtime comes on top (CUDA: about 0.5 GB)"
    )
    return rows


def _operations(cost: TrainingCost, found: DryRun) -> list[str]:
    unit, size = ("TFLOP", 1e12) if cost.forward_flops >= 1e11 else ("GFLOP", 1e9)
    lines = [
        f"operations: {cost.step_flops / size:,.2f} {unit} for a sample in training ({cost.forward_flops / size:,.2f} forward)"
    ]
    if found.device_hours is not None and found.total_flops is not None:
        hours = found.device_hours
        each = (
            f", {hours / found.assumed.processes:,.3g} on each of {found.assumed.processes}"
            if found.assumed.processes > 1
            else ""
        )
        lines.append(
            f"whole run: {found.total_flops:.3g} FLOP, {hours:,.3g} device hours at {found.assumed.teraflops:g} TFLOP/s (--tflops){each}; "
            "decoding and encoding not counted"
        )
    return lines


def _verdict(found: DryRun) -> list[str]:
    if not found.missing:
        return ["nothing is missing: the run can start"]
    more = len(found.missing) - _SHOWN
    lines = [f"missing: {reason}" for reason in found.missing[:_SHOWN]]
    return [*lines, f"... and {more} more; --json lists all"] if more > 0 else lines
