"""What a patch costs on bases of real size: counted from configurations, and measured once with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.prefill import BASE, Measurement
from evidence.measurement import measured_once, read_measurement
from evidence.plan import Plan, Section
from evidence.tables import linked, markdown_table
from pave.config import EncoderConfig, PatchConfig
from pave.patching.cost import PatchCost, patch_cost
from pave.patching.training_cost import training_cost
from pave.patching.training_memory import StepShape
from pave.side_channels import build_encoder
from pave.video_llms.known import load_config

BASES = ("llava-onevision-qwen2-0.5b", "llava-onevision-qwen2-7b")
_FRAMES, _TEXT_TOKENS, _SIDE_STEPS, _VIDEOS = 32, 64, 64, 2
_MEASURED_FRAMES, _ROUNDS = 4, 2


def presets() -> dict[str, PatchConfig]:
    """By name, with one audio channel, as ``pave show --preset`` has them: the width of log-mel features, and the
    published width."""
    return {
        "compact": PatchConfig.compact(audio=build_encoder(EncoderConfig()).width),
        "paper": PatchConfig.paper(audio=1024),
    }


def _each() -> Iterator[tuple[str, str, Any, PatchConfig]]:
    """Base, preset, the base's configuration and the patch."""
    for base in BASES:
        config = load_config(base)
        yield from ((base, name, config, patch) for name, patch in presets().items())


def _cost(config: Any, patch: PatchConfig, frames: int = _FRAMES) -> PatchCost:
    return patch_cost(config, patch, num_frames=frames, text_tokens=_TEXT_TOKENS, side_steps=_SIDE_STEPS)


def _write(plan: Plan, root: Path) -> str:
    parts = [
        f"Counted from the configurations, one audio channel, a prompt of {_FRAMES} frames, {_TEXT_TOKENS} tokens of "
        f"text and {_SIDE_STEPS} steps of sound. Bytes are those of the tensors on the disk in 16 bits. Operations are "
        "of the prefill, vision tower included, with LoRA not merged; merged it adds none. The side encoder is not "
        "counted.",
        _counted(),
        f"Training, by the same arithmetic: one forward pass of {_VIDEOS} videos in bfloat16 with activation "
        "checkpointing. *State* is the patch with its gradients and AdamW's moments in float32, all that a frozen base "
        "needs beside its weights between two steps.",
        _training(),
    ]
    if not plan.measure:
        return "\n\n".join([*parts, "Nothing was measured: that takes minutes and is left out at this size."])
    measurement = measured_once(presets()["compact"], root, frames=_MEASURED_FRAMES, rounds=_ROUNDS)
    return "\n\n".join([*parts, *_measured(measurement)])


def _counted() -> str:
    header = ["base", "patch", "parameters, fusion + LoRA", "of the base", "on the disk"]
    header += ["prefill of the base", "the patch adds, fusion + LoRA", "in all"]
    rows = []
    for base, name, config, patch in _each():
        cost = _cost(config, patch)
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
    return markdown_table(header, rows, "cost", named_by=2)


def _training() -> str:
    header = ["base", "patch", "weights of the base", "state", "peak", "peak without checkpointing"]
    header += ["operations a video", "times its forward pass"]
    shape = StepShape(batch_size=_VIDEOS, num_frames=_FRAMES, text_tokens=_TEXT_TOKENS)
    rows = []
    for base, name, config, patch in _each():
        cost = training_cost(config, patch, shape)
        memory = cost.memory
        rows.append(
            [
                base,
                name,
                f"{memory.base_weights / 1e9:.1f} GB",
                f"{(memory.patch_weights + memory.gradients + memory.optimizer) / 1e6:.0f} MB",
                f"{memory.peak / 1e9:.1f} GB",
                f"{cost.memory_other.peak / 1e9:.1f} GB",
                f"{cost.step_flops / 1e12:.0f} TFLOP",
                f"{cost.step_flops / cost.forward_flops:.2f}",
            ]
        )
    return markdown_table(header, rows, "training", named_by=2)


def _measured(measurement: Measurement) -> list[str]:
    cost = _cost(load_config(measurement.base), presets()["compact"], measurement.frames)
    fusion = 100 * cost.fusion_flops / cost.base_prefill_flops
    both = 100 * (cost.fusion_flops + cost.lora_flops) / cost.base_prefill_flops
    base_bytes, patched_bytes = measurement.base_bytes, measurement.patched_bytes
    memory = ["not known", "", "not known"]
    if base_bytes is not None and patched_bytes is not None:
        memory = [f"{base_bytes / 1e9:.2f} GB", "", f"{(patched_bytes - base_bytes) / 1e6:+.0f} MB"]
    share = 100 * measurement.fusion_seconds / measurement.base_seconds
    ratio = 100 * (measurement.ratio - 1)
    rows = [
        ["counted operations", f"{cost.base_prefill_flops / 1e12:.1f} TFLOP", f"+{fusion:.3f} %", f"+{both:.3f} %"],
        ["seconds", f"{measurement.base_seconds:.2f}", f"+{share:.3f} %", f"{ratio:+.3f} %"],
        ["most memory of the process", *memory],
    ]
    return [
        f"Measured on {measurement.machine}: {BASE} with random weights in {measurement.dtype}, "
        f"{measurement.frames} frames, {measurement.tokens} tokens, the compact patch, LoRA not merged, "
        f"{measurement.rounds} rounds of base and patched in turns, medians. *Fusion* is the time inside its modules. "
        "*Patched* is the whole prompt against the base's in the same round, which also has what else the machine did. "
        "Memory is the most that the process held during a prompt, weights included, the mark set back before each: of "
        "the base, and by how much that of the patched model differs. The patch itself is held in both.",
        markdown_table(["", "base", "fusion", "patched"], rows, "measured"),
    ]


def _in_short(plan: Plan, root: Path) -> list[str]:
    texts = []
    for base in BASES:
        cost = _cost(load_config(base), presets()["compact"])
        added = 100 * (cost.fusion_flops + cost.lora_flops) / cost.base_prefill_flops
        size = (cost.fusion_bytes + cost.lora_bytes) / 1e6
        texts.append(f"{linked(base, 'cost', base, 'compact')} {added:.3f} % and {size:.1f} MB")
    return [
        f"What the compact patch adds to the operations of a prompt of {_FRAMES} frames, and its size: "
        f"{', '.join(texts)}."
    ]


def _check(plan: Plan, root: Path) -> None:
    if plan.measure:
        read_measurement(presets()["compact"], root, frames=_MEASURED_FRAMES, rounds=_ROUNDS)


SECTION = Section("What it costs at real size", lambda plan: [], _write, _in_short, _check)
