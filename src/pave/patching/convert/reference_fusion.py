"""The fusion module of the authors' released code (arXiv 2503.19794): their names, their constructor arguments, their weights."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pave.config import FusionConfig
from pave.fusion import TemporalAlignedCrossAttention, build_fusion
from pave.tokens import SideTokens, VideoTokens

logger = logging.getLogger(__name__)

# Where the rate of the authors' optional dropout is not given; it has no effect in eval mode.
ASSUMED_DROPOUT = 0.1

_PREFIX = "temporal_aggregator."

# The module's own names as regular expressions, and the authors' names for the same tensors.
_NAMES = (
    (r"side_embed\.(weight|bias)", r"input_mapping.\1"),
    (r"query_embed\.(weight|bias)", r"query_input_mapping.\1"),
    (r"query_table", r"learnable_query"),
    (r"layers\.(\d+)\.query\.(weight|bias)", r"cross_attn_layers.\1.attn.q_linear.\2"),
    (r"layers\.(\d+)\.key\.(weight|bias)", r"cross_attn_layers.\1.attn.k_linear.\2"),
    (r"layers\.(\d+)\.ffn\.(\d+)\.(weight|bias)", r"cross_attn_layers.\1.ffn.\2.\3"),
    (r"output_mlp\.(\d+)\.(weight|bias)", r"output_mapping.\1.\2"),
    (r"output_norm\.(weight|bias)", r"output_norm.\1"),
)

_SIZES = ("input_dim", "output_dim", "embed_dim", "query_input_dim", "cross_attn_hidden_dim")
_COUNTS = ("num_cross_attn_head", "num_cross_attn_layer", "chunks_number", "number_of_query")
_SWITCHES = (
    "use_3d_rope",
    "use_output_mlp",
    "use_dropout",
    "use_output_norm",
    "train_addition_start_end_tokens",
    "use_slow_feat_before_mlp",
)
_RATE, _DEPTH = "dropout_rate", "mlp_depth"
_ONLY_DEPTH = 2
_ASSUMPTIONS: dict[str, Any] = {"num_cross_attn_head": 4, "use_3d_rope": False}
_KNOWN = (*_SIZES, *_COUNTS, *_SWITCHES, _RATE, _DEPTH, "fast_input_mapping_type", "query_type")


class ReferenceFusion(nn.Module):
    """A fusion module under the calling convention of the authors' code.

    Args:
        fusion: the module, with index alignment and shared key and value projections.
    """

    def __init__(self, fusion: TemporalAlignedCrossAttention) -> None:
        super().__init__()
        self.fusion = fusion

    def forward(
        self,
        side_features_BKhwC: Tensor,
        lengths_B: Tensor | Sequence[int],
        queries_BTSC: Tensor | None,
        num_frames: int,
    ) -> Tensor:
        """The residual (B, T * S, E).

        Args:
            side_features_BKhwC: side features on a grid of h x w per step, videos of fewer steps padded.
            lengths_B: the true number of steps of each video; 0 means that the channel is missing.
            queries_BTSC: features of the query source. Not read, and may be None, where queries are learnable.
            num_frames: T.

        Raises:
            ValueError: if shapes or counts do not agree.
        """
        if side_features_BKhwC.ndim != 5:
            raise ValueError(
                f"side features must have shape (videos, steps, rows, columns, width), got {tuple(side_features_BKhwC.shape)}"
            )
        B, K, h, w, _ = side_features_BKhwC.shape
        lengths = torch.as_tensor(lengths_B, device=side_features_BKhwC.device)
        if lengths.shape != (B,) or bool(((lengths < 0) | (lengths > K)).any()):
            raise ValueError(f"lengths must be {B} numbers of steps from 0 to {K}, got {lengths.tolist()}")
        T = int(num_frames)
        table = self.fusion.query_table
        if table is None and (queries_BTSC is None or queries_BTSC.ndim != 4 or queries_BTSC.shape[:2] != (B, T)):
            got = "none" if queries_BTSC is None else tuple(queries_BTSC.shape)
            raise ValueError(f"queries must have shape ({B} videos, {T} frames, tokens per frame, width), got {got}")
        S = table.shape[1] if table is not None else queries_BTSC.shape[2]  # type: ignore[union-attr]
        shape_only_BTSE = side_features_BKhwC.new_zeros(B, T, S, 0)
        video = VideoTokens(shape_only_BTSE, pre_projector_BTSC=queries_BTSC if table is None else None)
        valid_BK = torch.arange(K, device=lengths.device) < lengths[:, None]
        side = SideTokens(side_features_BKhwC.flatten(2, 3), valid_BK)
        return self.fusion(video, side, side_grid=(h, w)).flatten(1, 2)


@dataclass(frozen=True)
class ReadFusion:
    """A fusion module as read from the authors' weights, and what was decided on the way."""

    config: FusionConfig
    """Of the module."""
    side_width: int
    """C of the side features."""
    query_width: int | None
    """Width of the query source; None where queries are learnable."""
    llm_width: int
    """E."""
    module: TemporalAlignedCrossAttention
    """In float32."""
    assumed: tuple[str, ...]
    """What neither the config nor the weights tell, and was assumed."""
    dropped: tuple[str, ...]
    """Tensors that the released code never reads."""


def fusion_from_reference(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> ReferenceFusion:
    """Build the authors' released fusion module from their constructor arguments and weights, float32, in eval mode.

    Sizes that the config leaves out are read off the weights (their checkpoints do not record them); a head count that is
    left out is assumed to be 4 and rope to be off, both logged. ``v_linear`` weights are dropped: every checkpoint has
    them, but the released code makes values with ``k_linear``. Dropped as well: ``start_end_tokens``, which this path
    does not use, and ``query_input_mapping`` where queries are learnable. ``use_slow_feat_before_mlp`` says where the
    caller takes the queries from, which changes nothing here.

    Args:
        config: constructor arguments by the authors' names.
        state_dict: weights by their names, plain or under one prefix that ends in ``temporal_aggregator.``; 16-bit
            weights become float32.

    Raises:
        ValueError: on a config key or value that is not known, and on a tensor that is missing, not known, or of a shape
            that the config does not ask for; the message names it.
    """
    read = read_fusion(config, state_dict)
    for sentence in read.assumed:
        logger.warning("reference config: %s", sentence)
    if read.dropped:
        logger.info("reference weights: dropped %s, which the released code never reads", ", ".join(read.dropped))
    return ReferenceFusion(read.module).eval()


def read_fusion(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> ReadFusion:
    """What ``fusion_from_reference`` reads, with everything that it assumed and dropped.

    Args and Raises: see there.
    """
    weights = _plain_names(state_dict)
    fusion_config, widths = _read_config(config, weights)
    with torch.device("meta"):
        fusion = build_fusion(fusion_config, **widths)
    assert isinstance(fusion, TemporalAlignedCrossAttention)

    renamed: dict[str, Tensor] = {}
    expected: dict[str, torch.Size] = {}
    for name, tensor in fusion.state_dict().items():
        theirs = reference_name(name)
        expected[theirs] = tensor.shape
        if theirs in weights:
            renamed[name] = _query_table(weights[theirs], tensor.shape) if name == "query_table" else weights[theirs]
    start_end_tokens = bool(_get(config, "train_addition_start_end_tokens", False))
    unused = _unused_shapes(expected, weights, fusion_config, fusion.llm_width if start_end_tokens else None)
    _check_names(set(weights), set(expected), set(unused))
    found = {**{name: weights[name].shape for name in unused}, **{reference_name(n): t.shape for n, t in renamed.items()}}
    for name, shape in (expected | unused).items():
        if found[name] != shape:
            raise ValueError(
                f"reference weights: {name} has shape {tuple(found[name])}, but the config asks for {tuple(shape)}"
            )
    fusion.load_state_dict({name: tensor.float().clone() for name, tensor in renamed.items()}, assign=True)
    return ReadFusion(
        config=fusion_config,
        side_width=widths["side_width"],
        query_width=widths["pre_projector_width"],
        llm_width=widths["llm_width"],
        module=fusion,
        assumed=tuple(
            f"{key} is not given; assuming {assumed}" for key, assumed in _ASSUMPTIONS.items() if config.get(key) is None
        ),
        dropped=tuple(sorted(unused)),
    )


def _plain_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut the prefix that ends in ``temporal_aggregator.`` off all names, if they have one."""
    prefixes = {name[: name.index(_PREFIX) + len(_PREFIX)] if _PREFIX in name else "" for name in state_dict}
    if len(prefixes) > 1:
        shown = ", ".join(repr(prefix) for prefix in sorted(prefixes))
        raise ValueError(
            f"reference weights: names are under several prefixes ({shown}); pass one fusion module's tensors only"
        )
    prefix = prefixes.pop() if prefixes else ""
    return {name[len(prefix) :]: tensor for name, tensor in state_dict.items()}


def reference_name(name: str) -> str:
    """The authors' name, without prefix, of a tensor of our module."""
    for ours, theirs in _NAMES:
        if re.fullmatch(ours, name):
            return re.sub(ours, theirs, name)
    raise AssertionError(f"no reference name for {name}")


def _get(config: Mapping[str, Any], key: str, default: Any) -> Any:
    value = config.get(key)
    return default if value is None else value


def _read_config(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> tuple[FusionConfig, dict[str, Any]]:
    """The fusion config, and the widths that ``build_fusion`` wants besides."""
    _check_config(config)

    def size(key: str, *places: tuple[str, int]) -> int:
        if config.get(key) is not None:
            return int(config[key])
        for name, axis in places:
            if name in weights and weights[name].ndim > axis:
                return weights[name].shape[axis]
        if places and not any(name in weights for name, _ in places):
            raise ValueError(f"reference weights: missing {places[0][0]}, which would tell {key}")
        raise ValueError(f"reference config: {key} is missing, and the weights do not tell it")

    learnable = config.get("query_type") == "learnable"
    width = size("cross_attn_hidden_dim", ("cross_attn_layers.0.attn.q_linear.weight", 0))
    table = "learnable_query"
    fusion_config = FusionConfig(
        alignment="index",
        query_source="learnable" if learnable else "pre_projector",
        num_layers=_get(config, "num_cross_attn_layer", _count_layers(weights)),
        num_heads=_get(config, "num_cross_attn_head", _ASSUMPTIONS["num_cross_attn_head"]),
        width=width,
        embed_width=size("embed_dim", ("input_mapping.weight", 0)),
        share_key_value_projection=True,
        rope=_get(config, "use_3d_rope", _ASSUMPTIONS["use_3d_rope"]),
        dropout=float(_get(config, _RATE, ASSUMED_DROPOUT)) if _get(config, "use_dropout", False) else 0.0,
        output_mlp=_get(config, "use_output_mlp", any(name.startswith("output_mapping.") for name in weights)),
        output_norm=_get(config, "use_output_norm", any(name.startswith("output_norm.") for name in weights)),
        num_frames=size("chunks_number", (table, 0)) if learnable else None,
        tokens_per_frame=size("number_of_query", (table, 1)) if learnable else None,
    )
    bare = not fusion_config.output_mlp and not fusion_config.output_norm
    if bare and config.get("output_dim") not in (None, width):
        logger.warning("reference config: output_dim is not read without output MLP and norm; the output is %d wide", width)
    widths: dict[str, Any] = {
        "side_width": size("input_dim", ("input_mapping.weight", 1)),
        "llm_width": width if bare else size("output_dim", ("output_norm.weight", 0), ("output_mapping.2.weight", 0)),
        "pre_projector_width": None if learnable else size("query_input_dim", ("query_input_mapping.weight", 1)),
    }
    return fusion_config, widths


def _check_config(config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        if key not in _KNOWN:
            raise ValueError(f"reference config: unknown key {key!r}; known keys: {', '.join(_KNOWN)}")
        if value is None:
            continue
        if key in _SWITCHES and not isinstance(value, bool):
            raise ValueError(f"reference config: {key} must be true or false, got {value!r}")
        if key in (*_SIZES, *_COUNTS) and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"reference config: {key} must be a whole number of at least 1, got {value!r}")
    rate, depth = config.get(_RATE), config.get(_DEPTH)
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1):
        raise ValueError(f"reference config: {_RATE} must be a number from 0 to below 1, got {rate!r}")
    if depth is not None and (isinstance(depth, bool) or depth != _ONLY_DEPTH):
        raise ValueError(
            f"reference config: {_DEPTH} must be {_ONLY_DEPTH}, got {depth!r}; with any other the released code builds an output MLP whose "
            "layers do not fit each other"
        )
    mapping = config.get("fast_input_mapping_type")
    if mapping not in (None, "linear"):
        raise ValueError(f"reference config: fast_input_mapping_type must be 'linear', got {mapping!r}; no other is supported")


def _count_layers(weights: Mapping[str, Tensor]) -> int:
    numbers = [int(m[1]) for m in (re.match(r"cross_attn_layers\.(\d+)\.", name) for name in weights) if m]
    return max(numbers, default=0) + 1


def _query_table(tensor: Tensor, shape: torch.Size) -> Tensor:
    """A table stored flat (T * S, D), or with a leading 1, in the shape (T, S, D)."""
    T, S, D = shape
    stored = ((T * S, D), (1, T * S, D), (1, T, S, D))
    return tensor.reshape(shape) if tuple(tensor.shape) in stored else tensor


def _unused_shapes(
    expected: Mapping[str, torch.Size], weights: Mapping[str, Tensor], config: FusionConfig, start_end_width: int | None
) -> dict[str, torch.Size]:
    """Names and shapes of the tensors that belong to a checkpoint but are not read."""
    unused: dict[str, torch.Size] = {}
    if any(".v_linear." in name for name in weights):  # all of them or, where somebody has left them out, none
        unused |= {name.replace("k_linear", "v_linear"): shape for name, shape in expected.items() if "k_linear" in name}
    if start_end_width is not None:
        unused["start_end_tokens"] = torch.Size((4, start_end_width))
    if config.query_source == "learnable":
        unused |= {name: weights[name].shape for name in weights if name.startswith("query_input_mapping.")}
    return unused


def _check_names(found: set[str], expected: set[str], unused: set[str]) -> None:
    missing, unknown = (expected | unused) - found, found - expected - unused
    if missing:
        raise ValueError(f"reference weights: missing {', '.join(sorted(missing))}")
    if unknown:
        raise ValueError(f"reference weights: unknown {', '.join(sorted(unknown))}; the config does not ask for it")
