"""From a collated batch to answers: greedy decoding by default, with the patch or without."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pave.patching import is_patched
from pave.tokens import SideTokens
from pave.video_llms.encode import encoder_outputs

_PATCH_INPUTS = ("side_channels", "frame_times")
_GREEDY = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}


def generate_texts(
    model: Any, processor: Any, batch: Mapping[str, Any], *, patch: bool = True, max_new_tokens: int = 64, **generation: Any
) -> list[str]:
    """Continue the prompts of a batch.

    Args:
        model: a base, patched or not.
        processor: its processor.
        batch: what ``PatchCollator(..., train=False)`` makes.
        patch: False answers as the base does, side channels or not. A model without a patch always does.
        max_new_tokens: most tokens of an answer.
        generation: further arguments of ``generate``; greedy decoding without any.

    Returns:
        One text per row, special tokens and white space around it removed.
    """
    new = generate_ids(model, batch, patch=patch, max_new_tokens=max_new_tokens, **generation)
    return [text.strip() for text in processor.tokenizer.batch_decode(new, skip_special_tokens=True)]


@torch.inference_mode()
def generate_ids(
    model: Any, batch: Mapping[str, Any], *, patch: bool = True, max_new_tokens: int = 64, **generation: Any
) -> Tensor:
    """The token ids behind ``generate_texts``: (rows, new tokens), without the prompt."""
    inputs = model_inputs(model, batch, patch=patch)
    if not is_patched(model) and "vision_features" in inputs:
        inputs["mm_encoder_outputs"] = encoder_outputs(model, inputs.pop("vision_features"))
    without = model.patch_disabled() if is_patched(model) and not patch else contextlib.nullcontext()
    was_training = model.training
    model.eval()
    try:
        with without:
            output = model.generate(**inputs, **{**_GREEDY, "max_new_tokens": max_new_tokens, **generation})
    finally:
        model.train(was_training)
    new: Tensor = output[:, inputs["input_ids"].shape[1] :]
    return new


def model_inputs(model: Any, batch: Mapping[str, Any], *, patch: bool = True) -> dict[str, Any]:
    """What the model is called with: a batch of ``PatchCollator`` on the model's device, without labels and ids, and without what
    only a patch takes where there is none."""
    device = model.get_input_embeddings().weight.device
    inputs = {key: _to(value, device, model.dtype) for key, value in batch.items() if key not in ("labels", "sample_ids")}
    if not (patch and is_patched(model)):
        for key in _PATCH_INPUTS:
            inputs.pop(key, None)
    return inputs


def _to(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Pixels take the model's dtype as well as its device; times and side features keep theirs."""
    if isinstance(value, Mapping):
        return {key: _to(item, device, dtype) for key, item in value.items()}
    if isinstance(value, SideTokens):
        return value.to(device)
    if isinstance(value, Tensor):
        return value.to(device, dtype) if value.is_floating_point() and value.dtype != torch.float64 else value.to(device)
    return value
