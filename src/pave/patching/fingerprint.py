"""Which base a patch belongs to: a fingerprint that is cheap enough to be checked at every load.

It holds what decides the numbers of the configs, the processor and the tokenizer (``pave.patching.base_facts``), a hash of the chat
template, hashes over a few dozen elements of every weight tensor, and one over all stored buffers. Elements are compared in what
bfloat16 and float16 have in common, so that one 16-bit checkpoint has one fingerprint however it is loaded. Of a tensor's name only the
numbers enter (its layer), so that it survives a library that renames modules; two tensors of one shape that change places within a layer
are not told apart, nor is a change of a few elements between the sampled ones. One hash covers all weights, a second one only those that
quantisation leaves alone (norms, biases, embeddings).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from pave.config import Strict
from pave.patching.base_facts import Facts, compare, config_facts, processor_facts, tokenizer_facts
from pave.patching.slot import base_state_dict
from pave.utils.embedded import model_name

_ELEMENTS = 64
_SHOWN = 6
"""Most differences that a message names."""


@dataclass(frozen=True, kw_only=True)
class BaseFingerprint(Strict):
    """What is recorded of a base."""

    model_id: str | None = None
    """Hub id or path the base was loaded from; for the reader, never compared."""
    revision: str | None = None
    """Commit on the hub, likewise."""
    transformers: str | None = None
    """Version of transformers that the facts were taken with. Versions add keys, so what only one side knows counts as a difference
    between facts of one version only."""
    architecture: Facts
    """The base's config, flat, without what changes no number."""
    weights: str | None = None
    """Hash over samples of every tensor; null where weights were not there to read (meta device, sharded or quantised)."""
    unquantised_weights: str | None = None
    """The same over tensors that quantisation leaves alone."""
    buffers: str | None = None
    """Hash over all buffers that are stored with the weights; null where weights is."""
    tokenizer: Facts | None = None
    """Its settings, flat, with hashes of the vocabulary and the added tokens; null if no processor was given."""
    processor: Facts | None = None
    """Settings of the processor's parts for pictures, videos and sound, flat; likewise."""
    chat_template: str | None = None
    """Hash of the chat template; likewise."""


def fingerprint(model: Any, processor: Any = None) -> BaseFingerprint:
    """Take the fingerprint of a base, patched or not.

    Args:
        model: the base.
        processor: its processor or tokenizer, to record its settings, the tokenizer and the chat template.
    """
    config = model.config
    tokenizer = getattr(processor, "tokenizer", processor)
    template = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)
    weights, unquantised = _hash_weights(model)
    return BaseFingerprint(
        model_id=model_name(getattr(config, "_name_or_path", "") or "") or None,
        revision=getattr(config, "_commit_hash", None),
        transformers=transformers.__version__,
        architecture=config_facts(config),
        weights=weights,
        unquantised_weights=unquantised,
        buffers=None if weights is None else _hash_buffers(model),
        tokenizer=tokenizer_facts(tokenizer),
        processor=processor_facts(processor),
        chat_template=None if template is None else _sha(json.dumps(template).encode()),
    )


_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "patch_size",
    "image_size",
)


def sizes_only(found: BaseFingerprint) -> BaseFingerprint:
    """Without all of the config but the model type and the sizes: for a base of which nothing else is known for certain."""
    kept = {key: value for key, value in found.architecture.items() if key == "model_type" or key.endswith(_SIZES)}
    return replace(found, architecture=kept, transformers=None)


def weights_compared(recorded: BaseFingerprint, found: BaseFingerprint) -> bool:
    """False if ``differences`` had no hash of weights on both sides, so that it went by the architecture alone."""
    both = (recorded.weights and found.weights) or (recorded.unquantised_weights and found.unquantised_weights)
    return bool(both)


def differences(recorded: BaseFingerprint, found: BaseFingerprint) -> list[str]:
    """What two fingerprints disagree in, as short phrases, the first few of them; what either side does not know is not compared."""
    one_sided = recorded.transformers is not None and recorded.transformers == found.transformers
    out = compare("", recorded.architecture, found.architecture, one_sided=one_sided)
    if recorded.weights and found.weights:
        if recorded.weights != found.weights:
            out.append("other weights")
    elif None not in (a := (recorded.unquantised_weights, found.unquantised_weights)) and len(set(a)) > 1:
        out.append("other weights (norms and embeddings)")
    if recorded.buffers and found.buffers and recorded.buffers != found.buffers:
        out.append("other stored buffers")
    out += compare("processor ", recorded.processor, found.processor, one_sided=one_sided)
    out += compare("tokenizer ", recorded.tokenizer, found.tokenizer, one_sided=one_sided)
    if recorded.chat_template and found.chat_template and recorded.chat_template != found.chat_template:
        out.append("another chat template")
    return out if len(out) <= _SHOWN else [*out[:_SHOWN], f"and {len(out) - _SHOWN} more"]


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


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


def _hash_buffers(model: nn.Module) -> str | None:
    """Of every element of every buffer that a checkpoint of the base holds; None if one is not there to read."""
    found: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        for name, tensor in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                found[f"{path}.{name}" if path else name] = tensor
    digests = []
    for name, tensor in base_state_dict(found).items():
        if tensor.device.type == "meta" or type(tensor.data).__name__ == "DTensor":
            return None
        values = tensor.detach().reshape(-1)
        numbers = _rounded(values).view(torch.int16) if values.is_floating_point() else values.to(torch.int64)
        digests.append(_sha(_place(name, tensor) + numbers.cpu().numpy().tobytes()))
    return _sha("".join(sorted(digests)).encode())


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
    return _rounded(flat[index])


def _rounded(values: Tensor) -> Tensor:
    rounded = values.to(torch.bfloat16).to(torch.float16)
    return torch.where(rounded.abs() < torch.finfo(torch.float16).smallest_normal, 0.0, rounded)
