"""Configs of published base models by short name, so that sizes and costs can be shown without a download.

The numbers are those of the ``config.json`` files on the hub; weights are never involved.
"""

from __future__ import annotations

from typing import Any

_QWEN2 = {"rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "max_position_embeddings": 32768, "vocab_size": 152000}


def _llava_onevision(text: dict[str, Any], tied: bool) -> dict[str, Any]:
    return {
        "model_type": "llava_onevision",
        "image_token_id": 151646,
        "video_token_id": 151647,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "tie_word_embeddings": tied,
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 26,
            "num_attention_heads": 16,
            "image_size": 384,
            "patch_size": 14,
            "vision_use_head": False,
        },
        "text_config": {"model_type": "qwen2", "tie_word_embeddings": tied, **_QWEN2, **text},
    }


KNOWN_CONFIGS: dict[str, dict[str, Any]] = {
    "llava-onevision-qwen2-0.5b": _llava_onevision(
        {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
        },
        tied=True,
    ),
    "llava-onevision-qwen2-7b": _llava_onevision(
        {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
        },
        tied=False,
    ),
    "qwen2.5-vl-7b": {
        "model_type": "qwen2_5_vl",
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "tie_word_embeddings": False,
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        "text_config": {
            "model_type": "qwen2_5_vl_text",
            **_QWEN2,
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "max_position_embeddings": 128000,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [16, 24, 24]},
        },
    },
}


HUB_IDS = {
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": "llava-onevision-qwen2-0.5b",
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": "llava-onevision-qwen2-7b",
    "Qwen/Qwen2.5-VL-7B-Instruct": "qwen2.5-vl-7b",
}
"""Hub ids whose config is built in."""


def is_built_in(base: str) -> bool:
    """Whether ``load_config`` takes the config of this base from here: its sizes are right, but what is not listed here is a default."""
    return HUB_IDS.get(base, base) in KNOWN_CONFIGS


def load_config(base: str) -> Any:
    """The config of a base: a short name of ``KNOWN_CONFIGS`` or its hub id, a local folder or config file, or another hub id.

    Raises:
        ValueError: if none of these gives a config.
    """
    from transformers import AutoConfig

    base = HUB_IDS.get(base, base)
    if base in KNOWN_CONFIGS:
        values = dict(KNOWN_CONFIGS[base])
        return AutoConfig.for_model(values.pop("model_type"), **values)
    try:
        return AutoConfig.from_pretrained(base, trust_remote_code=False)
    except (OSError, ValueError) as error:
        known = ", ".join(KNOWN_CONFIGS)
        reason = str(error).splitlines()[0]
        raise ValueError(f"no config of a base at {base!r} ({reason}); built in are: {known}") from None
