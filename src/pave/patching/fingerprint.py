"""Which base a patch belongs to: a fingerprint that is cheap enough to be checked at every load.

It holds the architecture's numbers, hashes of the tokenizer and the chat template, and hashes over a few dozen elements of
every weight tensor. Elements are compared in bfloat16, so that one checkpoint loaded in float32 or bfloat16 has one fingerprint;
tensor names do not enter, so that it survives a library that renames modules. One hash covers all tensors, a second one only
those that quantisation leaves alone (norms, biases, embeddings).
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
from pave.patching.classes import base_state_dict

_ELEMENTS = 64
_FACTS = {
    "text": (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "vocab_size",
    ),
    "vision": ("hidden_size", "embed_dim", "num_hidden_layers", "depth", "num_attention_heads", "num_heads", "patch_size"),
}


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
    text, vision = config.get_text_config(), config.vision_config
    architecture: dict[str, Any] = {"model_type": config.model_type}
    for prefix, part in (("text", text), ("vision", vision)):
        architecture |= {f"{prefix}.{key}": getattr(part, key) for key in _FACTS[prefix] if hasattr(part, key)}
    tokenizer = getattr(processor, "tokenizer", processor)
    template = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)
    weights, unquantised = _hash_weights(model)
    return BaseFingerprint(
        model_id=getattr(config, "_name_or_path", "") or None,
        revision=getattr(config, "_commit_hash", None),
        architecture=architecture,
        weights=weights,
        unquantised_weights=unquantised,
        tokenizer=None if tokenizer is None else _hash_tokenizer(tokenizer),
        chat_template=None if template is None else _sha(json.dumps(template).encode()),
    )


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
    """(kind, bytes) of every tensor of the base, in float order-free form; nothing if any is not there to read."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    seen: set[int] = set()
    chosen: list[tuple[str, Tensor]] = []
    for name, tensor in base_state_dict(dict(model.named_parameters(remove_duplicate=False))).items():
        if id(tensor) in seen:  # tied
            continue
        seen.add(id(tensor))
        kind = "embedding" if id(tensor) in embeddings else "vector" if tensor.ndim < 2 else "matrix"
        if kind == "matrix" and (quantised or not tensor.is_floating_point()):
            continue
        if tensor.device.type == "meta" or type(tensor.data).__name__ == "DTensor" or tensor.numel() == 0:
            return
        chosen.append((kind, _take(tensor, name)))
    by_device: dict[torch.device, list[int]] = {}
    for index, (_, values) in enumerate(chosen):
        by_device.setdefault(values.device, []).append(index)
    host: dict[int, Tensor] = {}
    for indices in by_device.values():  # one transfer per device
        joined = torch.cat([chosen[i][1] for i in indices]).cpu()
        host.update(zip(indices, joined.split([len(chosen[i][1]) for i in indices]), strict=True))
    for index, (kind, _) in enumerate(chosen):
        yield kind, host[index].view(torch.int16).numpy().tobytes()


def _take(tensor: Tensor, name: str) -> Tensor:
    """Up to 64 elements spread over the tensor, in bfloat16."""
    flat = tensor.detach().reshape(-1)
    index = torch.arange(_ELEMENTS, device=flat.device) * (flat.numel() - 1) // (_ELEMENTS - 1)
    return flat[index].to(torch.bfloat16)
