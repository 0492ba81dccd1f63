"""Real architectures shrunk to two layers, with hand-built processors, made offline from a seed.

Widths fit every backend that the project tests against: LLaVA-OneVision makes 4 tokens a frame from 32 x 32 pixels,
Qwen2.5-VL 4 tokens a pair of frames.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers as tf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

SIDE = 32
"""Height and width, in pixels, of the frames that both vision towers take."""

_CORPUS = [
    "what sound is heard in the video? a bell, a dog, a buzz or a chirp.",
    "which object was moving when the bell rang? the red circle, the blue square or the green triangle.",
    "user assistant system red green blue yellow yes no one two three four",
]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}VIDEO{% elif part['type'] == 'image' %}IMAGE"
    "{% elif part['type'] == 'text' %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@functools.cache
def _vocabulary(special: tuple[str, ...]) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[
            AddedToken(x, special=True, normalized=False) for x in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *special)
        ],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 3, trainer)
    return tokenizer.to_str()


def tiny_tokenizer(special: tuple[str, ...], **named: str) -> tf.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most 400 tokens; ``named`` are extra special tokens by their attribute's name."""
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_vocabulary(special)),
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens=named,
    )


def template(video: str, image: str = "") -> str:
    """A chat template that only appends, with these placeholders for a video and an image."""
    return TEMPLATE.replace("VIDEO", video).replace("IMAGE", image)


def text_config(tokenizer: tf.PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
        **more,
    }


def finish(model: tf.PreTrainedModel, tokenizer: tf.PreTrainedTokenizerFast) -> Any:
    model.generation_config = tf.GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model.eval()


def tiny_llava_onevision(seed: int = 0, **text: Any) -> tuple[Any, Any]:
    """(model, processor) of LLaVA-OneVision: SigLIP tower of 3 layers, Qwen2 of 2 layers, 4 tokens a frame and a newline.

    Args:
        seed: of the weights.
        text: changes to the configuration of the language model.
    """
    tokenizer = tiny_tokenizer(("<image>", "<video>"), image_token="<image>", video_token="<video>")
    processor = tf.LlavaOnevisionProcessor(
        image_processor=tf.LlavaOnevisionImageProcessor(
            size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=[[SIDE, SIDE]]
        ),
        tokenizer=tokenizer,
        video_processor=tf.LlavaOnevisionVideoProcessor(size={"height": SIDE, "width": SIDE}),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=template("<video>\n", "<image>\n"),
    )
    config = tf.LlavaOnevisionConfig(
        vision_config=tf.SiglipVisionConfig(
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=SIDE,
            patch_size=8,
            vision_use_head=False,
        ),
        text_config=tf.Qwen2Config(**text_config(tokenizer, **text)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[SIDE, SIDE]],
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    return finish(tf.LlavaOnevisionForConditionalGeneration(config), tokenizer), processor


def tiny_qwen2_5_vl(seed: int = 0, **text: Any) -> tuple[Any, Any]:
    """(model, processor) of Qwen2.5-VL, 2 layers a tower; 4 tokens a pair of 32 x 32 frames, more for larger frames.

    Args:
        seed: of the weights.
        text: changes to the configuration of the language model.
    """
    named = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_bos_token": "<|vision_start|>",
        "vision_eos_token": "<|vision_end|>",
    }
    tokenizer = tiny_tokenizer(tuple(named.values()), **named)
    processor = tf.Qwen2_5_VLProcessor(
        image_processor=tf.Qwen2VLImageProcessor(patch_size=8),
        tokenizer=tokenizer,
        video_processor=tf.Qwen2VLVideoProcessor(
            patch_size=8, size={"shortest_edge": SIDE * SIDE, "longest_edge": 64 * SIDE * SIDE}, cap_pixels_per_frame=False
        ),
        chat_template=template("<|vision_start|><|video_pad|><|vision_end|>", "<|vision_start|><|image_pad|><|vision_end|>"),
    )
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    config = tf.Qwen2_5_VLConfig(
        text_config=text_config(tokenizer, rope_parameters=rope, **text),
        vision_config={
            "depth": 2,
            "hidden_size": 24,
            "out_hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 32,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 32,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
            "in_channels": 3,
        },
        tie_word_embeddings=False,
        **{
            f"{name}_id": tokenizer.convert_tokens_to_ids(token)
            for name, token in (
                ("image_token", "<|image_pad|>"),
                ("video_token", "<|video_pad|>"),
                ("vision_start_token", "<|vision_start|>"),
                ("vision_end_token", "<|vision_end|>"),
            )
        },
    )
    torch.manual_seed(seed)
    return finish(tf.Qwen2_5_VLForConditionalGeneration(config), tokenizer), processor
