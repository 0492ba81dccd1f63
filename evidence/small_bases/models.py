"""How the tiny base Video LLMs are built: the families' own classes, from a config, with a vocabulary of whole words.

The playground's own is a LLaVA-OneVision. Others of that family differ in size; a Qwen2.5-VL has another tower, which
sees two frames at a time through windows, and positions of three dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import nn
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    SiglipVisionConfig,
)

from pave.playground.render import SIZE
from pave.playground.world import COLOURS, LIGHTS, NUM_MOMENTS, SHAPES, SOUNDS

IMAGE_TOKEN, VIDEO_TOKEN = "<image>", "<video>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = ("<pad>", "<unk>", TURN_START, TURN_END, IMAGE_TOKEN, VIDEO_TOKEN)
QWEN_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
"""Attribute of the tokenizer and token."""
PATCH = 8
"""Pixels of a side of a vision patch."""
GRID = SIZE // PATCH
"""Patches along a side of a frame; the model pools them two by two into (GRID / 2)**2 tokens a frame."""

_WORDS = """
    user assistant system what which where when who how many much is are was were does do did the a an of in on at to
    and or not no yes while then video clip scene object objects thing things colour color shape moves move moving
    movement rests first last second third before after during between light lights flashes flash flashing sound
    sounds heard hear plays play rings ring noise silence loud quiet seen see shown kind time times same other both
    neither left right up down top bottom ? . , :
"""
_SPARE_WORDS = """
    depth size large small big little near far nearer nearest farther farthest close closer behind front above below
    beside camera cameras view views viewpoint hidden visible covered occluded flicker spark blink tap bounce knock
    shake fast slow event events sensor reading value high low higher lower hot cold warm cool heavy increase decrease
    steady zero one two three four five six seven eight nine ten north south east west towards away direction speed
    pose position distance metre metres seconds black grey pink brown star cross cube ball click hum beep bang silent
    none nothing unknown
"""


def chat_template(
    video: str, image: str, start: str = "<|im_start|> ", role: str = " ", part: str = " ", end: str = " "
) -> str:
    """A chat template that only appends: the two placeholders, and what stands in front of a role, behind it, behind a
    part of a message and behind its end."""
    start, role, part, end = (text.replace("\n", "\\n") for text in (start, role, part, end))
    return (
        f"{{% for message in messages %}}{{{{ '{start}' + message['role'] + '{role}' }}}}"
        f"{{% if message['content'] is string %}}{{{{ message['content'] + '{part}' }}}}{{% else %}}"
        "{% for part in message['content'] %}"
        f"{{% if part['type'] == 'video' %}}{{{{ '{video}{part}' }}}}"
        f"{{% elif part['type'] == 'image' %}}{{{{ '{image}{part}' }}}}"
        f"{{% elif part['type'] == 'text' %}}{{{{ part['text'] + '{part}' }}}}{{% endif %}}"
        f"{{% endfor %}}{{% endif %}}{{{{ '<|im_end|>{end}' }}}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ '{start}assistant{role}' }}}}{{% endif %}}"
    )


def vocabulary(special: Sequence[str] = SPECIAL_TOKENS) -> list[str]:
    """Every word the base knows, special tokens first. Spare words let a patch for another channel answer with them."""
    words = [*special, *_WORDS.split(), *COLOURS, *SHAPES, *LIGHTS, *SOUNDS, *_SPARE_WORDS.split()]
    return list(dict.fromkeys(words))


def build_tokenizer(words: Sequence[str], **tokens: str) -> PreTrainedTokenizerFast:
    """A word-level tokenizer: lower case, split at blanks and punctuation; ``tokens`` are special ones by attribute."""
    ids = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token=TURN_END,
        extra_special_tokens={**tokens, "turn_start_token": TURN_START},
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_processor(
    tokenizer: PreTrainedTokenizerFast | None = None, template: str | None = None
) -> LlavaOnevisionProcessor:
    """The processor of a LLaVA-OneVision for clips of ``SIZE`` pixels, values from -1 to 1; by default with the
    playground's words."""
    picture = {"size": {"height": SIZE, "width": SIZE}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    tokens = {"image_token": IMAGE_TOKEN, "video_token": VIDEO_TOKEN}
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(image_grid_pinpoints=[[SIZE, SIZE]], **picture),
        tokenizer=tokenizer or build_tokenizer(vocabulary(), **tokens),
        video_processor=LlavaOnevisionVideoProcessor(num_frames=NUM_MOMENTS, **picture),
        num_image_tokens=GRID**2,
        vision_feature_select_strategy="full",
        chat_template=template or chat_template(VIDEO_TOKEN, IMAGE_TOKEN),
    )


@dataclass(frozen=True)
class BaseSize:
    """How wide and deep a base is."""

    vision_width: int = 96
    vision_layers: int = 3
    width: int = 128
    layers: int = 4


def _text(words: Sequence[str], size: BaseSize) -> dict[str, Any]:
    return {
        "vocab_size": len(words),
        "hidden_size": size.width,
        "intermediate_size": 3 * size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
        "bos_token_id": None,
        "eos_token_id": words.index(TURN_END),
        "pad_token_id": words.index("<pad>"),
        "tie_word_embeddings": True,
    }


def _drawn(model: Any, words: Sequence[str]) -> Any:
    """Weights for this small size (the library's own scheme is meant for much wider matrices)."""
    for name, parameter in model.named_parameters():
        if name.endswith(("embed_tokens.weight", "position_embedding.weight", "image_newline")):
            nn.init.normal_(parameter, std=0.08)
        elif parameter.ndim >= 2:
            nn.init.xavier_uniform_(parameter.view(len(parameter), -1))
    model.tie_weights()
    model.generation_config.eos_token_id = words.index(TURN_END)
    model.generation_config.pad_token_id = words.index("<pad>")
    return model


def vision_config(size: BaseSize) -> SiglipVisionConfig:
    """The vision tower of a LLaVA-OneVision."""
    return SiglipVisionConfig(
        hidden_size=size.vision_width,
        intermediate_size=2 * size.vision_width,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )


def llava_config(vision: Any, text: Any, image_token: int, video_token: int) -> LlavaOnevisionConfig:
    """A LLaVA-OneVision of the playground's tower and any language model."""
    return LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token,
        video_token_index=video_token,
        image_grid_pinpoints=[[SIZE, SIZE]],
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )


def build_model(seed: int, size: BaseSize = BaseSize()) -> LlavaOnevisionForConditionalGeneration:
    """A fresh LLaVA-OneVision, by default of the playground's size."""
    words = vocabulary()
    text = Qwen2Config(**_text(words, size))
    config = llava_config(vision_config(size), text, words.index(IMAGE_TOKEN), words.index(VIDEO_TOKEN))
    torch.manual_seed(seed)
    return _drawn(LlavaOnevisionForConditionalGeneration(config), words)


def _qwen_words() -> list[str]:
    return vocabulary((*SPECIAL_TOKENS[:4], *QWEN_TOKENS.values()))


def build_qwen_processor() -> Qwen2_5_VLProcessor:
    """The processor of a Qwen2.5-VL for the same clips and the same words."""
    values = {
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }
    area = {"shortest_edge": SIZE * SIZE, "longest_edge": 64 * SIZE * SIZE}
    video, image = (f"<|vision_start|> {QWEN_TOKENS[name]} <|vision_end|>" for name in ("video_token", "image_token"))
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=area, **values),
        tokenizer=build_tokenizer(_qwen_words(), **QWEN_TOKENS),
        video_processor=Qwen2VLVideoProcessor(size=area, cap_pixels_per_frame=False, **values),
        chat_template=chat_template(video, image),
    )


def build_qwen_model(seed: int, size: BaseSize = BaseSize()) -> Qwen2_5_VLForConditionalGeneration:
    """A fresh Qwen2.5-VL: two frames a step, windows of two by two tokens in all vision layers but the last, 3-D
    positions."""
    words = _qwen_words()
    pairs = size.width // 4 // 2  # of one head's rotary dimensions: half for time, the rest for row and column
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_width,
            "intermediate_size": 2 * size.vision_width,
            "num_heads": 4,
            "out_hidden_size": size.width,
            "patch_size": PATCH,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "tokens_per_second": 2,
            "window_size": 4 * PATCH,
            "fullatt_block_indexes": [size.vision_layers - 1],
        },
        text_config={
            **_text(words, size),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [pairs - 2 * (pairs // 4), pairs // 4, pairs // 4],
            },
        },
        image_token_id=words.index(QWEN_TOKENS["image_token"]),
        video_token_id=words.index(QWEN_TOKENS["video_token"]),
        vision_start_token_id=words.index(QWEN_TOKENS["vision_start_token"]),
        vision_end_token_id=words.index(QWEN_TOKENS["vision_end_token"]),
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    return _drawn(Qwen2_5_VLForConditionalGeneration(config), words)
