"""What a patch costs on bases of real size: counted from their configurations, and measured once with random weights."""

from __future__ import annotations

from pathlib import Path

from pave.config import EncoderConfig, PatchConfig
from pave.evidence.measured import BASE, Measured, measured_once, read_measured
from pave.evidence.runs import Run
from pave.evidence.sections.common import Plan, Section
from pave.evidence.tables import linked, markdown_table
from pave.patching.cost import patch_cost
from pave.patching.training_cost import training_cost
from pave.patching.training_memory import StepShape
from pave.side_channels import build_encoder
from pave.video_llms.known import load_config

BASES = ("llava-onevision-qwen2-0.5b", "llava-onevision-qwen2-7b")
_FRAMES, _TEXT_TOKENS, _SIDE_STEPS, _VIDEOS = 32, 64, 64, 2
_MEASURED_FRAMES, _ROUNDS = 4, 2


def presets() -> dict[str, PatchConfig]:
    """By name, with one audio channel, as ``pave show --preset`` has them: the width of log-mel features, and the published width."""
    return {
        "compact": PatchConfig.compact(audio=build_encoder(EncoderConfig()).width),
        "paper": PatchConfig.paper(audio=1024),
    }


def _runs(plan: Plan) -> list[Run]:
    return []


def _write(plan: Plan, root: Path) -> str:
    parts = [
        f"Counted from the configurations, one audio channel, a prompt of {_FRAMES} frames, {_TEXT_TOKENS} tokens of text and {_SIDE_STEPS} "
        "steps of sound. Bytes are those of the tensors on the disk in 16 bits. Operations are of the prefill, vision tower included, with "
        "LoRA not merged; merged it adds none. The side encoder is not counted.",
        _counted(),
        f"Training, by the same arithmetic: one forward pass of {_VIDEOS} videos in bfloat16 with activation checkpointing. *State* is the "
        "patch with its gradients and AdamW's moments in float32, all that a frozen base needs beside its weights between two steps.",
        _training(),
    ]
    if plan.measure:
        measured = measured_once(presets()["compact"], root, frames=_MEASURED_FRAMES, rounds=_ROUNDS)
        return "\n\n".join([*parts, *_measurement(measured)])
    return "\n\n".join([*parts, "Nothing was measured: that takes minutes and is left out at this size."])


def _counted() -> str:
    rows = []
    for base in BASES:
        config = load_config(base)
        for name, patch in presets().items():
            cost = patch_cost(config, patch, num_frames=_FRAMES, text_tokens=_TEXT_TOKENS, side_steps=_SIDE_STEPS)
            added = cost.fusion_flops + cost.lora_flops
            rows.append(
                [
                    base,
                    name,
                    f"{cost.fusion_parameters / 1e6:.2f} + {cost.lora_parameters / 1e6:.2f} M",
                    f"{100 * cost.patch_parameters / cost.base_parameters:.3f} %",
                    f"{cost.fusion_bytes / 1e6:.2f} + {cost.lora_bytes / 1e6:.2f} MB",
                    f"{cost.base_prefill_flops / 1e12:.1f} TFLOP",
                    f"+{cost.fusion_flops / 1e9:.1f} + {cost.lora_flops / 1e9:.1f} GFLOP",
                    f"+{100 * added / cost.base_prefill_flops:.3f} %",
                ]
            )
    header = [
        "base",
        "patch",
        "parameters, fusion + LoRA",
        "of the base",
        "on the disk",
        "prefill of the base",
        "the patch adds, fusion + LoRA",
        "in all",
    ]
    return markdown_table(header, rows, "cost", named_by=2)


def _training() -> str:
    shape = StepShape(batch_size=_VIDEOS, num_frames=_FRAMES, text_tokens=_TEXT_TOKENS)
    rows = []
    for base in BASES:
        config = load_config(base)
        for name, patch in presets().items():
            cost = training_cost(config, patch, shape)
            memory = cost.memory
            state = memory.patch_weights + memory.gradients + memory.optimizer
            rows.append(
                [
                    base,
                    name,
                    f"{memory.base_weights / 1e9:.1f} GB",
                    f"{state / 1e6:.0f} MB",
                    f"{memory.peak / 1e9:.1f} GB",
                    f"{cost.memory_other.peak / 1e9:.1f} GB",
                    f"{cost.step_flops / 1e12:.0f} TFLOP",
                    f"{cost.step_flops / cost.forward_flops:.2f}",
                ]
            )
    header = [
        "base",
        "patch",
        "weights of the base",
        "state",
        "peak",
        "peak without checkpointing",
        "operations a video",
        "times its forward pass",
    ]
    return markdown_table(header, rows, "training", named_by=2)


def _measurement(measured: Measured) -> list[str]:
    cost = patch_cost(
        load_config(measured.base),
        presets()["compact"],
        num_frames=measured.frames,
        text_tokens=_TEXT_TOKENS,
        side_steps=_SIDE_STEPS,
    )
    shares = [100 * flops / cost.base_prefill_flops for flops in (cost.fusion_flops, cost.fusion_flops + cost.lora_flops)]
    grown = ["not known", "not known"]
    if measured.base_bytes is not None and measured.patched_bytes is not None:
        grown = [f"{measured.base_bytes / 1e9:.2f} GB", f"{(measured.patched_bytes - measured.base_bytes) / 1e6:+.0f} MB"]
    share = 100 * measured.fusion_seconds / measured.base_seconds
    rows = [
        ["counted operations", f"{cost.base_prefill_flops / 1e12:.1f} TFLOP", f"+{shares[0]:.3f} %", f"+{shares[1]:.3f} %"],
        ["seconds", f"{measured.base_seconds:.2f}", f"+{share:.3f} %", f"{100 * (measured.ratio - 1):+.3f} %"],
        ["most memory of the process", grown[0], "", grown[1]],
    ]
    return [
        f"Measured on {measured.machine}: {BASE} with random weights in {measured.dtype}, {measured.frames} frames, {measured.tokens} tokens, "
        f"the compact patch, LoRA not merged, {measured.rounds} rounds of base and patched in turns, medians. *Fusion* is the time inside "
        "its modules. *Patched* is the whole prompt against the base's in the same round, which also has what else the machine did. Memory is "
        "the most that the process held during a prompt, weights included, the mark set back before each: of the base, and by how much that of "
        "the patched model differs. The patch itself is held in both.",
        markdown_table(["", "base", "fusion", "patched"], rows, "measured"),
    ]


def _in_short(plan: Plan, root: Path) -> list[str]:
    found = []
    for base in BASES:
        cost = patch_cost(
            load_config(base), presets()["compact"], num_frames=_FRAMES, text_tokens=_TEXT_TOKENS, side_steps=_SIDE_STEPS
        )
        added = 100 * (cost.fusion_flops + cost.lora_flops) / cost.base_prefill_flops
        size = (cost.fusion_bytes + cost.lora_bytes) / 1e6
        found.append(f"{linked(base, 'cost', base, 'compact')} {added:.3f} % and {size:.1f} MB")
    return [f"What the compact patch adds to the operations of a prompt of {_FRAMES} frames, and its size: {', '.join(found)}."]


def _check(plan: Plan, root: Path) -> None:
    if plan.measure:
        read_measured(presets()["compact"], root, frames=_MEASURED_FRAMES, rounds=_ROUNDS)


SECTION = Section("What it costs at real size", _runs, _write, _in_short, _check)
