"""How the tiny base Video LLM is built: LLaVA-OneVision's own classes, from a config, with a vocabulary of whole words."""

from __future__ import annotations

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
    Qwen2Config,
    SiglipVisionConfig,
)

from pave.playground.render import SIZE
from pave.playground.world import COLOURS, LIGHTS, NUM_MOMENTS, SHAPES, SOUNDS

IMAGE_TOKEN, VIDEO_TOKEN = "<image>", "<video>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = ("<pad>", "<unk>", TURN_START, TURN_END, IMAGE_TOKEN, VIDEO_TOKEN)
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
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|> ' + message['role'] + ' ' }}"
    "{% if message['content'] is string %}{{ message['content'] + ' ' }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}{{ '<video> ' }}{% elif part['type'] == 'image' %}{{ '<image> ' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|> assistant ' }}{% endif %}"
)


def vocabulary() -> list[str]:
    """Every word the base knows, special tokens first. Spare words let a patch for another channel answer with them."""
    words = [*SPECIAL_TOKENS, *_WORDS.split(), *COLOURS, *SHAPES, *LIGHTS, *SOUNDS, *_SPARE_WORDS.split()]
    return list(dict.fromkeys(words))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer: lower case, split at blanks and punctuation."""
    ids = {word: index for index, word in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token=TURN_END,
        extra_special_tokens={"image_token": IMAGE_TOKEN, "video_token": VIDEO_TOKEN, "turn_start_token": TURN_START},
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_processor() -> LlavaOnevisionProcessor:
    """The processor of the base: clips of ``SIZE`` pixels, values from -1 to 1."""
    picture = {"size": {"height": SIZE, "width": SIZE}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(image_grid_pinpoints=[[SIZE, SIZE]], **picture),
        tokenizer=build_tokenizer(),
        video_processor=LlavaOnevisionVideoProcessor(num_frames=NUM_MOMENTS, **picture),
        num_image_tokens=GRID**2,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    seed: int, vision_width: int = 96, vision_layers: int = 3, width: int = 128, layers: int = 4
) -> LlavaOnevisionForConditionalGeneration:
    """A fresh base with weights drawn for this small size (the library's own scheme is meant for much wider matrices)."""
    words = vocabulary()
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=vision_width,
            intermediate_size=2 * vision_width,
            num_hidden_layers=vision_layers,
            num_attention_heads=4,
            image_size=SIZE,
            patch_size=PATCH,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            vocab_size=len(words),
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=1024,
            bos_token_id=None,
            eos_token_id=words.index(TURN_END),
            pad_token_id=words.index("<pad>"),
            tie_word_embeddings=True,
        ),
        image_token_index=words.index(IMAGE_TOKEN),
        video_token_index=words.index(VIDEO_TOKEN),
        image_grid_pinpoints=[[SIZE, SIZE]],
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = LlavaOnevisionForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("embed_tokens.weight", "position_embedding.weight", "image_newline")):
            nn.init.normal_(parameter, std=0.08)
        elif parameter.ndim >= 2:
            nn.init.xavier_uniform_(parameter.view(len(parameter), -1))
    model.tie_weights()
    model.generation_config.eos_token_id = words.index(TURN_END)
    model.generation_config.pad_token_id = words.index("<pad>")
    return model
