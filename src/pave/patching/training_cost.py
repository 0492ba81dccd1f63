"""What training a patch costs: tokens, operations and memory of a step. No weights are loaded.

The base and the patch are built on the meta device, so parameters are counted exactly. Memory is ``pave.patching.training_memory``.

Operations are counted as in ``pave.patching.cost``: 2 for every weight and token, 4 x queries x keys x width for attention. A
frozen layer costs that once forward and once backward (the gradient of its input), a trained one twice backward, attention twice
backward; activation checkpointing runs the language model's layers forward once more. (The usual 6 x parameters x tokens for training,
Kaplan et al. 2020, arXiv 2001.08361, section 2.1, is three times forward; a frozen base saves the third of its weights'
gradients.) Fused attention kernels compute the scores again in the backward pass; that is not counted.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from pave.config import PatchConfig
from pave.patching import lora
from pave.patching.attach import attach_patch
from pave.patching.cost import BYTES, COUNTED, fusion_flops, linear_flops, video_tokens, vision_flops
from pave.patching.lookup import patch_slot
from pave.patching.training_memory import Memory, Sizes, StepSettings, StepShape, Tokens, adds_tokens, head_widths, memory_of
from pave.video_llms import get_interface


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """Of one patch on one base."""

    base_parameters: int
    fusion_parameters: int
    lora_parameters: int
    patch_bytes: int
    """On the disk, in the patch's storage dtype."""
    tokens: Tokens
    memory: Memory
    memory_other: Memory
    """The same with activation checkpointing turned the other way."""
    forward_flops: float
    """Of one sample."""
    step_flops: float
    """Of one sample, forward and backward."""

    def to_dict(self) -> dict[str, Any]:
        """All counts, derived ones included."""
        values = asdict(self)
        values["tokens"]["total"] = self.tokens.total
        for name in ("memory", "memory_other"):
            memory: Memory = getattr(self, name)
            values[name].update(fixed=memory.fixed, peak=memory.peak)
        return values


def training_cost(
    base_config: Any, patch: PatchConfig, shape: StepShape | None = None, settings: StepSettings | None = None
) -> TrainingCost:
    """Count a training step, on the meta device.

    Args:
        base_config: the base's config.
        patch: the patch.
        shape: of one forward pass.
        settings: how it is computed.

    Raises:
        ValueError: if this type of base is not counted here, or the patch does not fit it.
    """
    from transformers import AutoModelForImageTextToText

    shape, settings = shape or StepShape(), settings or StepSettings()
    if base_config.model_type not in COUNTED:
        raise ValueError(
            f"training is counted for bases of type {', '.join(COUNTED)}, not for {base_config.model_type!r}; try a short run"
        )
    interface = get_interface(base_config)
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(base_config)
        base_parameters = sum(p.numel() for p in model.parameters())
        decoder_flops = linear_flops(model.get_decoder(), 1)
        steps, per_step, trailing = video_tokens(interface, base_config, shape.num_frames, shape.grid)
        vision = 0.0 if settings.stored_vision else vision_flops(model, interface, base_config, shape.num_frames, per_step)
        attach_patch(model, patch)
    tokens = _tokens(patch, shape, steps, per_step, trailing)
    questions = shape.mean_questions
    forward, step = _flops(model, patch, shape, settings, tokens, decoder_flops, (steps, per_step))
    fusion_parameters = sum(p.numel() for p in patch_slot(model).parameters())
    lora_parameters = sum(p.numel() for p in lora.parameters(model, "default"))
    sizes = Sizes.of(model, interface, base_config, patch, base_parameters, (steps, per_step))
    other = StepSettings(**{**asdict(settings), "activation_checkpointing": not settings.activation_checkpointing})
    return TrainingCost(
        base_parameters=base_parameters,
        fusion_parameters=fusion_parameters,
        lora_parameters=lora_parameters,
        patch_bytes=(fusion_parameters + lora_parameters) * BYTES[patch.storage_dtype],
        tokens=tokens,
        memory=memory_of(sizes, patch, shape, settings, tokens),
        memory_other=memory_of(sizes, patch, shape, other, tokens),
        forward_flops=(vision + forward) / questions,
        step_flops=(vision + step) / questions,
    )


def _tokens(patch: PatchConfig, shape: StepShape, steps: int, per_step: int, trailing: int) -> Tokens:
    newlines = steps * math.isqrt(per_step) - trailing if patch.newline == "grid" else 0
    longer = [name for name, channel in patch.side_channels.items() if channel.fusion.adds_llm_tokens]
    side = sum(math.prod(shape.side(name)) for name in longer)
    return Tokens(video=steps * per_step + trailing, extra=newlines + side, text=shape.text_tokens)


def _flops(
    model: Any,
    patch: PatchConfig,
    shape: StepShape,
    settings: StepSettings,
    tokens: Tokens,
    per_token: float,
    video: tuple[int, int],
) -> tuple[float, float]:
    """Of one row in the fusion, the language model and its head: forward alone, and forward with backward."""
    text, L = model.config.get_text_config(), tokens.row(shape.mean_questions)
    frozen = per_token * L
    attention = text.num_hidden_layers * 4.0 * L**2 * head_widths(text)[0]
    update = 2.0 * sum(p.numel() for p in lora.parameters(model, "default")) * L
    learnt = L if adds_tokens(patch) else shape.answer_tokens * shape.mean_questions
    head = 2.0 * text.hidden_size * text.vocab_size * learnt
    layers = frozen + attention + update
    again = layers if settings.activation_checkpointing else 0.0
    backward = frozen + 2 * attention + 2 * update + head
    fusion, fusion_backward = 0.0, 0.0
    for name, module in patch_slot(model).fusions.items():
        K, M = shape.side(name)
        forward = fusion_flops(module, patch.side_channels[name].fusion, *video, K, M)
        fusion += forward
        fusion_backward += 2 * forward - _input_flops(module, math.prod(video), K * M)
    return fusion + layers + head, fusion + layers + head + again + backward + fusion_backward


def _input_flops(fusion: nn.Module, queries: int, side_tokens: int) -> float:
    """Of the gradients that nobody needs: those of the inputs of the fusion's first layers, which come from frozen parts."""
    side: Any = getattr(fusion, "side_embed", None)
    query: Any = getattr(fusion, "query_embed", None)
    return (0.0 if side is None else linear_flops(side, side_tokens)) + (0.0 if query is None else linear_flops(query, queries))
