"""The tiny families whose processors hand over frames as pictures or packed patches; see ``tiny_families``."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf

from tiny_families import _ids, _seeded, _tokenizer
from tiny_models import SIDE, template, text_config, tiny_tokenizer

_BOTH = {"image_token": "<image>", "video_token": "<video>"}
_SQUARE = {"height": SIDE, "width": SIDE}
_CLIP = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "projection_dim": 16,
}


def tiny_llava_next_video(seed: int = 0) -> tuple[Any, Any]:
    tokenizer = _tokenizer(_BOTH)
    config = tf.LlavaNextVideoConfig(
        vision_config=tf.CLIPVisionConfig(patch_size=8, **_CLIP),
        text_config=tf.LlamaConfig(**text_config(tokenizer)),
        image_grid_pinpoints=[[SIDE, SIDE]],
        spatial_pool_mode="average",
        spatial_pool_stride=2,
        **_ids(tokenizer, image_token_id="<image>", video_token_id="<video>"),
    )
    processor = tf.LlavaNextVideoProcessor(
        image_processor=tf.LlavaNextImageProcessor(
            size={"shortest_edge": SIDE}, crop_size=_SQUARE, image_grid_pinpoints=[[SIDE, SIDE]]
        ),
        tokenizer=tokenizer,
        video_processor=tf.LlavaNextVideoVideoProcessor(size={"shortest_edge": SIDE}, crop_size=_SQUARE),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<video>\n", "<image>\n"),
    )
    return _seeded(tf.LlavaNextVideoForConditionalGeneration, config, tokenizer, seed), processor


def tiny_video_llava(seed: int = 0) -> tuple[Any, Any]:
    tokenizer = _tokenizer(_BOTH)
    config = tf.VideoLlavaConfig(
        vision_config=tf.CLIPVisionConfig(patch_size=16, **_CLIP),
        text_config=tf.LlamaConfig(**text_config(tokenizer)),
        image_seq_length=4,
        video_seq_length=5 * 8,
        **_ids(tokenizer, image_token_index="<image>", video_token_index="<video>"),
    )
    processor = tf.VideoLlavaProcessor(
        image_processor=tf.VideoLlavaImageProcessor(size={"shortest_edge": SIDE}, crop_size=_SQUARE),
        video_processor=tf.VideoLlavaVideoProcessor(size={"shortest_edge": SIDE}, crop_size=_SQUARE),
        tokenizer=tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        chat_template=template("<video>\n", "<image>\n"),
    )
    return _seeded(tf.VideoLlavaForConditionalGeneration, config, tokenizer, seed), processor


def tiny_internvl(seed: int = 0) -> tuple[Any, Any]:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = _tokenizer(named)
    vision = tf.InternVLVisionConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=[SIDE, SIDE],
        patch_size=[8, 8],
        use_mean_pooling=False,
    )
    config = tf.InternVLConfig(
        vision_config=vision,
        text_config=tf.Qwen2Config(**text_config(tokenizer)),
        image_seq_length=4,
        **_ids(tokenizer, image_token_id="<IMG_CONTEXT>"),
    )
    processor = tf.InternVLProcessor(
        image_processor=tf.GotOcr2ImageProcessor(size=_SQUARE, crop_to_patches=False),
        tokenizer=tokenizer,
        video_processor=tf.InternVLVideoProcessor(size=_SQUARE),
        image_seq_length=4,
        chat_template=template("<video>\n", "<IMG_CONTEXT>\n"),
    )
    return _seeded(tf.InternVLForConditionalGeneration, config, tokenizer, seed), processor


def tiny_smolvlm(seed: int = 0) -> tuple[Any, Any]:
    named = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    tokenizer = _tokenizer(named, "<video>")
    config = tf.SmolVLMConfig(
        vision_config={
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "image_size": SIDE,
            "patch_size": 8,
        },
        text_config=tf.LlamaConfig(**text_config(tokenizer)),
        scale_factor=2,
        **_ids(tokenizer, image_token_id="<image>"),
    )
    edge = {"longest_edge": SIDE}
    processor = tf.SmolVLMProcessor(
        image_processor=tf.SmolVLMImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False),
        tokenizer=tokenizer,
        video_processor=tf.SmolVLMVideoProcessor(
            size=edge,
            max_image_size=edge,
            video_sampling={"video_size": edge, "fps": 1, "max_frames": 8},
            num_frames=8,
            fps=1,
        ),
        image_seq_len=4,
        chat_template=template("<video>\n", "<image>\n"),
    )
    return _seeded(tf.SmolVLMForConditionalGeneration, config, tokenizer, seed), processor


def tiny_video_llama_3(seed: int = 0) -> tuple[Any, Any]:
    named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    tokenizer = _tokenizer(named)
    config = tf.VideoLlama3Config(
        vision_config={
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "patch_size": 8,
        },
        text_config=tf.Qwen2Config(**text_config(tokenizer)),
        **_ids(tokenizer, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
    )
    size = {"shortest_edge": SIDE * SIDE, "longest_edge": 64 * SIDE * SIDE}
    processor = tf.VideoLlama3Processor(
        image_processor=tf.VideoLlama3ImageProcessor(size=size, patch_size=8),
        tokenizer=tokenizer,
        video_processor=tf.VideoLlama3VideoProcessor(size=size, patch_size=8),
        chat_template=template("<|video_pad|>\n", "<|image_pad|>\n"),
    )
    return _seeded(tf.VideoLlama3ForConditionalGeneration, config, tokenizer, seed), processor


def tiny_perception_lm(seed: int = 0) -> tuple[Any, Any]:
    named = {"image_token": "<|image|>", "video_token": "<|video|>"}
    tokenizer = _tokenizer(named)
    tower = {
        "embed_dim": 24,
        "img_size": (SIDE, SIDE),
        "depth": 2,
        "num_heads": 2,
        "global_pool": "",
        "use_post_transformer_norm": False,
        "init_values": 0.1,
        "ref_feat_shape": (4, 4),
        "patch_size": 8,
    }
    config = tf.PerceptionLMConfig(
        vision_config={"architecture": "vit_pe_core_large_patch14_336", "model_args": tower},
        text_config=tf.LlamaConfig(**text_config(tokenizer)),
        projector_pooling_ratio=2,
        vision_use_cls_token=True,
        **_ids(tokenizer, image_token_id="<|image|>", video_token_id="<|video|>"),
    )
    processor = tf.PerceptionLMProcessor(
        video_processor=tf.PerceptionLMVideoProcessor(size=_SQUARE),
        image_processor=tf.PerceptionLMImageProcessor(tile_size=SIDE, max_num_tiles=1, vision_input_type="vanilla"),
        tokenizer=tokenizer,
        patch_size=8,
        pooling_ratio=2,
        chat_template=template("<|video|>\n", "<|image|>\n"),
    )
    return _seeded(tf.PerceptionLMForConditionalGeneration, config, tokenizer, seed), processor


def tiny_instructblipvideo(seed: int = 0) -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer(("<video>",))
    small = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = tf.InstructBlipVideoConfig(
        vision_config={**small, "image_size": SIDE, "patch_size": 8, "initializer_range": 0.3},
        qformer_config={
            **small,
            "initializer_range": 0.3,
            "vocab_size": len(tokenizer),
            "encoder_hidden_size": 24,
            "cross_attention_frequency": 1,
            "pad_token_id": 0,
        },
        text_config=tf.LlamaConfig(**text_config(tokenizer)),
        num_query_tokens=4,
        **_ids(tokenizer, video_token_index="<video>"),
    )
    processor = tf.InstructBlipVideoProcessor(
        video_processor=tf.InstructBlipVideoVideoProcessor(size=_SQUARE),
        tokenizer=tokenizer,
        qformer_tokenizer=tiny_tokenizer(("<video>",)),
        num_query_tokens=4,
    )
    model = _seeded(tf.InstructBlipVideoForConditionalGeneration, config, tokenizer, seed)
    torch.nn.init.normal_(model.query_tokens)
    return model, processor


def tiny_gemma4(seed: int = 0) -> tuple[Any, Any]:
    named = {
        "image_token": "<|image|>",
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "audio_token": "<|audio|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
    }
    tokenizer = _tokenizer(named, "<|video|>")
    text = text_config(
        tokenizer,
        head_dim=8,
        global_head_dim=8,
        vocab_size_per_layer_input=len(tokenizer),
        hidden_size_per_layer_input=8,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=64,
    )
    vision = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "patch_size": 4,
        "pooling_kernel_size": 3,
        "position_embedding_size": 256,
    }
    config = tf.Gemma4Config(
        text_config=text,
        vision_config=vision,
        audio_config=None,
        **_ids(
            tokenizer,
            image_token_id="<|image|>",
            video_token_id="<|video|>",
            audio_token_id="<|audio|>",
            boi_token_id="<|image>",
            eoi_token_id="<image|>",
        ),
    )
    sizes = {"patch_size": 4, "pooling_kernel_size": 3, "max_soft_tokens": 70}
    processor = tf.Gemma4Processor(
        feature_extractor=tf.Gemma4AudioFeatureExtractor(),
        image_processor=tf.Gemma4ImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=tf.Gemma4VideoProcessor(**sizes),
        chat_template=template("<|video|>\n", "<|image|>\n"),
    )
    return _seeded(tf.Gemma4ForConditionalGeneration, config, tokenizer, seed), processor


def tiny_minicpmv4_6(seed: int = 0) -> tuple[Any, Any]:
    named = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "image_start_token": "<image>",
        "image_end_token": "</image>",
        "slice_start_token": "<slice>",
        "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>",
        "image_id_end_token": "</image_id>",
    }
    tokenizer = _tokenizer(named)
    text = text_config(
        tokenizer,
        head_dim=16,
        layer_types=["linear_attention", "full_attention"],
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
    )
    config = tf.MiniCPMV4_6Config(
        text_config={"model_type": "qwen3_5_text", **text},
        vision_config={
            "hidden_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "image_size": 64,
            "patch_size": 8,
            "insert_layer_id": 1,
        },
        insert_layer_id=1,
        image_size=64,
        **_ids(tokenizer, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
    )
    sizes = {"patch_size": 8, "scale_resolution": 64, "slice_mode": False, "max_slice_nums": 1}
    processor = tf.MiniCPMV4_6Processor(
        image_processor=tf.MiniCPMV4_6ImageProcessor(**sizes),
        video_processor=tf.MiniCPMV4_6VideoProcessor(**sizes),
        tokenizer=tokenizer,
        chat_template=template("<|video_pad|>\n", "<|image_pad|>\n"),
    )
    return _seeded(tf.MiniCPMV4_6ForConditionalGeneration, config, tokenizer, seed), processor


def tiny_molmo2(seed: int = 0) -> tuple[Any, Any]:
    named = {"image_token": "<|image|>", "video_token": "<|video|>"}
    more = (
        "<im_patch>",
        "<im_col>",
        "<im_start>",
        "<low_res_im_start>",
        "<frame_start>",
        "<im_end>",
        "<frame_end>",
        "<im_low>",
    )
    tokenizer = _tokenizer(named, *more)
    head = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 12, "hidden_size": 24, "intermediate_size": 32}
    config = tf.Molmo2Config(
        vision_config={
            **head,
            "num_hidden_layers": 3,
            "image_size": [SIDE, SIDE],
            "patch_size": 8,
            "num_position_embeddings": 16,
        },
        adapter_config={**head, "vision_feature_layer": [-1], "text_hidden_size": 32},
        text_config={**text_config(tokenizer), "head_dim": 8, "additional_vocab_size": 16},
        **_ids(
            tokenizer,
            image_start_token_id="<im_start>",
            low_res_image_start_token_id="<low_res_im_start>",
            image_end_token_id="<im_end>",
            image_patch_id="<im_patch>",
            frame_start_token_id="<frame_start>",
            frame_end_token_id="<frame_end>",
        ),
    )
    processor = tf.Molmo2Processor(
        image_processor=tf.Molmo2ImageProcessor(
            size=_SQUARE, patch_size=8, pooling_size=[2, 2], max_crops=1, overlap_margins=[0, 0]
        ),
        video_processor=tf.Molmo2VideoProcessor(size=_SQUARE, patch_size=8, pooling_size=[2, 2]),
        tokenizer=tokenizer,
        chat_template=template("<|video|>\n", "<|image|>\n"),
    )
    return _seeded(tf.Molmo2ForConditionalGeneration, config, tokenizer, seed), processor
