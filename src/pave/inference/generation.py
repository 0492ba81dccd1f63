"""From a collated batch to token ids: greedy decoding by default, with the patches or without."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.generation.streamers import BaseStreamer

from pave.patching import is_patched
from pave.tokens import SideTokens
from pave.video_llms.encode import encoder_outputs
from pave.video_llms.prompt import plain_prompt

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
    with evaluation_mode(model), without:
        output = model.generate(**inputs, **{**_GREEDY, "max_new_tokens": max_new_tokens, **generation})
    new: Tensor = output[:, inputs["input_ids"].shape[1] :]
    return new


def one_answer_each(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Further arguments of ``generate`` for callers that take one answer per row, the number of beams as a number.

    Raises:
        ValueError: if several answers are asked for.
    """
    options = {"num_beams": 1, "num_return_sequences": 1}
    options |= {name: value for name, value in generation.items() if value is not None or name not in options}
    if options.pop("num_return_sequences") != 1:
        raise ValueError("num_return_sequences: a question gets one answer; ask it again, with another seed, for another")
    return options


class FirstToken(BaseStreamer):
    """When the first token of an answer was there."""

    def __init__(self) -> None:
        self.first: float | None = None
        self._prompt = True

    def put(self, value: Tensor) -> None:
        if self._prompt:
            self._prompt = False
        elif self.first is None:
            self.first = time.monotonic()

    def end(self) -> None:
        pass


_EVALUATING: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
_LOCK = threading.Lock()


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """A model in training is in evaluation mode until the last thread has left such a block."""
    with _LOCK:
        inside = _EVALUATING.get(model, 0)
        if not inside and not model.training:
            inside = -1  # it stays as it is
        elif inside >= 0:
            _EVALUATING[model] = inside + 1
            model.eval()
    try:
        yield
    finally:
        with _LOCK:
            if inside >= 0:
                _EVALUATING[model] -= 1
                if not _EVALUATING[model]:
                    del _EVALUATING[model]
                    model.train()


def model_inputs(model: Any, batch: Mapping[str, Any], *, patch: bool = True) -> dict[str, Any]:
    """What the model is called with: a batch of ``PatchCollator`` on the model's device, without labels and ids, and without what
    only a patch takes where there is none."""
    device = model.get_input_embeddings().weight.device
    inputs = {key: _to(value, device, model.dtype) for key, value in batch.items() if key not in ("labels", "sample_ids")}
    if not (patch and is_patched(model)):
        inputs = plain_prompt(inputs, model.config)
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
