"""What a patch costs on a base: parameters, bytes and floating-point operations, counted without loading any weights.

The base is built on the meta device from its config, the patch is attached to it, and parameters are counted as they are.
Operations are counted for the prefill of one prompt, with the usual formulas: a linear layer costs 2 x inputs x outputs
per token; attention costs 4 x queries x keys x width per layer (scores and weighted sum, no credit for the causal half).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from pave.config import FusionConfig, PatchConfig
from pave.patching import lora
from pave.patching.attach import attach_patch
from pave.patching.lookup import patch_slot
from pave.patching.storage import FusionStorage, stored_bytes
from pave.video_llms import get_interface

SIDE_LINEARS = ("side_embed", "key", "value")
"""Linear layers of a fusion module that act on side tokens; the others act on video tokens."""
COUNTED = ("llava_onevision", "qwen2_vl", "qwen2_5_vl")
"""Types of base whose vision tower is counted here."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True)
class PatchCost:
    """Counts of one patch on one base, for one prompt."""

    base_parameters: int
    fusion_parameters: int
    lora_parameters: int
    storage_dtype: str
    fusion_storage: FusionStorage = "plain"
    """How the fusion's matrices are stored."""
    fusion_bytes: int
    """Of the tensors in patch.safetensors, without the file's header."""
    lora_bytes: int
    """Of the tensors in the adapter, likewise."""
    base_prefill_flops: float
    """Vision tower, projector and language model over the prompt."""
    fusion_flops: float
    """Of the fusion modules, and of the newlines that ``newline: grid`` adds to the prompt."""
    lora_flops: float
    """Of the un-merged update; none if it is merged into the base."""
    llm_tokens: int
    """Length of the patched model's prompt: video tokens, newlines and text."""

    @property
    def patch_parameters(self) -> int:
        return self.fusion_parameters + self.lora_parameters

    @property
    def patch_bytes(self) -> int:
        return self.fusion_bytes + self.lora_bytes

    def to_dict(self) -> dict[str, Any]:
        """All counts, derived ones and percentages included."""
        base, flops = self.base_parameters, self.base_prefill_flops
        return {
            **asdict(self),
            "patch_parameters": self.patch_parameters,
            "patch_bytes": self.patch_bytes,
            "fusion_parameters_percent": 100 * self.fusion_parameters / base,
            "lora_parameters_percent": 100 * self.lora_parameters / base,
            "patch_parameters_percent": 100 * self.patch_parameters / base,
            "fusion_flops_percent": 100 * self.fusion_flops / flops,
            "lora_flops_percent": 100 * self.lora_flops / flops,
        }


def patch_cost(
    base_config: Any,
    patch: PatchConfig,
    *,
    num_frames: int = 32,
    text_tokens: int = 64,
    side_steps: int = 64,
    side_tokens_per_step: int = 1,
    grid: tuple[int, int] | None = None,
    fusion_storage: FusionStorage = "plain",
) -> PatchCost:
    """Count a patch on a base, on the meta device.

    Args:
        base_config: the base's config.
        patch: the patch.
        num_frames: sampled frames of the video.
        text_tokens: tokens of the prompt besides the video's.
        side_steps: K of every channel.
        side_tokens_per_step: M of every channel.
        grid: (rows, columns) of tokens per step, for bases of dynamic resolution (default 14 x 14 there).
        fusion_storage: how the fusion's matrices are stored (``pave.patching.storage``).

    Raises:
        ValueError: if the operations of this type of base are not counted here.
    """
    from transformers import AutoModelForImageTextToText

    interface = get_interface(base_config)
    if base_config.model_type not in COUNTED:
        raise ValueError(
            f"costs are counted for bases of type {', '.join(COUNTED)}, not for {base_config.model_type!r}; show the patch on one "
            "of those"
        )
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(base_config)
        base_parameters = sum(p.numel() for p in model.parameters())
        steps, tokens_per_step, trailing = video_tokens(interface, base_config, num_frames, grid)
        tokens = steps * tokens_per_step + trailing + text_tokens
        base_flops = vision_flops(model, interface, base_config, num_frames, tokens_per_step) + llm_flops(model, tokens)
        newlines = steps * math.isqrt(tokens_per_step) - trailing if patch.newline == "grid" else 0
        newline_flops = llm_flops(model, tokens + newlines) - llm_flops(model, tokens)
        tokens += newlines
        attach_patch(model, patch)
    of_fusions = sum(
        fusion_flops(fusion, patch.side_channels[name].fusion, steps, tokens_per_step, side_steps, side_tokens_per_step)
        for name, fusion in patch_slot(model).fusions.items()
    )
    lora_parameters = sum(p.numel() for p in lora.parameters(model, "default"))
    dtype = getattr(torch, patch.storage_dtype)
    adapter = {} if patch.lora is None else lora.state_dict(model, "default")
    return PatchCost(
        base_parameters=base_parameters,
        fusion_parameters=sum(p.numel() for p in patch_slot(model).parameters()),
        lora_parameters=lora_parameters,
        storage_dtype=patch.storage_dtype,
        fusion_storage=fusion_storage,
        fusion_bytes=stored_bytes(patch_slot(model).fusions.state_dict(), fusion_storage, dtype),
        lora_bytes=stored_bytes(adapter, "plain", dtype),
        base_prefill_flops=base_flops,
        fusion_flops=of_fusions + newline_flops,
        lora_flops=_lora_flops(adapter, tokens),
        llm_tokens=tokens,
    )


def video_tokens(interface: Any, config: Any, num_frames: int, grid: tuple[int, int] | None) -> tuple[int, int, int]:
    """(steps, tokens per step, trailing tokens) of a video of ``num_frames`` frames."""
    if config.model_type == "llava_onevision":
        layout = interface.layouts(config, {"pixel_values_videos": torch.empty(1, num_frames, device="meta")})[0]
        return layout.steps, layout.tokens_per_step, layout.trailing
    rows, columns = grid or (14, 14)
    return -(-num_frames // interface.frames_per_step), rows * columns, 0


def linear_flops(module: nn.Module, tokens: float) -> float:
    """2 x weights x tokens over all linear and convolution layers inside ``module``."""
    return sum(2.0 * m.weight.numel() * tokens for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.Conv3d)))


def llm_flops(model: Any, tokens: int) -> float:
    text = model.config.get_text_config()
    head = 2.0 * text.hidden_size * text.vocab_size  # the last position only
    attention = text.num_hidden_layers * 4.0 * tokens**2 * text.hidden_size
    return linear_flops(model.get_decoder(), tokens) + attention + head


def vision_flops(model: Any, interface: Any, config: Any, num_frames: int, tokens_per_step: int) -> float:
    vision = config.vision_config
    if config.model_type == "llava_onevision":
        patches = (vision.image_size // vision.patch_size) ** 2
        units, width, depth = num_frames, vision.hidden_size, vision.num_hidden_layers
        tower = model.base_model.vision_tower
        projector_tokens = patches * units  # projected before pooling
        tower_flops = linear_flops(tower, patches * units)
    else:
        patches = tokens_per_step * vision.spatial_merge_size**2
        units = -(-num_frames // interface.frames_per_step)
        width, depth = interface.pre_projector_width(config), vision.depth
        projector = interface.projector(model.base_model)
        projector_tokens = tokens_per_step * units
        tower_flops = linear_flops(model.base_model.visual, patches * units) - linear_flops(projector, patches * units)
    attention = depth * 4.0 * units * patches**2 * width  # frames attend within themselves
    return tower_flops + attention + linear_flops(interface.projector(model.base_model), projector_tokens)


def _lora_flops(adapter: Mapping[str, torch.Tensor], tokens: int) -> float:
    """Two small linear layers per token; DoRA also multiplies the factors out in every call, to measure the rows."""
    total = 0.0
    for key, value in adapter.items():
        if key.endswith(".weight"):
            total += 2.0 * value.numel() * tokens
        else:
            down, up = (adapter[key.replace("lora_magnitude_vector", f"lora_{part}.weight")] for part in "AB")
            total += 2.0 * (down.numel() + up.numel()) * down.shape[1]
    return total


def fusion_flops(fusion: nn.Module, config: FusionConfig, T: int, S: int, K: int, M: int) -> float:
    """Linear layers by the stream they act on, plus windowed attention over the K * M tokens cut into T windows."""
    if config.adds_llm_tokens:
        return linear_flops(fusion, K * M)
    reach = 1 + 2 * config.neighbourhood_frames
    linears = {name: 2.0 * m.weight.numel() for name, m in fusion.named_modules() if isinstance(m, nn.Linear)}
    side = sum(cost for name, cost in linears.items() if name.rsplit(".", 1)[-1] in SIDE_LINEARS)
    attention = config.num_layers * 4.0 * S * max(K, T) * M * reach * config.width
    return side * K * M + (sum(linears.values()) - side) * T * S + attention
