"""LoRA through PEFT: the only file that imports it.

Every patch is an adapter of PEFT's that is never *active*: PEFT's own layer computes the base, with whatever adapters its user
switched on, and ``RowLora`` adds each patch's update to the rows that the current call gives it. So a row without a patch is the
base bit for bit, work is done only on the rows that use it, and nobody's ``requires_grad`` or active adapter changes.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import re
import warnings
from collections.abc import Iterator, Mapping
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
from pave.patching.rows import current_rows
from pave.utils.json_files import read_json_object

PREFIX = "pave_"
"""Of the names of patches' adapters. Without it ``get_peft_model`` would overwrite a patch called "default"."""


def adapter_name(patch: str) -> str:
    """PEFT's name for a patch's adapter."""
    return PREFIX + patch


class RowLora:
    """Mixed into a LoRA layer of PEFT's: what that computes, and each patch's update on its rows.

    Outside any call of the patched model (someone runs an inner module directly) no patch acts.
    """

    pave_patches: tuple[str, ...]
    _pave_base: type

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
        rows = current_rows()
        if rows is None:
            if torch.is_grad_enabled() and torch._C._current_graph_task_id() != -1:
                raise RuntimeError(
                    "a LoRA layer is computed again in backward outside of its call, so its rows are not known: switch on activation "
                    "checkpointing by model.gradient_checkpointing_enable(), or wrap the other one's checkpoint_fn in "
                    "pave.patching.InSameRows"
                )
            return out
        for patch in self.pave_patches:
            index, weight = rows.of(patch, x)
            if index is None or len(index) or self._learns(patch):
                out = self._updated(adapter_name(patch), out, x, index, weight)
        return out

    def _learns(self, patch: str) -> bool:
        """Then it runs on no rows as well: DDP and FSDP wait for a gradient of zero rather than none."""
        me: Any = self
        return me.training and torch.is_grad_enabled() and me.lora_A[adapter_name(patch)].weight.requires_grad

    def _updated(self, name: str, out: Tensor, x: Tensor, index: Tensor | None, weight: float | Tensor) -> Tensor:
        me: Any = self
        before = out if index is None else out.index_select(0, index)
        x = me._cast_input_dtype(x if index is None else x.index_select(0, index), me.lora_A[name].weight.dtype)
        if name in me.lora_variant:  # DoRA
            after = me.lora_variant[name].forward(me, active_adapter=name, x=x, result=before)
        else:
            after = before + me.lora_B[name](me.lora_A[name](me.lora_dropout[name](x))) * me.scaling[name]
        if isinstance(weight, Tensor):
            after = before + weight.view(-1, *[1] * (x.ndim - 1)).to(after.dtype) * (after - before)
        elif weight != 1.0:
            after = before + weight * (after - before)
        after = after.to(out.dtype)
        return after if index is None else out.index_copy(0, index, after)

    # PEFT freezes all adapters but the active ones, and merging would drop the patches

    def set_adapter(self, *args: Any, **kwargs: Any) -> None:
        with self._flags_kept():
            super().set_adapter(*args, **kwargs)  # type: ignore[misc]

    def enable_adapters(self, enabled: bool) -> None:
        with self._flags_kept():
            super().enable_adapters(enabled)  # type: ignore[misc]

    def delete_adapter(self, adapter_name: str) -> None:
        me: Any = self
        me._active_adapter = [name for name in me.active_adapters if name != adapter_name]  # else PEFT makes some patch active
        super().delete_adapter(adapter_name)  # type: ignore[misc]

    @contextlib.contextmanager
    def _flags_kept(self) -> Iterator[None]:
        flags = [(p, p.requires_grad) for patch in self.pave_patches for p in _own_parameters(self, adapter_name(patch))]
        yield
        for parameter, flag in flags:
            parameter.requires_grad_(flag)

    def unload_and_optionally_merge_module(self, *args: Any, **kwargs: Any) -> nn.Module:
        raise ValueError(
            f"this layer carries LoRA of the patches {', '.join(self.pave_patches)}, which would be lost: detach them before merging or "
            "unloading adapters"
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = super().__reduce_ex__(protocol)
        return (_rebuild, (self._pave_base,), *state[2:])


def _rebuild(base: type) -> Any:
    cls: Any = _row_class(base)
    return cls.__new__(cls)


@functools.cache
def _row_class(base: Any) -> type:
    return type(base.__name__, (RowLora, base), {"__module__": base.__module__, "__doc__": base.__doc__, "_pave_base": base})


def _layers(model: nn.Module, name: str) -> dict[str, Any]:
    adapter = adapter_name(name)
    return {path: m for path, m in model.named_modules() if isinstance(m, LoraLayer) and adapter in m.lora_A}


def check_model(model: nn.Module) -> None:
    """Refuse PEFT's wrapper, whose own forward would go past a patch."""
    if isinstance(model, peft.PeftModel):
        raise ValueError(
            "attach patches to the model inside, peft_model.get_base_model(), and go on calling the PeftModel: its adapters keep acting"
        )


def target_regex(model: Any, settings: LoraSettings) -> str:
    """A pattern for the chosen linear layers of the language model's decoder, and nothing else.

    Raises:
        ValueError: if a target names no linear layer of the decoder, with the ones there are, or one whose weights are offloaded
            or, with DoRA, quantised by bitsandbytes.
    """
    decoder = model.get_decoder()
    prefix = next(path for path, module in model.named_modules() if module is decoder)
    found = set(_linears(decoder))
    unknown = sorted(set(settings.targets) - found)
    if unknown:
        raise ValueError(f"lora.targets: the language model has no linear layer named {unknown}; it has {sorted(found)}")
    chosen: list[Any] = [m for kind, layers in _linears(decoder).items() if kind in settings.targets for m in layers]
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


def _linears(decoder: nn.Module) -> dict[str, list[nn.Module]]:
    """The linear layers of the language model by kind, those inside a LoRA layer as the one that they were."""
    out: dict[str, list[nn.Module]] = {}
    inside: set[int] = set()
    for path, module in decoder.named_modules():
        if isinstance(module, LoraLayer):
            inside |= {id(part) for part in nn.Module.modules(module)}  # type: ignore[arg-type]
            linear: Any = module.get_base_layer()
        else:
            linear = None if id(module) in inside else module
        if isinstance(linear, nn.Linear):
            out.setdefault(path.rsplit(".", 1)[-1], []).append(linear)
    return out


def inject(model: Any, name: str, settings: LoraSettings) -> None:
    """Put LoRA layers for patch ``name`` into the language model, in float32, in place. Other adapters stay as they are."""
    config = peft.LoraConfig(
        **adapter_settings(settings),
        lora_dropout=settings.dropout,
        init_lora_weights="gaussian" if settings.init == "gaussian" else True,
        target_modules=target_regex(model, settings),
        task_type="CAUSAL_LM",
    )
    active = {id(m): list(m.active_adapters) for m in model.modules() if isinstance(m, LoraLayer)}
    flags = {id(p): p.requires_grad for p in model.parameters()}
    modules = _without_type(model)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are what is wanted
            peft.inject_adapter_in_model(config, modules, adapter_name=adapter_name(name))
    finally:  # PEFT makes a new adapter the only active one, and freezes the others
        for layer in (m for m in model.modules() if isinstance(m, LoraLayer)):
            layer._active_adapter = active.get(id(layer), [])
        for parameter in model.parameters():
            parameter.requires_grad_(flags.get(id(parameter), True))
        if hasattr(modules, "peft_config"):
            model.peft_config = modules.peft_config
    for layer in _layers(model, name).values():
        if not isinstance(layer, RowLora):
            kind: Any = type(layer)
            layer.__class__ = _row_class(kind)
            layer.pave_patches = ()
        layer.pave_patches = (*layer.pave_patches, name)
        layer.lora_dropout.train(model.training)  # PEFT's starts in training mode, also inside a model in eval mode
        for parameter in _own_parameters(layer, adapter_name(name)):
            parameter.data = parameter.data.float()
        if settings.use_dora:
            _start_magnitude(layer, adapter_name(name))


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


def _own_parameters(layer: Any, adapter: str) -> list[nn.Parameter]:
    return [p for path, p in layer.named_parameters() if f".{adapter}." in f".{path}." and not path.startswith("base_layer.")]


def parameters(model: nn.Module, name: str) -> list[nn.Parameter]:
    """The trainable LoRA parameters of patch ``name``."""
    return [p for layer in _layers(model, name).values() for p in _own_parameters(layer, adapter_name(name))]


def remove(model: Any, name: str) -> None:
    """Take a patch's LoRA out again. Where no adapter is left, the base's own linear layer comes back as the very same module."""
    for path, layer in _layers(model, name).items():
        layer.delete_adapter(adapter_name(name))
        if isinstance(layer, RowLora):
            layer.pave_patches = tuple(other for other in layer.pave_patches if other != name)
            if not layer.pave_patches:
                layer.__class__ = type(layer)._pave_base
                del layer.pave_patches
        if not layer.lora_A:
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, layer.base_layer)
    if hasattr(model, "peft_config"):
        model.peft_config.pop(adapter_name(name), None)
        if not model.peft_config:
            del model.peft_config


def save_config(model: Any, name: str, folder: str, base_id: str | None) -> None:
    """Write PEFT's ``adapter_config.json`` of patch ``name``."""
    config = copy.deepcopy(model.peft_config[adapter_name(name)])
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
    own = peft.get_peft_model_state_dict(model, adapter_name=adapter_name(name), save_embedding_layers=False)
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
