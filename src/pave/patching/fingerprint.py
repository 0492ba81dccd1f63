"""Which base a patch belongs to: a fingerprint that is cheap enough to be checked at every load.

It holds the architecture's numbers, hashes of the tokenizer and the chat template, and hashes over a few dozen elements of
every weight tensor. Elements are compared in what bfloat16 and float16 have in common, so that one 16-bit checkpoint has one
fingerprint however it is loaded. Of a tensor's name only the numbers enter (its layer), so that it survives a library that renames
modules; two tensors of one shape that change places within a layer are not told apart, nor is a change of a few elements between
the sampled ones. One hash covers all tensors, a second one only those that quantisation leaves alone (norms, biases, embeddings).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pave.config import Strict
from pave.patching.slot import base_state_dict
from pave.utils.embedded import model_name

_ELEMENTS = 64
_FACTS = {
    "": ("vision_feature_layer", "vision_feature_select_strategy"),
    "text.": (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "vocab_size",
        "rms_norm_eps",
        "hidden_act",
    ),
    "vision.": (
        "hidden_size",
        "embed_dim",
        "num_hidden_layers",
        "depth",
        "num_attention_heads",
        "num_heads",
        "patch_size",
        "image_size",
        "spatial_merge_size",
        "temporal_patch_size",
        "window_size",
        "tokens_per_second",
        "hidden_act",
    ),
}
"""What of the configs decides the numbers that a base computes, besides its weights."""
_ROPE_FACTS = ("rope_type", "rope_theta", "factor", "mrope_section")


@dataclass(frozen=True, kw_only=True)
class BaseFingerprint(Strict):
    """What is recorded of a base."""

    model_id: str | None = None
    """Hub id or path the base was loaded from; for the reader, never compared."""
    revision: str | None = None
    """Commit on the hub, likewise."""
    architecture: dict[str, Any]
    """Model type and sizes."""
    weights: str | None = None
    """Hash over samples of every tensor; null where weights were not there to read (meta device, sharded or quantised)."""
    unquantised_weights: str | None = None
    """The same over tensors that quantisation leaves alone."""
    tokenizer: str | None = None
    """Hash of the vocabulary and the special tokens; null if no processor was given."""
    chat_template: str | None = None
    """Hash of the chat template; null if no processor was given."""


def fingerprint(model: Any, processor: Any = None) -> BaseFingerprint:
    """Take the fingerprint of a base, patched or not.

    Args:
        model: the base.
        processor: its processor or tokenizer, to record the tokenizer and the chat template.
    """
    config = model.config
    tokenizer = getattr(processor, "tokenizer", processor)
    template = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)
    weights, unquantised = _hash_weights(model)
    return BaseFingerprint(
        model_id=model_name(getattr(config, "_name_or_path", "") or "") or None,
        revision=getattr(config, "_commit_hash", None),
        architecture=_architecture(config),
        weights=weights,
        unquantised_weights=unquantised,
        tokenizer=None if tokenizer is None else _hash_tokenizer(tokenizer),
        chat_template=None if template is None else _sha(json.dumps(template).encode()),
    )


def _architecture(config: Any) -> dict[str, Any]:
    text = config.get_text_config()
    facts: dict[str, Any] = {"model_type": config.model_type}
    for (prefix, keys), part in zip(_FACTS.items(), (config, text, config.vision_config), strict=True):
        facts |= {f"{prefix}{key}": getattr(part, key) for key in keys if hasattr(part, key)}
    rope = getattr(text, "rope_parameters", None) or {}
    facts |= {f"text.rope.{key}": rope[key] for key in _ROPE_FACTS if key in rope}
    plain: dict[str, Any] = json.loads(json.dumps(facts))  # as it is read back: a tuple is a list
    return plain


def weights_compared(recorded: BaseFingerprint, found: BaseFingerprint) -> bool:
    """False if ``differences`` had no hash of weights on both sides, so that it went by the architecture alone."""
    both = (recorded.weights and found.weights) or (recorded.unquantised_weights and found.unquantised_weights)
    return bool(both)


def differences(recorded: BaseFingerprint, found: BaseFingerprint) -> list[str]:
    """What two fingerprints disagree in, as short phrases; what either side does not know is not compared."""
    out = []
    for key in sorted(set(recorded.architecture) | set(found.architecture)):
        was, is_ = recorded.architecture.get(key), found.architecture.get(key)
        if was != is_:
            out.append(f"{key} {was} against {is_}")
    if recorded.weights and found.weights:
        if recorded.weights != found.weights:
            out.append("other weights")
    elif None not in (a := (recorded.unquantised_weights, found.unquantised_weights)) and len(set(a)) > 1:
        out.append("other weights (norms and embeddings)")
    if recorded.tokenizer and found.tokenizer and recorded.tokenizer != found.tokenizer:
        out.append("another tokenizer")
    if recorded.chat_template and found.chat_template and recorded.chat_template != found.chat_template:
        out.append("another chat template")
    return out


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _hash_tokenizer(tokenizer: Any) -> str:
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return _sha(json.dumps([vocabulary, sorted(tokenizer.all_special_tokens)]).encode())


def _hash_weights(model: nn.Module) -> tuple[str | None, str | None]:
    """Hashes over all tensors, and over those that quantisation leaves alone."""
    quantised = bool(getattr(model, "is_quantized", False))
    digests: list[str] = []
    plain: list[str] = []
    for name, samples in _samples(model, quantised):
        digest = _sha(samples)
        digests.append(digest)
        if name != "matrix":
            plain.append(digest)
    if not plain:
        return None, None
    return (None if quantised else _sha("".join(sorted(digests)).encode())), _sha("".join(sorted(plain)).encode())


def _samples(model: nn.Module, quantised: bool) -> Iterator[tuple[str, bytes]]:
    """(kind, bytes) of every tensor of the base, in any order; nothing if one is not there to read."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    seen: set[int] = set()
    chosen: list[tuple[str, bytes, Tensor]] = []
    for name, tensor in base_state_dict(dict(model.named_parameters(remove_duplicate=False))).items():
        if id(tensor) in seen:  # tied
            continue
        seen.add(id(tensor))
        kind = "embedding" if id(tensor) in embeddings else "vector" if tensor.ndim < 2 else "matrix"
        if kind == "matrix" and (quantised or not tensor.is_floating_point()):
            continue
        if tensor.device.type == "meta" or type(tensor.data).__name__ == "DTensor" or tensor.numel() == 0:
            return
        chosen.append((kind, _place(name, tensor), _take(tensor)))
    by_device: dict[torch.device, list[int]] = {}
    for index, (_, _, values) in enumerate(chosen):
        by_device.setdefault(values.device, []).append(index)
    host: dict[int, Tensor] = {}
    for indices in by_device.values():  # one transfer per device
        joined = torch.cat([chosen[i][2] for i in indices]).cpu()
        host.update(zip(indices, joined.split([len(chosen[i][2]) for i in indices]), strict=True))
    for index, (kind, place, _) in enumerate(chosen):
        yield kind, place + host[index].view(torch.int16).numpy().tobytes()


def _place(name: str, tensor: Tensor) -> bytes:
    """The numbers in a tensor's name and its shape."""
    return json.dumps([[part for part in name.split(".") if part.isdigit()], list(tensor.shape)]).encode()


def _take(tensor: Tensor) -> Tensor:
    """Up to 64 elements spread over the tensor: rounded to bfloat16, then in float16, where what is too small for it is zero."""
    flat = tensor.detach().reshape(-1)
    index = torch.arange(_ELEMENTS, device=flat.device) * (flat.numel() - 1) // (_ELEMENTS - 1)
    rounded = flat[index].to(torch.bfloat16).to(torch.float16)
    return torch.where(rounded.abs() < torch.finfo(torch.float16).smallest_normal, 0.0, rounded)
