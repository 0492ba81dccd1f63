"""Patches as the authors' training code leaves them, to this library's format.

A folder holds ``adapter_model.safetensors`` (or .bin), ``adapter_config.json``, ``non_lora_trainables.bin`` and ``config.json``.
What the files do not tell (attention heads, rope) is an option or an assumption, and every assumption is reported and recorded.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pave.config import LORA_LINEARS, EncoderConfig, FusionConfig, LoraSettings, PatchConfig, SideChannelConfig
from pave.patching import lora
from pave.patching.attach import attach_patch
from pave.patching.checkpoint import write_patch
from pave.patching.convert.base import is_reference_base
from pave.patching.convert.files import first_names, one_of, read_tensors
from pave.patching.convert.reference_fusion import ReadFusion, read_fusion
from pave.patching.fingerprint import BaseFingerprint, fingerprint, sizes_only
from pave.patching.lookup import patch_slot
from pave.patching.record import PatchRecord
from pave.patching.storage import to_storage
from pave.utils.json_files import read_json_object
from pave.version import __version__
from pave.video_llms import get_interface
from pave.video_llms.known import is_built_in, load_config

logger = logging.getLogger(__name__)

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
FUSION_FILES = ("non_lora_trainables.bin", "non_lora_trainables.safetensors")
_FUSION_PREFIX = re.compile(r"(base_model\.model\.)?(model\.)?temporal_aggregator\.")
_ADAPTER_KEY = re.compile(r"base_model\.model\.model\.layers\.\d+\.\w+\.(\w+)\.lora_[AB]\.weight")
_NEWLINES: dict[str, Literal["base", "grid"]] = {"grid": "grid", "one_token": "base"}
_SAME_AS_BASE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
_KNOWN_MODEL, _KNOWN_FUSION = "pave_qwen2", "pmv5"


@dataclass(frozen=True)
class ImportedPatch:
    """What ``import_patch`` wrote."""

    folder: Path
    config: PatchConfig
    assumed: tuple[str, ...]
    """What the files do not tell, and was assumed: one sentence each."""
    dropped: tuple[str, ...]
    """Tensors that the released code never reads."""


@dataclass(frozen=True)
class _Files:
    """The content of the authors' folder."""

    folder: Path
    config: dict[str, Any]
    adapter_config: dict[str, Any]
    adapter: dict[str, Tensor]
    fusion: dict[str, Tensor]

    def storage_dtype(self) -> Literal["float32", "bfloat16", "float16"]:
        """The narrowest type that holds every tensor exactly."""
        found = {tensor.dtype for tensor in (*self.adapter.values(), *self.fusion.values())}
        if found == {torch.bfloat16}:
            return "bfloat16"
        return "float16" if found == {torch.float16} else "float32"


def import_patch(
    folder: str | Path,
    out: str | Path,
    base: str,
    *,
    heads: int | None = None,
    rope: bool | None = None,
    newline: Literal["base", "grid"] | None = None,
    vocabulary: int | None = None,
    channel: str = "side",
    tokens_per_step: int = 1,
    rate: float | None = None,
    arguments: Mapping[str, Any] | None = None,
    name: str = "default",
) -> ImportedPatch:
    """Rewrite a patch of the authors' code as a patch of this library.

    The sizes of the fusion module are read off its weights. The unused value projections are dropped. Alignment is by index,
    keys make the values, queries come from before the projector, and a video without the channel keeps LoRA, as in the
    released code. Tensors are stored in their own type, so nothing is rounded.

    Args:
        folder: the authors' files.
        out: where to; an older folder there is replaced whole.
        base: the base in transformers' layout: a local folder (its weights and tokenizer then enter the patch's fingerprint), a
            built-in name or a hub id (only its config is read).
        heads: attention heads of the fusion module, which no file records. None: 4, as published.
        rope: whether the fusion module has rotary positions, likewise. None: off, as in the published 7B recipes.
        newline: overrides ``mm_newline_position`` of config.json.
        vocabulary: number of token ids to choose from. None: the length of the base's tokenizer without its placeholder
            tokens, or, if that cannot be read, the ``vocab_size`` of config.json.
        channel: name of the side channel.
        tokens_per_step: M of its stored features. 1 reads (K, M, C) as K * M steps of one token, as the released code does
            with sound.
        rate: steps a second of its stored features. None: 1; index alignment does not look at times.
        arguments: constructor arguments of the fusion module by the authors' names, where they are known.
        name: name of the patch.

    Raises:
        ValueError: naming the file and the tensor or key, if anything is missing, not known, contradicts the base, or cannot be
            expressed.
    """
    files = _read(Path(folder))
    model, processor = _load_base(base)
    assumed: list[str] = []
    if processor is None:
        assumed.append("the weights of the base were not read; the patch records the sizes of its base only")
    _check_same_model(files, model.config, assumed)
    arguments = _arguments(files, heads, rope, arguments)
    read = read_fusion(arguments, files.fusion)
    assumed += read.assumed
    storage_dtype = files.storage_dtype()
    if storage_dtype == "float32" and any(t.dtype != torch.float32 for t in (*files.adapter.values(), *files.fusion.values())):
        assumed.append("the tensors are not all of one 16-bit type; stored in float32")
    side = SideChannelConfig(
        kind="features",
        width=read.side_width,
        encoder=_encoder(read.side_width, tokens_per_step, rate, assumed),
        fusion=_fusion_config(read, arguments.get("use_slow_feat_before_mlp"), get_interface(model.config), model.config),
    )
    config = PatchConfig(
        side_channels={channel: side},
        lora=_lora_settings(files),
        missing_channel="lora_only",
        newline=newline or _newline(files, assumed),
        vocabulary=_vocabulary(files, vocabulary, processor, model.config, assumed),
        storage_dtype=storage_dtype,
    )
    recorded = fingerprint(model, processor)
    if is_built_in(base):
        recorded = sizes_only(recorded)
    target = _write(files, Path(out), config, model, recorded, name, read, assumed)
    for sentence in assumed:
        logger.warning("%s: %s", folder, sentence)
    return ImportedPatch(target, config, tuple(assumed), read.dropped)


def _write(
    files: _Files,
    out: Path,
    config: PatchConfig,
    model: Any,
    base: BaseFingerprint,
    name: str,
    read: ReadFusion,
    assumed: list[str],
) -> Path:
    """Attach a patch of this config to check every name and shape, and write the authors' tensors in its place."""
    attach_patch(model, config, name=name)
    (channel,) = config.side_channels
    fusion = {f"{channel}.{key}": value for key, value in read.module.state_dict().items()}
    lora.check_same_tensors(patch_slot(model).fusions.state_dict(), fusion, str(files.folder))
    adapter = _rename_adapter(files, model, name)
    record = PatchRecord(
        pave_version=__version__,
        name=name,
        patch=config,
        base=base,
        provenance={"imported": files.folder.name, "assumed": assumed, "dropped": list(read.dropped)},
    )
    dtype = getattr(torch, config.storage_dtype)
    return write_patch(out, record, model, to_storage(fusion, dtype), to_storage(adapter, dtype))


# --- the files


def _read(folder: Path) -> _Files:
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder")
    fusion_path = one_of(folder, *FUSION_FILES)
    fusion = read_tensors(fusion_path)
    foreign = {key for key in fusion if not _FUSION_PREFIX.match(key)}
    if foreign:
        raise ValueError(
            f"{fusion_path}: unknown tensors outside the fusion module: {first_names(foreign)}; nothing is ignored, so the patch "
            "cannot be read"
        )
    if not fusion:
        raise ValueError(f"{fusion_path} holds no tensor")
    adapter_path = one_of(folder, *ADAPTER_FILES)
    adapter = read_tensors(adapter_path)
    foreign = {key for key in adapter if not _ADAPTER_KEY.fullmatch(key)}
    if foreign or not adapter:
        what = f"tensors that are no LoRA update of the language model: {first_names(foreign)}" if foreign else "no tensor"
        raise ValueError(f"{adapter_path} holds {what}")
    return _Files(
        folder, read_json_object(folder / "config.json"), read_json_object(folder / "adapter_config.json"), adapter, fusion
    )


def _check_same_model(files: _Files, base: Any, assumed: list[str]) -> None:
    where = files.folder / "config.json"
    text = base.get_text_config()
    for key in _SAME_AS_BASE:
        if files.config.get(key) not in (None, getattr(text, key)):
            raise ValueError(
                f"{where}: {key} is {files.config[key]}, but the base's language model has {getattr(text, key)}; this patch is for "
                "another base"
            )
    combine = files.config.get("feat_combine_method", "add")
    if combine != "add":
        raise ValueError(
            f"{where}: feat_combine_method is {combine!r}; only 'add', a residual on the video tokens, can be read"
        )
    for key, known in (("model_type", _KNOWN_MODEL), ("temporal_aggregator_type", _KNOWN_FUSION)):
        found = files.config.get(key)
        if found != known:
            assumed.append(f"{key} is {found!r}, not the published {known!r}; assuming the same arithmetic, as all tensors fit")


def _arguments(files: _Files, heads: int | None, rope: bool | None, arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """Constructor arguments of the fusion module: those given, and those that the files tell."""
    out = dict(arguments or {})
    for key, value in (("num_cross_attn_head", heads), ("use_3d_rope", rope)):
        if value is not None:
            if out.get(key) not in (None, value):
                raise ValueError(f"{key} is given twice, as {value} and as {out[key]}")
            out[key] = value
    if any(key.endswith("temporal_aggregator.learnable_query") for key in files.fusion):
        out.setdefault("query_type", "learnable")
    extra = files.config.get("train_addition_start_end_tokens")
    if extra is not None and out.get("train_addition_start_end_tokens") is None:
        out["train_addition_start_end_tokens"] = extra
    return out


# --- the config


def _fusion_config(read: ReadFusion, before_projector: bool | None, interface: Any, base: Any) -> FusionConfig:
    """The config as read, with the place that queries come from: as told, else as their width tells."""
    width, before = interface.llm_width(base), interface.pre_projector_width(base)
    if read.llm_width != width:
        raise ValueError(
            f"the fusion module writes into a language model of width {read.llm_width}, but the base's has {width}; this patch is "
            "for another base"
        )
    if read.query_width is None or (read.query_width == before and before_projector is not False):
        return read.config
    if read.query_width == width and before_projector is not True:
        return dataclasses.replace(read.config, query_source="post_projector")
    raise ValueError(
        f"the fusion module takes queries of width {read.query_width}, but the base's vision features are {before} wide before the "
        f"projector and {width} behind it; this patch is for another base"
    )


def _lora_settings(files: _Files) -> LoraSettings:
    found = {m[1] for m in (_ADAPTER_KEY.fullmatch(key) for key in files.adapter) if m}
    targets = tuple(sorted(found, key=lambda t: (LORA_LINEARS.index(t) if t in LORA_LINEARS else len(LORA_LINEARS), t)))
    return lora.read_adapter_config(files.adapter_config, targets, str(files.folder / "adapter_config.json"))


def _newline(files: _Files, assumed: list[str]) -> Literal["base", "grid"]:
    found = files.config.get("mm_newline_position")
    if found is None:
        assumed.append("mm_newline_position is not given; assuming one newline per video, the base's default")
        return "base"
    if found not in _NEWLINES:
        raise ValueError(f"{files.folder / 'config.json'}: mm_newline_position is {found!r}; known are {', '.join(_NEWLINES)}")
    return _NEWLINES[found]


def _vocabulary(files: _Files, given: int | None, processor: Any, base: Any, assumed: list[str]) -> int:
    """The length of the tokenizer that the patch was trained with: the released code cuts the head to it, whatever is stored."""
    if given is not None:
        return given
    stored = files.config.get("vocab_size")
    placeholders = {base.image_token_id, base.video_token_id}
    if processor is None:
        found = min({stored, *placeholders} - {None})
        assumed.append(f"the base's tokenizer was not read; assuming that {found} is its length without the placeholder tokens")
        return int(found)
    length = len(processor.tokenizer)
    while length - 1 in placeholders:
        length -= 1
    if stored not in (None, length):
        assumed.append(f"config.json says vocab_size {stored}, but the tokenizer has {length} tokens; assuming the latter")
    return length


def _encoder(width: int, tokens_per_step: int, rate: float | None, assumed: list[str]) -> EncoderConfig:
    """The authors' pre-extracted features as this library reads them."""
    if rate is None:
        assumed.append(
            "the rate of the side features is not given; steps are stamped 1 second apart, which index alignment ignores"
        )
    rate = 1.0 if rate is None else rate
    settings: dict[str, Any] = {"width": width, "tokens_per_step": tokens_per_step, "rate": rate}
    if tokens_per_step == 1:
        assumed.append(
            "one side token per step of stored features, three-dimensional ones flattened to K * M steps as the released code "
            "does with sound; give tokens_per_step where a step has several"
        )
        settings["flatten_tokens"] = True
    return EncoderConfig(name="features", settings=settings)


# --- the base and its names


def _load_base(base: str) -> tuple[Any, Any]:
    """The base and its processor: whole from a local folder, else the base's config alone, on the meta device."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    local = Path(base)
    if local.is_dir() and (local / "config.json").is_file() and is_reference_base(read_json_object(local / "config.json")):
        raise ValueError(
            f"{base} is a base in the lmms-lab layout; rewrite it first: pave import-base {base} --out FOLDER, then use --base FOLDER"
        )
    config = load_config(base)
    if config.model_type != "llava_onevision":
        raise ValueError(f"{base} is a {config.model_type}; the authors' patches are for llava_onevision bases")
    if local.is_dir():
        try:
            return (
                AutoModelForImageTextToText.from_pretrained(base, dtype="auto", trust_remote_code=False),
                AutoProcessor.from_pretrained(base, trust_remote_code=False),
            )
        except OSError as error:
            raise ValueError(f"{base}: {' '.join(str(error).split())[:200]}") from None
    config._name_or_path = base
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config), None


def _rename_adapter(files: _Files, model: Any, name: str) -> dict[str, Tensor]:
    """The adapter under transformers' names; every layer must have every target, and nothing else may be there."""
    decoder = next(path for path, module in model.named_modules() if module is model.get_decoder())
    own = lora.state_dict(model, name)
    theirs = {key.replace(f"base_model.model.{decoder}.", "base_model.model.model.", 1): key for key in own}
    lora.check_same_tensors(
        {key: own[ours] for key, ours in theirs.items()}, files.adapter, str(one_of(files.folder, *ADAPTER_FILES))
    )
    return {ours: files.adapter[key] for key, ours in theirs.items()}
