"""What of a base's configs, processor and tokenizer decides the numbers that it computes, as flat JSON values by dotted names.

Everything is taken but for a list of keys that change no number: paths, versions, how weights are held, which kernel computes, what
matters in training alone, and which frames are chosen, which is a patch's own setting.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

Facts = dict[str, Any]
"""Flat JSON values by dotted names."""

_CONFIG_ASIDE = {
    "_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "architectures", "auto_map", "dtype", "torch_dtype",
    "quantization_config", "attn_implementation", "_attn_implementation", "_attn_implementation_internal", "_attn_implementation_autoset",
    "experts_implementation", "_experts_implementation", "_experts_implementation_internal", "use_cache", "use_return_dict", "return_dict",
    "return_dict_in_generate", "output_attentions", "output_hidden_states", "output_router_logits", "router_aux_loss_coef", "torchscript",
    "id2label", "label2id", "num_labels", "problem_type", "chunk_size_feed_forward", "gradient_checkpointing", "initializer_range",
    "initializer_factor", "init_std", "pad_token_id", "tie_word_embeddings",
}  # fmt: skip
"""pad_token_id: padding is masked. tie_word_embeddings: the weights themselves tell."""
_TRAINING_ONLY = ("dropout", "dropout_prob", "dropout_rate", "layerdrop", "drop_path_rate")
_PROCESSOR_ASIDE = {
    "tokenizer", "chat_template", "processor_class", "_processor_class", "auto_map", "image_processor_type", "video_processor_type",
    "feature_extractor_type", "name_or_path", "_commit_hash", "transformers_version", "device", "return_tensors", "data_format",
    "input_data_format", "disable_grouping", "return_metadata", "video_metadata", "cache_dir", "num_frames", "do_sample_frames",
    "min_frames", "max_frames",
}  # fmt: skip
_LONGEST = 200
"""Texts and lists whose JSON is longer are kept as hashes."""


def config_facts(config: Any) -> Facts:
    """Of the whole config of a base, those of its parts included."""
    return _flat(config.to_dict(), lambda key: key in _CONFIG_ASIDE or key.endswith(_TRAINING_ONLY))


def processor_facts(processor: Any) -> Facts | None:
    """Of a processor's parts for pictures, videos and sound; None where there is none, as for a tokenizer alone."""
    if processor is None or not hasattr(processor, "tokenizer"):
        return None
    return _flat(processor.to_dict(), lambda key: key in _PROCESSOR_ASIDE)


def tokenizer_facts(tokenizer: Any) -> Facts | None:
    """Of a tokenizer: its vocabulary, merges and added tokens as hashes, and how it prepares text."""
    if tokenizer is None:
        return None
    special = {"special_tokens": short_hash(sorted(tokenizer.all_special_tokens))}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer in Python
        settings = {key: value for key, value in tokenizer.init_kwargs.items() if isinstance(value, (bool, int))}
        vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
        return special | {"vocabulary": short_hash(vocabulary)} | _flat(settings, lambda key: False)
    whole: dict[str, Any] = json.loads(backend.to_str())
    model = whole.get("model") or {}
    hashes = {
        "vocabulary": short_hash(model.pop("vocab", None)),
        "merges": short_hash(model.pop("merges", None)),
        "added_tokens": short_hash(whole.pop("added_tokens", None)),
    }
    return special | hashes | _flat(whole, lambda key: key in ("version", "truncation", "padding"))


def short_hash(value: Any) -> str:
    """A hash of a JSON value: ``hash:`` and 32 hexadecimal digits."""
    return f"hash:{hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]}"


def _flat(values: Mapping[Any, Any], aside: Any, prefix: str = "") -> Facts:
    out: Facts = {}
    for key, value in values.items():
        if aside(str(key)):
            continue
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            out |= _flat(value, aside, f"{name}.")
        else:
            plain = _plain(value)
            out[name] = short_hash(plain) if len(json.dumps(plain)) > _LONGEST else plain
    return out


def _plain(value: Any) -> Any:
    """As it is read back from JSON."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return getattr(value, "value", value)  # of an enum
    return (
        sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(getattr(value, "value", type(value).__name__))
    )


def compare(what: str, was: Facts | None, is_: Facts | None, *, one_sided: bool) -> list[str]:
    """What two lists of facts disagree in, as short phrases.

    Args:
        what: comes before each name.
        was: recorded earlier.
        is_: found now.
        one_sided: count what only one of them has; else what either does not know is not compared.
    """
    if was is None or is_ is None:
        return []
    out = []
    for key in sorted(set(was) | set(is_)):
        if not one_sided and not (key in was and key in is_):
            continue
        one, other = was.get(key), is_.get(key)
        if json.dumps(one) != json.dumps(other):
            hashed = any(isinstance(value, str) and value.startswith("hash:") for value in (one, other))
            out.append(f"{what}{key} is another" if hashed else f"{what}{key} {one} against {other}")
    return out
