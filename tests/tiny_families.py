"""Every other family of Video LLMs shrunk to two layers: (model, processor) from real config classes, made offline from a seed.

``tiny_models`` holds the two families that most tests run on and what is shared.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf

from tiny_models import SIDE, finish, template, text_config, tiny_tokenizer

QWEN_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
QWEN_TEMPLATE = template("<|vision_start|><|video_pad|><|vision_end|>", "<|vision_start|><|image_pad|><|vision_end|>")
QWEN3_TEMPLATE = template("<|video_pad|>", "<|vision_start|><|image_pad|><|vision_end|>")


def _tokenizer(named: dict[str, str], *more: str) -> Any:
    return tiny_tokenizer(tuple(dict.fromkeys([*named.values(), *more])), **named)


def _ids(tokenizer: Any, **tokens: str) -> dict[str, int]:
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}


def _qwen_ids(tokenizer: Any) -> dict[str, int]:
    return _ids(
        tokenizer,
        image_token_id="<|image_pad|>",
        video_token_id="<|video_pad|>",
        vision_start_token_id="<|vision_start|>",
        vision_end_token_id="<|vision_end|>",
    )


def _seeded(cls: Any, config: Any, tokenizer: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    return finish(cls(config), tokenizer)


_GRID = {"patch_size": 8, "temporal_patch_size": 2, "merge_size": 2}
_SIZE = {"shortest_edge": SIDE * SIDE, "longest_edge": 64 * SIDE * SIDE}
_VISION = {
    "depth": 2,
    "hidden_size": 24,
    "out_hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 32,
    "patch_size": 8,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
}
_WINDOWS = {"window_size": 32, "fullatt_block_indexes": [1]}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
_INTERLEAVED = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True}


def _qwen2_processor(cls: Any, tokenizer: Any) -> Any:
    return cls(
        image_processor=tf.Qwen2VLImageProcessor(size=_SIZE, **_GRID),
        tokenizer=tokenizer,
        video_processor=tf.Qwen2VLVideoProcessor(size=_SIZE, cap_pixels_per_frame=False, **_GRID),
        chat_template=QWEN_TEMPLATE,
    )


def _qwen3_processor(tokenizer: Any, cls: Any = tf.Qwen3VLProcessor) -> Any:
    return cls(
        image_processor=tf.Qwen2VLImageProcessor(size=_SIZE, **_GRID),
        tokenizer=tokenizer,
        video_processor=tf.Qwen3VLVideoProcessor(
            size={"shortest_edge": 2 * SIDE * SIDE, "longest_edge": 256 * SIDE * SIDE}, cap_pixels_per_frame=False, **_GRID
        ),
        chat_template=QWEN3_TEMPLATE,
    )


def tiny_qwen2_vl(seed: int = 0) -> tuple[Any, Any]:
    tokenizer = _tokenizer(QWEN_TOKENS)
    vision = {k: v for k, v in _VISION.items() if k not in ("out_hidden_size", "intermediate_size")}
    config = tf.Qwen2VLConfig(
        text_config=text_config(tokenizer, rope_parameters=_MROPE),
        vision_config={**vision, "embed_dim": 24, "hidden_size": 32, "mlp_ratio": 2},
        tie_word_embeddings=False,
        **_qwen_ids(tokenizer),
    )
    return _seeded(tf.Qwen2VLForConditionalGeneration, config, tokenizer, seed), _qwen2_processor(
        tf.Qwen2VLProcessor, tokenizer
    )


_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
_DEEPSTACK = {**_VISION, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "head_dim": 16,
    "rope_parameters": {**_INTERLEAVED, "partial_rotary_factor": 0.5},
}


def _qwen3(config_class: Any, model_class: Any, vision: dict[str, Any], seed: int, **text: Any) -> tuple[Any, Any]:
    tokenizer = _tokenizer(QWEN_TOKENS)
    config = config_class(
        text_config=text_config(tokenizer, **text), vision_config=vision, tie_word_embeddings=False, **_qwen_ids(tokenizer)
    )
    return _seeded(model_class, config, tokenizer, seed), _qwen3_processor(tokenizer)


def tiny_qwen3_vl(seed: int = 0) -> tuple[Any, Any]:
    text = {"head_dim": 8, "rope_parameters": _INTERLEAVED}
    return _qwen3(tf.Qwen3VLConfig, tf.Qwen3VLForConditionalGeneration, _DEEPSTACK, seed, **text)


def tiny_qwen3_vl_moe(seed: int = 0) -> tuple[Any, Any]:
    text = {"head_dim": 8, "rope_parameters": _INTERLEAVED, **_EXPERTS}
    return _qwen3(tf.Qwen3VLMoeConfig, tf.Qwen3VLMoeForConditionalGeneration, _DEEPSTACK, seed, **text)


def tiny_qwen3_5(seed: int = 0) -> tuple[Any, Any]:
    vision = {**_VISION, "num_position_embeddings": 64}
    return _qwen3(tf.Qwen3_5Config, tf.Qwen3_5ForConditionalGeneration, vision, seed, **_LINEAR)


def tiny_qwen3_5_moe(seed: int = 0) -> tuple[Any, Any]:
    vision = {**_VISION, "num_position_embeddings": 64}
    return _qwen3(tf.Qwen3_5MoeConfig, tf.Qwen3_5MoeForConditionalGeneration, vision, seed, **_LINEAR, **_EXPERTS)


_OMNI_TOKENS = {
    "image_token": "<|IMAGE|>",
    "video_token": "<|VIDEO|>",
    "audio_token": "<|AUDIO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
_OMNI_AUDIO = {
    "num_mel_bins": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "d_model": 16,
    "max_source_positions": 64,
    "n_window": 8,
    "output_dim": 32,
}


def _omni_processor(cls: Any, tokenizer: Any) -> Any:
    processor = cls(
        image_processor=tf.Qwen2VLImageProcessor(size=_SIZE, **_GRID),
        video_processor=tf.Qwen2VLVideoProcessor(size=_SIZE, cap_pixels_per_frame=False, **_GRID),
        feature_extractor=tf.WhisperFeatureExtractor(feature_size=16),
        tokenizer=tokenizer,
        chat_template=template("<|vision_bos|><|VIDEO|><|vision_eos|>", "<|vision_bos|><|IMAGE|><|vision_eos|>"),
    )
    processor.videos_kwargs = {**cls.videos_kwargs, "size": _SIZE}  # the class asks for 128 merged patches and more
    return processor


def _omni_ids(tokenizer: Any, suffix: str) -> dict[str, int]:
    ids = _ids(tokenizer, image_token="<|IMAGE|>", video_token="<|VIDEO|>", audio_token="<|AUDIO|>")
    named = {f"{name}_{suffix}": value for name, value in ids.items()}
    return named | _ids(
        tokenizer,
        audio_start_token_id="<|audio_bos|>",
        audio_end_token_id="<|audio_eos|>",
        vision_start_token_id="<|vision_bos|>",
        vision_end_token_id="<|vision_eos|>",
    )


def tiny_qwen2_5_omni(seed: int = 0) -> tuple[Any, Any]:
    tokenizer = _tokenizer(_OMNI_TOKENS)
    config = tf.Qwen2_5OmniThinkerConfig(
        text_config=text_config(tokenizer, rope_parameters=_MROPE),
        vision_config={**_VISION, **_WINDOWS},
        audio_config=_OMNI_AUDIO,
        position_id_per_seconds=2,
        **_omni_ids(tokenizer, "index"),
    )
    model = _seeded(tf.Qwen2_5OmniThinkerForConditionalGeneration, config, tokenizer, seed)
    return model, _omni_processor(tf.Qwen2_5OmniProcessor, tokenizer)


def tiny_qwen3_omni(seed: int = 0) -> tuple[Any, Any]:
    from transformers.models.qwen3_omni_moe import Qwen3OmniMoeThinkerConfig, Qwen3OmniMoeThinkerForConditionalGeneration

    tokenizer = _tokenizer(_OMNI_TOKENS)
    config = Qwen3OmniMoeThinkerConfig(
        text_config=text_config(tokenizer, head_dim=8, rope_parameters=_INTERLEAVED, **_EXPERTS),
        vision_config=_DEEPSTACK,
        audio_config={**_OMNI_AUDIO, "downsample_hidden_size": 8},
        position_id_per_seconds=2,
        **_omni_ids(tokenizer, "id"),
    )
    model = _seeded(Qwen3OmniMoeThinkerForConditionalGeneration, config, tokenizer, seed)
    return model, _omni_processor(tf.Qwen3OmniMoeProcessor, tokenizer)


def tiny_exaone4_5(seed: int = 0) -> tuple[Any, Any]:
    tokenizer = _tokenizer(QWEN_TOKENS)
    config = tf.Exaone4_5_Config(
        text_config={
            "model_type": "exaone4",
            **text_config(tokenizer, head_dim=8, sliding_window=64, layer_types=["sliding_attention", "full_attention"]),
        },
        vision_config={**_VISION, **_WINDOWS, "num_key_value_heads": 2},
        **_qwen_ids(tokenizer),
    )
    model = _seeded(tf.Exaone4_5_ForConditionalGeneration, config, tokenizer, seed)
    return model, _qwen2_processor(tf.Exaone4_5_Processor, tokenizer)


def tiny_lfm3_vl(seed: int = 0) -> tuple[Any, Any]:
    tokenizer = _tokenizer(QWEN_TOKENS)
    config = tf.Lfm3VlConfig(
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "patch_size": 8,
        },
        text_config={"model_type": "lfm3", **text_config(tokenizer, layer_types=["conv", "full_attention"])},
        projector_hidden_size=32,
        **_qwen_ids(tokenizer),
    )
    model = _seeded(tf.Lfm3VlForConditionalGeneration, config, tokenizer, seed)
    return model, _qwen3_processor(tokenizer, tf.Lfm3VlProcessor)


def tiny_ernie4_5_vl(seed: int = 0) -> tuple[Any, Any]:
    named = {
        "image_token": "<|IMAGE_PLACEHOLDER|>",
        "image_start_token": "<|IMAGE_START|>",
        "image_end_token": "<|IMAGE_END|>",
        "video_token": "<|VIDEO_PLACEHOLDER|>",
        "video_start_token": "<|VIDEO_START|>",
        "video_end_token": "<|VIDEO_END|>",
    }
    tokenizer = _tokenizer(named)
    experts = {"moe_intermediate_size": [16, 16], "moe_k": 2, "moe_num_experts": 4, "moe_num_shared_experts": 1}
    vision = {k: v for k, v in _VISION.items() if k not in ("out_hidden_size", "temporal_patch_size")}
    config = tf.Ernie4_5_VLMoeConfig(
        text_config=text_config(tokenizer, rope_parameters=_MROPE, mlp_layer_types=["dense", "sparse"], **experts),
        vision_config={**vision, "temporal_merge_size": 2},
        **_ids(tokenizer, **{f"{name}_id": token for name, token in named.items()}),
    )
    model = _seeded(tf.Ernie4_5_VLMoeForConditionalGeneration, config, tokenizer, seed)
    sizes = {"size": _SIZE, "patch_size": 8, "merge_size": 2}
    processor = tf.Ernie4_5_VLMoeProcessor(
        image_processor=tf.Ernie4_5_VLMoeImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=tf.Ernie4_5_VLMoeVideoProcessor(draw_on_frames=False, **sizes),
        chat_template=template(
            "<|VIDEO_START|><|VIDEO_PLACEHOLDER|><|VIDEO_END|>", "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"
        ),
    )
    return model, processor


_GLM_TOKENS = {"image_token": "<|image|>", "video_token": "<|video|>"}
_GLM_MORE = ("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>")


def _glm(config_class: Any, model_class: Any, kind: str, seed: int, **text: Any) -> tuple[Any, Any]:
    tokenizer = _tokenizer(_GLM_TOKENS, *_GLM_MORE)
    config = config_class(
        text_config={
            "model_type": f"{kind}_text",
            **text_config(tokenizer, rope_parameters={**_MROPE, "partial_rotary_factor": 1.0}, **text),
        },
        vision_config={
            **_VISION,
            "model_type": f"{kind}_vision",
            "intermediate_size": 64,
            "image_size": 64,
        },
        **_ids(
            tokenizer,
            image_token_id="<|image|>",
            video_token_id="<|video|>",
            image_start_token_id="<|begin_of_image|>",
            image_end_token_id="<|end_of_image|>",
            video_start_token_id="<|begin_of_video|>",
            video_end_token_id="<|end_of_video|>",
        ),
    )
    model = _seeded(model_class, config, tokenizer, seed)
    family = "Glm46V" if model_class is tf.Glm46VForConditionalGeneration else "Glm4v"
    size = {"shortest_edge": 2 * SIDE * SIDE, "longest_edge": 256 * SIDE * SIDE}
    processor = getattr(tf, f"{family}Processor")(
        image_processor=getattr(tf, f"{family}ImageProcessor")(size=size, **_GRID),
        tokenizer=tokenizer,
        video_processor=getattr(tf, f"{family}VideoProcessor")(size=size, max_image_size=size, **_GRID),
        chat_template=template("<|begin_of_video|><|video|><|end_of_video|>", "<|begin_of_image|><|image|><|end_of_image|>"),
    )
    return model, processor


def tiny_glm4v(seed: int = 0) -> tuple[Any, Any]:
    return _glm(tf.Glm4vConfig, tf.Glm4vForConditionalGeneration, "glm4v", seed)


def tiny_glm46v(seed: int = 0) -> tuple[Any, Any]:
    return _glm(tf.Glm46VConfig, tf.Glm46VForConditionalGeneration, "glm4v", seed)


def tiny_glm4v_moe(seed: int = 0) -> tuple[Any, Any]:
    experts = {
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "head_dim": 8,
    }
    return _glm(tf.Glm4vMoeConfig, tf.Glm4vMoeForConditionalGeneration, "glm4v_moe", seed, **experts)
