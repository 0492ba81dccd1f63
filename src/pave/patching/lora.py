"""LoRA through PEFT: the only file that imports it.

PEFT's layers are injected in place, so that the base keeps its class. Which rows of a batch a LoRA update acts on is a
property of the call (a row without its side channel is the base, bit for bit), so each injected layer's class is swapped
for a subclass that asks the current call.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from pave.config import LoraSettings
from pave.patching.call import current_call
from pave.utils.json_files import read_json_object


class _PerCall:
    """Mixin over a PEFT LoRA layer: the update acts with the weight that the current call gives to each row."""

    pave_default_weight: float
    _pave_base: type

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        call = current_call()
        weight = self.pave_default_weight if call is None else call.lora_weight
        if not isinstance(weight, Tensor) and weight == 0.0 and self.training and torch.is_grad_enabled():  # type: ignore[attr-defined]
            weight = torch.zeros(1, device=x.device)  # a gradient of zero rather than none, for DDP and FSDP
        if isinstance(weight, Tensor):
            return self._forward_rows(x, weight, *args, **kwargs)
        if weight == 0.0:
            return self.base_layer(x, *args, **kwargs)  # type: ignore[attr-defined]
        updated: Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
        if weight == 1.0:
            return updated
        base: Tensor = self.base_layer(x, *args, **kwargs)  # type: ignore[attr-defined]
        return base + weight * (updated - base)

    def _forward_rows(self, x: Tensor, weight_rows: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Rows with weight 0 take the base's output of the whole batch, so they equal the base bit for bit."""
        if len(weight_rows) > 1 and (x.ndim != 3 or x.shape[0] % len(weight_rows)):
            raise ValueError(
                f"a LoRA layer got an input of shape {tuple(x.shape)} for {len(weight_rows)} prompts; rows with and without "
                "side channels cannot share a batch on this base: pass them in separate batches"
            )
        weight = weight_rows.repeat_interleave(x.shape[0] // len(weight_rows)).to(x.device)
        weight = weight.view(-1, *[1] * (x.ndim - 1))
        base: Tensor = self.base_layer(x, *args, **kwargs)  # type: ignore[attr-defined]
        updated: Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
        blended = base + weight.to(base.dtype) * (updated - base)
        return torch.where(weight == 0, base, torch.where(weight == 1, updated, blended))

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = super().__reduce_ex__(protocol)
        return (_rebuild, (self._pave_base,), *state[2:])


def _rebuild(base: type) -> Any:
    cls: Any = _per_call_class(base)
    return cls.__new__(cls)


@functools.cache
def _per_call_class(base: Any) -> type:
    return type(base.__name__, (_PerCall, base), {"__module__": base.__module__, "__doc__": base.__doc__, "_pave_base": base})


def _layers(model: nn.Module, name: str) -> dict[str, Any]:
    return {path: m for path, m in model.named_modules() if isinstance(m, LoraLayer) and name in m.lora_A}


def target_regex(model: Any, settings: LoraSettings) -> str:
    """A pattern for the chosen linear layers of the language model's decoder, and nothing else.

    Raises:
        ValueError: if a target names no linear layer of the decoder, with the ones there are, or one whose weights are offloaded
            or, with DoRA, quantised by bitsandbytes.
    """
    decoder = model.get_decoder()
    prefix = next(path for path, module in model.named_modules() if module is decoder)
    found = {path.rsplit(".", 1)[-1] for path, m in decoder.named_modules() if isinstance(m, nn.Linear)}
    unknown = sorted(set(settings.targets) - found)
    if unknown:
        raise ValueError(f"lora.targets: the language model has no linear layer named {unknown}; it has {sorted(found)}")
    chosen = [m for path, m in decoder.named_modules() if path.rsplit(".", 1)[-1] in settings.targets]
    offloaded = sum(hasattr(m, "_hf_hook") and next(m.parameters()).device.type == "meta" for m in chosen)
    if offloaded:
        raise ValueError(
            f"lora: {offloaded} of {len(chosen)} target layers are offloaded by the base's device_map; keep the language model on "
            "a device and offload other parts, or use a patch without LoRA"
        )
    packed = [m for m in chosen if type(getattr(m, "weight", None)).__name__ in ("Params4bit", "Int8Params")]
    if settings.use_dora and packed:
        raise ValueError(
            f"lora.use_dora: {len(packed)} of {len(chosen)} target layers are quantised by bitsandbytes, whose weights do not come out "
            "the same before and after their first use, and DoRA measures them; use use_dora: false or another quantisation"
        )
    return re.escape(prefix) + r"\.(?:.*\.)?(" + "|".join(re.escape(t) for t in settings.targets) + ")"


def inject(model: Any, name: str, settings: LoraSettings, default_weight: float) -> None:
    """Put LoRA layers for patch ``name`` into the language model, in float32, in place.

    Args:
        default_weight: weight of the update outside any call of the patched model (someone runs an inner module directly).
    """
    config = peft.LoraConfig(
        **adapter_settings(settings),
        lora_dropout=settings.dropout,
        init_lora_weights="gaussian" if settings.init == "gaussian" else True,
        target_modules=target_regex(model, settings),
        task_type="CAUSAL_LM",
    )
    modules = _without_type(model)
    peft.inject_adapter_in_model(config, modules, adapter_name=name)
    model.peft_config = modules.peft_config
    for layer in _layers(model, name).values():
        layer.__class__ = _per_call_class(layer.__class__)
        layer.pave_default_weight = default_weight
        layer.lora_dropout.train(model.training)  # PEFT's starts in training mode, also inside a model in eval mode
        for parameter in _own_parameters(layer, name):
            parameter.data = parameter.data.float()
        if settings.use_dora:
            _start_magnitude(layer, name)


def _start_magnitude(layer: Any, name: str) -> None:
    """Set DoRA's lengths to those that its forward divides by, computed in the same way, so that a fresh patch is the base bit for
    bit. PEFT's own are rounded to the base's dtype."""
    magnitude = layer.lora_magnitude_vector[name]
    weight = dequantize_module_weight(layer.get_base_layer()).float()
    update = magnitude.get_lora_weight(lora_A=layer.lora_A[name], lora_B=layer.lora_B[name])
    with torch.no_grad():
        magnitude.weight.copy_(magnitude.get_weight_norm(weight, update, layer.scaling[name]))


def _without_type(model: Any) -> Any:
    """The same modules and attributes as a plain module whose config has no ``model_type``.

    PEFT rewrites the targets of models that it knows by type as mixtures of experts, for the sake of old checkpoints:
    to bare names, which match in every tower, and to packed experts. Here a target is a linear layer of the language model and nothing else.
    """
    plain: Any = nn.Module()
    quantization = getattr(model.config, "quantization_config", None)
    config = SimpleNamespace(to_dict=dict, **({} if quantization is None else {"quantization_config": quantization}))
    plain.__dict__.update({**model.__dict__, "config": config})
    return plain


def _own_parameters(layer: Any, name: str) -> list[nn.Parameter]:
    return [p for path, p in layer.named_parameters() if f".{name}." in f".{path}." and not path.startswith("base_layer.")]


def parameters(model: nn.Module, name: str) -> list[nn.Parameter]:
    """The trainable LoRA parameters of patch ``name``."""
    return [p for layer in _layers(model, name).values() for p in _own_parameters(layer, name)]


def remove(model: Any, name: str) -> None:
    """Take the LoRA layers out again; the base's own linear layers come back as the very same modules."""
    for path, layer in _layers(model, name).items():
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer.base_layer)
    if hasattr(model, "peft_config"):
        del model.peft_config


def save_config(model: Any, name: str, folder: str, base_id: str | None) -> None:
    """Write PEFT's ``adapter_config.json`` of patch ``name``."""
    config = copy.deepcopy(model.peft_config[name])
    config.base_model_name_or_path = base_id
    config.inference_mode = True
    config.save_pretrained(folder)


# Keys of an adapter_config.json that a plain low-rank update has no use for, whatever they say.
_ADAPTER_NOTES = (
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "megatron_core",
    "peft_type",
    "peft_version",
    "revision",
    "task_type",
)
_ADAPTER_READ = ("r", "lora_alpha", "lora_dropout", "target_modules")


def read_adapter_config(values: Mapping[str, Any], targets: tuple[str, ...], where: str) -> LoraSettings:
    """The settings in PEFT's ``adapter_config.json``, if they are those of a plain low-rank update of linear layers.

    Args:
        values: the file's content.
        targets: names of the linear layers that the adapter's tensors are for.
        where: what to name in an error.

    Raises:
        ValueError: naming a key that is missing, or whose value asks for anything else (another scaling, biases, DoRA, ...).
    """
    if values.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"{where}: peft_type is {values['peft_type']!r}; only LORA adapters can be read")
    for key in _ADAPTER_READ:
        if values.get(key) is None:
            raise ValueError(f"{where}: {key} is missing")
    defaults = {f.name: f.default_factory() if f.default is MISSING and callable(f.default_factory) else f.default
                for f in fields(peft.LoraConfig)}  # fmt: skip
    for key, value in values.items():
        if key in (*_ADAPTER_NOTES, *_ADAPTER_READ) or not value or value == defaults.get(key):
            continue
        if key == "init_lora_weights" and value == "gaussian":
            continue
        raise ValueError(f"{where}: {key} is {value!r}; only plain low-rank updates can be read")
    named = values["target_modules"]
    if not isinstance(named, str):
        absent = sorted({str(module).rsplit(".", 1)[-1] for module in named} - set(targets))
        if absent:
            raise ValueError(f"{where}: target_modules names {', '.join(absent)}, but the adapter holds no tensor for it")
    return LoraSettings(
        rank=values["r"], alpha=float(values["lora_alpha"]), dropout=float(values["lora_dropout"]), targets=targets
    )


def check_config(folder: Path, settings: LoraSettings) -> None:
    """Refuse a folder whose ``adapter_config.json`` would make PEFT compute another update than ``settings`` do.

    Raises:
        ValueError: naming the file and what it says.
    """
    path = folder / peft.utils.CONFIG_NAME
    if not path.is_file():
        raise ValueError(f"{path} is missing; the patch is incomplete")
    ours = adapter_settings(settings)
    values = read_json_object(path)
    try:
        found = {
            key: values[key] if key in ("r", "lora_alpha") else values.get(key) or type(value)() for key, value in ours.items()
        }
    except (TypeError, KeyError, AttributeError):
        raise ValueError(f"{path} is no config of a LoRA adapter; copy or download it again") from None
    for key, value in ours.items():
        if found[key] != value:
            raise ValueError(
                f"{path}: {key} is {found[key]!r}, but the patch was made with {value!r}; the files belong to two patches"
            )


def adapter_settings(settings: LoraSettings) -> dict[str, Any]:
    """What PEFT's ``adapter_config.json`` says of the update that ``settings`` describe, by PEFT's names."""
    return {
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "rank_pattern": dict(settings.ranks),
        "alpha_pattern": dict(settings.alphas),
        "use_rslora": settings.use_rslora,
        "use_dora": settings.use_dora,
    }


def module_of(key: str) -> str:
    """The base's own name of the linear layer that an adapter tensor is for.

    Raises:
        ValueError: if the tensor is no part of a LoRA update.
    """
    found = re.fullmatch(r"base_model\.model\.(.+)\.lora_(?:[AB]\.weight|magnitude_vector)", key)
    if found is None:
        raise ValueError(f"{key} is no tensor of a LoRA update")
    return found[1]


def check_ranks(tensors: Mapping[str, Tensor], settings: LoraSettings, where: str) -> None:
    """Refuse first factors of other ranks than ``settings`` name, and kinds without any; ``where`` is named."""
    absent = set(settings.targets)
    for key, value in tensors.items():
        if not key.endswith(".lora_A.weight"):
            continue
        kind = key.removesuffix(".lora_A.weight").rsplit(".", 1)[-1]
        absent.discard(kind)
        rank = settings.rank_of(kind)
        if value.shape[:1] != (rank,):
            raise ValueError(f"{where}: {key} has shape {tuple(value.shape)}, patch_config.json says rank {rank}")
    if absent:
        raise ValueError(f"{where}: no tensor is for {sorted(absent)[0]}, which patch_config.json names in lora.targets")


def state_dict(model: Any, name: str) -> dict[str, Tensor]:
    """The LoRA tensors under PEFT's on-disk names (``base_model.model.….lora_A.weight``)."""
    own = peft.get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    return {f"base_model.model.{key}": value for key, value in own.items()}


def load_state_dict(model: Any, name: str, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load tensors under PEFT's on-disk names, strictly.

    Raises:
        ValueError: naming a missing, unexpected or wrongly shaped tensor, and ``where``.
    """
    own = state_dict(model, name)
    check_same_tensors(own, tensors, where)
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(like(value, tensors[key]))


def like(own: Tensor, given: Tensor) -> Tensor:
    """A whole tensor cut as ``own`` is, where FSDP2 shards that; every process must call it with the whole one."""
    sharded: Any = own
    if not hasattr(sharded, "full_tensor"):
        return given
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(given.to(own.device), sharded.device_mesh, sharded.placements)


def check_same_tensors(own: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str) -> None:
    """Both hold the same names and shapes, or one ValueError names the first difference and counts the rest."""
    missing, unexpected = sorted(set(own) - set(given)), sorted(set(given) - set(own))
    if missing:
        raise ValueError(f"{where}: {len(missing)} tensor(s) missing, the first is {missing[0]}")
    if unexpected:
        raise ValueError(f"{where}: {len(unexpected)} unexpected tensor(s), the first is {unexpected[0]}")
    for key, value in own.items():
        if value.shape != given[key].shape:
            raise ValueError(
                f"{where}: {key} has shape {tuple(given[key].shape)}, this base and config need {tuple(value.shape)}"
            )
