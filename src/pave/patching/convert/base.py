"""Bases in the layout of lmms-lab (LLaVA-OneVision as its authors released it) to the layout of transformers.

The weights are the same; names, config and processor differ. Nothing is computed: tensors are copied under other names, and
rows for the two placeholder tokens are appended where the embeddings have none to spare.
"""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from pave.patching.convert.files import first_names, read_tensors, tensor_shapes, weight_files
from pave.utils.files import atomic_folder
from pave.utils.json_files import read_json_object

logger = logging.getLogger(__name__)

PLACEHOLDERS = ("<image>", "<video>")
"""Tokens that transformers puts into a prompt where vision tokens go."""

_VISION = "model.vision_tower.vision_tower.vision_model."
_HEADS = {768: 12, 1024: 16, 1152: 16}
"""Attention heads of the published SigLIP towers by their width; shapes do not tell."""
_NAMES = (
    (r"model\.vision_tower\.vision_tower\.(vision_model\..+)", r"vision_tower.\1"),
    (r"model\.mm_projector\.0\.(weight|bias)", r"multi_modal_projector.linear_1.\1"),
    (r"model\.mm_projector\.2\.(weight|bias)", r"multi_modal_projector.linear_2.\1"),
    (r"model\.image_newline", r"image_newline"),
    (r"model\.((?:embed_tokens|norm|layers)\..+)", r"language_model.model.\1"),
    (r"lm_head\.weight", r"language_model.lm_head.weight"),
)
"""Names in the lmms-lab layout, and those of LLaVA-OneVision on the hub, which every transformers reads."""
_TEXT_KEYS = (
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "max_window_layers",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "sliding_window",
    "tie_word_embeddings",
    "use_sliding_window",
)
_REQUIRED = {
    "mm_projector_type": "mlp2x_gelu",
    "mm_spatial_pool_mode": "bilinear",
    "mm_vision_select_feature": "patch",
    "rope_scaling": None,
}
"""Settings that transformers' model knows one value of."""

_TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)

CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<video>\n{% elif part['type'] == 'image' %}<image>\n"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The prompt of the released code: Qwen's, with its system message and the vision tokens on a line of their own."""


@dataclass(frozen=True)
class ConvertedBase:
    """What ``convert_base`` wrote."""

    folder: Path
    assumed: tuple[str, ...]
    """What neither the config nor the weights tell, and was assumed."""


def is_reference_base(config: Mapping[str, Any]) -> bool:
    """True for a ``config.json`` in the lmms-lab layout."""
    return "text_config" not in config and any("LlavaQwen" in str(name) for name in config.get("architectures") or ())


def convert_base(
    folder: str | Path,
    out: str | Path,
    *,
    vision: Mapping[str, Any] | None = None,
    vision_feature_layer: int = -1,
) -> ConvertedBase:
    """Rewrite a base in the lmms-lab layout as a folder that ``AutoModelForImageTextToText`` and ``AutoProcessor`` load.

    Weights are copied shard by shard, in the type they are stored in. If the embeddings have no free rows for the placeholder
    tokens, zero rows are appended to them and to the head.

    Args:
        folder: config.json, the tokenizer and the weights (.safetensors or .bin, single or sharded).
        out: where to; an older folder there is replaced whole.
        vision: settings of the SigLIP tower that its shapes do not tell: num_attention_heads, image_size, hidden_act,
            layer_norm_eps. The published towers need none.
        vision_feature_layer: the layer of those in the file whose output is used; the published files hold the used ones only.

    Raises:
        ValueError: if a file is missing or damaged, a tensor is missing or not known, or a setting is one that transformers'
            model has no counterpart of.
    """
    from transformers import AutoModelForImageTextToText

    source = Path(folder)
    config = read_json_object(source / "config.json")
    if not is_reference_base(config):
        raise ValueError(f"{source}: config.json is not in the lmms-lab layout (architectures: {config.get('architectures')})")
    files = weight_files(source)
    shapes = tensor_shapes(files)
    tokenizer = _tokenizer(source)
    assumed: list[str] = []
    target = _target_config(source, config, shapes, tokenizer, vision or {}, vision_feature_layer, assumed)
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(target)
    dropped = {"lm_head.weight"} & set(shapes) if target.tie_word_embeddings else set()
    if dropped:
        assumed.append("lm_head.weight is dropped: the config ties the head to the embeddings")
    _check_names(source, set(shapes) - dropped, set(model.state_dict()), bool(target.tie_word_embeddings))
    with atomic_folder(out) as work:
        _write_weights(files, work, target.get_text_config().vocab_size, dropped)
        target.architectures = [type(model).__name__]
        target.save_pretrained(work)
        _processor(tokenizer, target).save_pretrained(work)
        _generation_config(config, tokenizer).save_pretrained(work)
    for sentence in assumed:
        logger.warning("%s: %s", source, sentence)
    return ConvertedBase(Path(out), tuple(assumed))


def _tokenizer(source: Path) -> Any:
    """The base's tokenizer with the placeholder tokens. Its files are read apart from config.json, which names models that
    transformers does not know or knows as others."""
    from transformers import AddedToken, AutoTokenizer

    with tempfile.TemporaryDirectory() as apart:
        for name in _TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copy(source / name, apart)
        try:
            tokenizer = AutoTokenizer.from_pretrained(apart, trust_remote_code=False)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).replace(apart, str(source)).split())[:200]
            raise ValueError(
                f"{source} has no tokenizer that can be read ({reason}); put the tokenizer's files there"
            ) from None
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in PLACEHOLDERS])
    return tokenizer


def _target_config(
    source: Path,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    tokenizer: Any,
    vision: Mapping[str, Any],
    vision_feature_layer: int,
    assumed: list[str],
) -> Any:
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    for key, value in _REQUIRED.items():
        if config.get(key, value) != value:
            raise ValueError(f"{source}/config.json: {key} is {config[key]!r}; transformers' model has {value!r} only")
    embeddings = shapes.get("model.embed_tokens.weight")
    if embeddings is None:
        raise ValueError(f"{source}: the tensor model.embed_tokens.weight is missing")
    image, video = (tokenizer.convert_tokens_to_ids(token) for token in PLACEHOLDERS)
    rows = max(embeddings[0], image + 1, video + 1)
    if rows > embeddings[0]:
        assumed.append(
            f"the embeddings had {embeddings[0]} rows, none free for the placeholder tokens: {rows - embeddings[0]} zero rows appended"
        )
    text = {key: config[key] for key in _TEXT_KEYS if key in config}
    rope = {"rope_type": "default", "rope_theta": float(config.get("rope_theta", 1e6))}
    tower = _vision_config(source, config, shapes, vision, assumed)
    pinpoints = config.get("image_grid_pinpoints")
    if not isinstance(pinpoints, list):
        assumed.append("image_grid_pinpoints is no list of sizes; assuming transformers' own (it concerns images, not videos)")
        pinpoints = None
    aspect = str(config.get("image_aspect_ratio"))
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**tower, vision_use_head=False),
        text_config=Qwen2Config(**text, vocab_size=rows, rope_parameters=rope, pad_token_id=tokenizer.pad_token_id),
        image_token_index=image,
        video_token_index=video,
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio=aspect if aspect.startswith("anyres_max_") else "anyres_max_9",
        vision_feature_layer=vision_feature_layer,
        vision_feature_select_strategy="full",
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        dtype=config.get("torch_dtype"),
    )


def _vision_config(
    source: Path,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    given: Mapping[str, Any],
    assumed: list[str],
) -> dict[str, Any]:
    """Sizes of the tower: those that shapes tell, those given, and the published ones for the rest."""

    def shape(name: str) -> tuple[int, ...]:
        if _VISION + name not in shapes:
            raise ValueError(f"{source}: the tensor {_VISION}{name} is missing")
        return shapes[_VISION + name]

    width, channels, patch, _ = shape("embeddings.patch_embedding.weight")
    grid = math.isqrt(shape("embeddings.position_embedding.weight")[0])
    numbers = {int(m[1]) for m in (re.match(re.escape(_VISION) + r"encoder\.layers\.(\d+)\.", key) for key in shapes) if m}
    told = {
        "hidden_size": width,
        "num_channels": channels,
        "patch_size": patch,
        "intermediate_size": shape("encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": max(numbers) + 1,
    }
    wrong = [key for key in given if key in told and given[key] != told[key]]
    if wrong:
        raise ValueError(f"{source}: {wrong[0]} is given as {given[wrong[0]]}, but the weights are for {told[wrong[0]]}")
    rest = dict(given)
    if "num_attention_heads" not in rest:
        if width not in _HEADS:
            raise ValueError(
                f"{source}: the vision tower is {width} wide, which no published one is, and shapes do not tell its attention "
                "heads; give num_attention_heads"
            )
        rest["num_attention_heads"] = _HEADS[width]
        assumed.append(f"a vision tower {width} wide has {_HEADS[width]} attention heads")
    if "image_size" not in rest:
        named = re.search(r"(\d+)$", str(config.get("mm_vision_tower")))
        fits = named is not None and int(named[1]) // patch == grid
        rest["image_size"] = int(named[1]) if named is not None and fits else grid * patch
        assumed.append(f"the vision tower takes images of {rest['image_size']} pixels")
    rest.setdefault("hidden_act", "gelu_pytorch_tanh")
    rest.setdefault("layer_norm_eps", 1e-6)
    return {**told, **rest}


def _check_names(source: Path, found: set[str], expected_names: set[str], tied: bool) -> None:
    """Exactly the tensors that transformers' model has, by the names of the file."""
    expected = {_reference_name(name) for name in expected_names}
    if tied:
        expected.discard("lm_head.weight")
    missing, unknown = expected - found, found - expected
    if missing:
        raise ValueError(f"{source}: missing tensors: {first_names(missing)}")
    if unknown:
        raise ValueError(f"{source}: unknown tensors: {first_names(unknown)}; nothing is ignored, so it cannot be converted")


def _reference_name(name: str) -> str:
    """The name in the lmms-lab layout of a tensor of transformers' model in memory."""
    rules = (
        (r"model\.vision_tower\.(?:vision_model\.)?(.+)", _VISION + r"\1"),
        (r"model\.multi_modal_projector\.linear_1\.(.+)", r"model.mm_projector.0.\1"),
        (r"model\.multi_modal_projector\.linear_2\.(.+)", r"model.mm_projector.2.\1"),
        (r"model\.language_model\.(.+)", r"model.\1"),
    )
    for ours, theirs in rules:
        if re.fullmatch(ours, name):
            return re.sub(ours, theirs, name)
    return name


def _hub_name(name: str) -> str:
    for theirs, ours in _NAMES:
        if re.fullmatch(theirs, name):
            return re.sub(theirs, ours, name)
    raise AssertionError(f"no name for {name}")


def _write_weights(files: list[Path], work: Path, rows: int, dropped: set[str]) -> None:
    """One file per file of the source, so that no more than one is in memory."""
    weight_map: dict[str, str] = {}
    total = 0
    for number, path in enumerate(files, 1):
        name = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        renamed: dict[str, Tensor] = {}
        for key, tensor in read_tensors(path).items():
            if key in dropped:
                continue
            if key in ("model.embed_tokens.weight", "lm_head.weight") and len(tensor) < rows:
                tensor = torch.cat([tensor, tensor.new_zeros(rows - len(tensor), tensor.shape[1])])
            renamed[_hub_name(key)] = tensor.clone(memory_format=torch.contiguous_format)
        safetensors.torch.save_file(renamed, work / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(renamed, name)
        total += sum(t.numel() * t.element_size() for t in renamed.values())
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (work / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _processor(tokenizer: Any, config: Any) -> Any:
    """Frames and images as the released code prepares them: resized to the tower's square, scaled to -1 to 1."""
    from transformers import LlavaOnevisionImageProcessor, LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor

    size = {"height": config.vision_config.image_size, "width": config.vision_config.image_size}
    pixels = {"size": size, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(**pixels, image_grid_pinpoints=config.image_grid_pinpoints),
        video_processor=LlavaOnevisionVideoProcessor(**pixels),
        tokenizer=tokenizer,
        num_image_tokens=(config.vision_config.image_size // config.vision_config.patch_size) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=config.vision_aspect_ratio,
        chat_template=CHAT_TEMPLATE,
    )


def _generation_config(config: Mapping[str, Any], tokenizer: Any) -> Any:
    from transformers import GenerationConfig

    named = config.get("eos_token_id")
    ends = {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id} - {None}
    return GenerationConfig(
        bos_token_id=config.get("bos_token_id"), eos_token_id=sorted(ends) or None, pad_token_id=tokenizer.pad_token_id
    )
