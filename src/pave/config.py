"""What a patch is, as data: frozen dataclasses that turn into JSON and back, strictly.

``PatchConfig`` alone (with the base's own config) rebuilds every module of a patch. A field is documented once, right
under it; the command line and the docs print that text.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import json
import math
import textwrap
import typing
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema

if TYPE_CHECKING:
    from typing_extensions import Self

_T = TypeVar("_T")


class Strict:
    """Unknown keys are refused when a config is read from a dictionary."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    OTHER_NAMES: ClassVar[dict[str, str]] = {}
    """What other libraries call a field, to name the right one."""

    def __new__(cls, *args: Any, **given: Any) -> Self:
        known = getattr(cls, "__dataclass_fields__", {})
        for key in given:
            if known and key not in known:
                near = nearest_field(cls, key)
                hint = f"did you mean {near!r}?" if near else f"known: {', '.join(known)}"
                raise TypeError(f"{cls.__name__} has no setting {key!r}; {hint}")
        return super().__new__(cls)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and scalars, ready for JSON or YAML."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_dict(cls: type[_T], values: dict[str, Any], where: str = "") -> _T:
        """Read what ``to_dict`` wrote.

        Args:
            values: the dictionary.
            where: what to name in an error (a file, an option).

        Raises:
            ValueError: naming the key, what was found, and the nearest known key if there is one.
        """
        return read_strict(cls, values, where or cls.__name__)


class NullIsEmpty:
    """Annotation of a field that is a mapping or a list: null stands for an empty one."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        empty = typing.get_origin(source)
        return core_schema.no_info_after_validator_function(
            lambda value: empty() if value is None else value, core_schema.nullable_schema(handler(source))
        )


def nearest_field(cls: Any, key: str) -> str | None:
    """The field of a config class that somebody who writes ``key`` may mean."""
    other = getattr(cls, "OTHER_NAMES", {}).get(key)
    near = difflib.get_close_matches(key, [f.name for f in dataclasses.fields(cls)], n=1)
    return other or (near[0] if near else None)


@cache
def _reader(cls: type[Any]) -> TypeAdapter[Any]:
    """Making one takes far longer than reading a value with it."""
    return TypeAdapter(cls)


def read_strict(cls: type[_T], values: Any, where: str) -> _T:
    """Build dataclass ``cls`` from plain values; unknown keys, wrong types and wrong values raise one ValueError.

    No value is taken for one of another type: not true for 1, not "8" for 8, not 8.5 for 8. A whole number may stand for a float.
    """
    try:
        # as JSON, which is where strictness allows lists for tuples and mappings for dataclasses
        return _reader(cls).validate_json(_as_json(values, where), strict=True)  # type: ignore[arg-type, no-any-return]
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            parent = _class_at(cls, first["loc"][:-1])
            known = [f.name for f in dataclasses.fields(parent)] if parent else []  # type: ignore[arg-type]
            near = nearest_field(parent, str(first["loc"][-1])) if parent else None
            nearest = ".".join([*(str(part) for part in first["loc"][:-1]), near or ""])
            hint = f"; did you mean {nearest!r}?" if near else f"; known keys: {', '.join(known)}" if known else ""
            message = f"unknown key {path!r}{hint}"
        else:
            text = first["msg"].removeprefix("Value error, ")
            got = first.get("input")
            shown = "" if isinstance(got, dict) or first["type"] in ("value_error", "missing") else f", got {got!r}"
            message = f"{path + ': ' if path else ''}{text}{shown}"
        raise ValueError(f"{where}: {message}") from None


def _as_json(values: Any, where: str) -> str:
    def refuse(value: Any) -> Any:
        raise TypeError(f"{value!r} is neither text, a number, true, false, null, a list nor a mapping")

    try:
        text = json.dumps(values, default=refuse)
    except (TypeError, ValueError, RecursionError) as error:  # too deep, circular, or a number of thousands of digits
        raise ValueError(f"{where}: {error}") from None
    waiting = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            odd = [key for key in value if not isinstance(key, str)]
            if odd:  # json makes text of it
                raise ValueError(f"{where}: the key {odd[0]!r} is no text; put it in quotes")
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value
    return text


def _class_at(cls: Any, loc: tuple[Any, ...]) -> Any:
    """The dataclass that the location of a validation error points into, or None."""
    kind: Any = cls
    for part in loc:
        if dataclasses.is_dataclass(kind):
            kind = typing.get_type_hints(kind).get(str(part))
        elif typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        if typing.get_origin(kind) not in (dict, list, tuple):
            kind = next((a for a in typing.get_args(kind) if dataclasses.is_dataclass(a)), kind)
    return kind if dataclasses.is_dataclass(kind) else None


@cache
def field_docs(cls: type) -> dict[str, str]:
    """The text under each field of a config dataclass."""
    docs: dict[str, str] = {}
    for base in reversed([c for c in cls.__mro__ if dataclasses.is_dataclass(c)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for statement, following in itertools.pairwise(body):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
            ):
                docs[statement.target.id] = inspect.cleandoc(str(following.value.value))  # type: ignore[union-attr]
    return docs


MOST_ELEMENTS = 2**31
"""Of what one setting makes of a patch: 8 GB in float32. Published patches have a hundredth of it in all."""
_WIDEST, _MOST_LAYERS, _FARTHEST_FRAMES, _HIGHEST_RANK = 2**16, 256, 100_000, 4096


def _check_at_most(values: Any, limits: dict[str, int]) -> None:
    """Refuse, before anything is allocated, settings by which a tensor would fill the memory."""
    for name, limit in limits.items():
        value = getattr(values, name)
        if value is not None and value > limit:
            raise ValueError(f"{name} must be at most {limit:,}, got {str(value)[:20]}")


@dataclass(frozen=True, kw_only=True)
class FusionConfig(Strict):
    """How the side tokens of one channel meet the video tokens."""

    kind: Literal["cross_attention", "concat", "interleave"] = "cross_attention"
    """cross_attention adds a residual to the video tokens (the paper); concat and interleave are baselines that hand the
    side tokens to the language model as extra tokens, after the video or after each frame."""
    alignment: Literal["timestamps", "index"] = "timestamps"
    """timestamps: a frame sees the side steps in its own interval of time, which ends halfway to the frames beside it. index: the K
    steps, in the order of their times, are cut into T chunks by their number (the paper)."""
    neighbourhood_frames: int = 0
    """How many further frames either side a frame may look at: 0 = its own interval only."""
    neighbourhood_seconds: float = 0.0
    """Seconds added either side of a frame's interval (timestamps alignment only)."""
    empty_frames: Literal["skip", "nearest", "interpolate"] = "skip"
    """What a frame with no side step in reach gets under timestamps alignment: nothing (exactly no residual), the step nearest in
    time (the earlier of two equally near), or the stream linearly interpolated at the frame's time. Index alignment resamples a stream
    of fewer steps than frames, as the paper does."""
    query_source: Literal["post_projector", "pre_projector", "learnable"] = "post_projector"
    """Where queries come from: tokens as the language model sees them, vision features before the projector (the paper;
    families that expose them), or a learnt table of (num_frames, tokens_per_frame)."""
    num_layers: int = 2
    """Cross-attention layers."""
    num_heads: int = 4
    """Attention heads; width must be a multiple of it."""
    width: int = 256
    """D, the width of queries, attention and feed-forward input."""
    embed_width: int = 256
    """Width the side features are mapped to before keys and values."""
    share_key_value_projection: bool = False
    """True reproduces the released code, where the key projection also makes the values."""
    rope: bool = False
    """3-D rotary positions on queries and keys (time, row, column)."""
    dropout: float = 0.0
    """Dropout before the output norm."""
    standardize: bool = False
    """Shift and scale each side feature to mean 0 and standard deviation 1, by numbers that training measures on its samples before
    the first step and keeps in the patch. For features of mixed units or far from unit size: sensors, coordinates, pixels."""
    gate: bool = False
    """A learnt scalar per token, computed from the question and the token, that scales this channel's residual (starts at 1)."""
    output_mlp: bool = True
    """Two linears from D to the width of the language model; False needs width equal to that width."""
    output_norm: bool = True
    """LayerNorm with weight and bias from zero at the end: a fresh patch is exactly the base. False only for old checkpoints."""
    num_frames: int | None = None
    """T of the learnt query table (query_source learnable only)."""
    tokens_per_frame: int | None = None
    """S of the learnt query table (query_source learnable only)."""

    def __post_init__(self) -> None:
        if self.num_layers < 1 or self.num_heads < 1 or self.width < 1 or self.embed_width < 1:
            raise ValueError("num_layers, num_heads, width and embed_width must be at least 1")
        _check_at_most(
            self,
            {
                "num_layers": _MOST_LAYERS,
                "width": _WIDEST,
                "embed_width": _WIDEST,
                "neighbourhood_frames": _FARTHEST_FRAMES,
                "num_frames": _FARTHEST_FRAMES,
                "tokens_per_frame": _FARTHEST_FRAMES,
            },
        )
        if self.num_layers * self.width * max(self.width, self.embed_width) > MOST_ELEMENTS:
            raise ValueError(
                f"{self.num_layers} layers of width {self.width:,} and embed_width {self.embed_width:,} are more than a patch can be; use "
                "fewer or narrower ones"
            )
        if self.width % self.num_heads:
            raise ValueError(f"width ({self.width}) must be a multiple of num_heads ({self.num_heads})")
        if self.neighbourhood_frames < 0 or not 0 <= self.neighbourhood_seconds < float("inf"):
            raise ValueError("neighbourhood_frames and neighbourhood_seconds must not be negative")
        if self.neighbourhood_seconds and self.alignment == "index":
            raise ValueError("neighbourhood_seconds needs alignment 'timestamps'; use neighbourhood_frames with 'index'")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.rope and self.head_width % 8:
            raise ValueError(f"rope needs a head width (width / num_heads = {self.head_width}) that is a multiple of 8")
        if self.gate and self.adds_llm_tokens:
            raise ValueError(
                f"gate scales a residual, and kind {self.kind!r} adds none; use kind 'cross_attention' or gate: false"
            )
        wanted = 2 if self.query_source == "learnable" else 0
        if wanted != (self.num_frames is not None) + (self.tokens_per_frame is not None):
            raise ValueError("query_source 'learnable' needs num_frames and tokens_per_frame, and only it takes them")
        if wanted and min(self.num_frames or 0, self.tokens_per_frame or 0) < 1:
            raise ValueError("num_frames and tokens_per_frame must be at least 1")
        if (self.num_frames or 0) * (self.tokens_per_frame or 0) * self.width > MOST_ELEMENTS:
            raise ValueError(
                f"a table of {self.num_frames:,} frames of {self.tokens_per_frame:,} tokens of width {self.width:,} is more than a patch can "
                "be; use fewer"
            )

    @property
    def head_width(self) -> int:
        """H."""
        return self.width // self.num_heads

    @property
    def adds_llm_tokens(self) -> bool:
        """True for the baselines that lengthen the prompt."""
        return self.kind != "cross_attention"


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(Strict):
    """The frozen encoder that turns a raw side stream into features."""

    name: str = "log_mel"
    """One of the encoders in docs/side_channels.md (log_mel needs no weights; features reads stored ones; clap, ast and others are
    families of transformers), or the import path module:Class of an encoder of your own, whose module is imported only where whoever
    runs the patch or recipe names it as well (encoders)."""
    model: str | None = None
    """Hub id or local path of the encoder's weights, for those that have some."""
    revision: str | None = None
    """Revision on the hub."""
    settings: Annotated[dict[str, Any], NullIsEmpty()] = field(default_factory=dict)
    """Settings of the encoder, by its own argument names."""


@dataclass(frozen=True, kw_only=True)
class SideChannelConfig(Strict):
    """One side channel of a patch: what it is, how wide, and how it is fused."""

    kind: str = "audio"
    """What the stream is: audio, features, ..."""
    width: int
    """C, the width of the features that the encoder gives."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """The encoder that made the features this patch was trained on."""
    fusion: FusionConfig = field(default_factory=FusionConfig)
    """How the tokens are fused."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be at least 1, got {self.width}")
        _check_at_most(self, {"width": 2**20})
        if self.width * self.fusion.embed_width > MOST_ELEMENTS:
            raise ValueError(
                f"width ({self.width:,}) times fusion.embed_width ({self.fusion.embed_width:,}) is more than a patch can be; use a narrower "
                "one"
            )


_MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations of PEFT that change the base layer's weights."""
LORA_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class LoraSettings(Strict):
    """The low-rank part of a patch, on the linear layers of the language model only. Stored in PEFT's own format."""

    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "r": "rank",
        "lora_alpha": "alpha",
        "lora_dropout": "dropout",
        "target_modules": "targets",
        "rank_pattern": "ranks",
        "alpha_pattern": "alphas",
        "init_lora_weights": "init",
    }

    rank: int = 16
    """Rank of the update of every kind of layer that ranks does not name."""
    ranks: Annotated[dict[str, int], NullIsEmpty()] = field(default_factory=dict)
    """Ranks of single kinds of layers by their names in targets, such as {q_proj: 8, down_proj: 32}."""
    alpha: float = 32.0
    """The update of a layer is scaled by alpha over the layer's own rank, whichever it is: half the rank has twice the scale."""
    alphas: Annotated[dict[str, float], NullIsEmpty()] = field(default_factory=dict)
    """Alphas of single kinds of layers by their names in targets. alphas in proportion to ranks give every kind one scale."""
    dropout: float = 0.0
    """Dropout on the input of the update while training."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Names of linear layers inside the language model's decoder. The vision tower is never touched."""
    use_rslora: bool = False
    """Scale by alpha over the square root of the rank instead (rsLoRA, arXiv 2312.03732)."""
    use_dora: bool = False
    """Train the length of each row of the updated weight apart from its direction (DoRA, arXiv 2402.09353): one more vector a layer."""
    init: str = "uniform"
    """How the first factor starts: uniform (Kaiming, PEFT's default) or gaussian. The second starts at zero, so that a fresh patch is
    the base. Initialisations that start elsewhere (pissa, olora, ...) are refused."""

    def __post_init__(self) -> None:
        names = (
            (self.targets,) if isinstance(self.targets, str) else tuple(self.targets)
        )  # one name is one name, not its letters
        object.__setattr__(self, "targets", names)
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if not 0 < self.alpha < float("inf"):
            raise ValueError(f"alpha must be positive and finite, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if not self.targets:
            raise ValueError("targets must name at least one linear layer; use lora: null for a patch without LoRA")
        for name in ("ranks", "alphas"):
            for kind, value in getattr(self, name).items():
                if kind not in self.targets:
                    raise ValueError(f"{name} names {kind!r}, which is not in targets ({', '.join(self.targets)})")
                if not 0 < value < float("inf"):
                    raise ValueError(f"{name}.{kind} must be positive and finite, got {value}")
        for name, rank in {"rank": self.rank, **{f"ranks.{kind}": rank for kind, rank in self.ranks.items()}}.items():
            if rank > _HIGHEST_RANK:
                raise ValueError(f"{name} must be at most {_HIGHEST_RANK:,}, got {str(rank)[:20]}")
        self._check_init()

    def _check_init(self) -> None:
        if self.init in ("uniform", "gaussian"):
            return
        if self.init.startswith(_MOVES_BASE):
            raise ValueError(
                f"init {self.init!r} subtracts the first update from the base's weights, which a patch never changes: a fresh patch, a "
                "disabled one and a row without its side channel would not be the base; use 'uniform' or 'gaussian'"
            )
        raise ValueError(f"init is 'uniform' or 'gaussian', which start exactly at the base, got {self.init!r}")

    def rank_of(self, kind: str) -> int:
        """Rank of the update of a kind of layer."""
        return self.ranks.get(kind, self.rank)

    def alpha_of(self, kind: str) -> float:
        """Alpha of a kind of layer."""
        return self.alphas.get(kind, self.alpha)

    def scale_of(self, kind: str) -> float:
        """What the product of the two factors of a kind of layer is multiplied by."""
        rank = self.rank_of(kind)
        return self.alpha_of(kind) / (math.sqrt(rank) if self.use_rslora else rank)


TAKEN_NAMES = frozenset(
    [
        "T_destination",
        "add_module",
        "apply",
        "bfloat16",
        "buffers",
        "call_super_init",
        "children",
        "clear",
        "compile",
        "copy",
        "cpu",
        "cuda",
        "double",
        "dump_patches",
        "eval",
        "extra_repr",
        "float",
        "forward",
        "fromkeys",
        "get",
        "get_buffer",
        "get_extra_state",
        "get_parameter",
        "get_submodule",
        "half",
        "ipu",
        "items",
        "keys",
        "load_state_dict",
        "modules",
        "mtia",
        "named_buffers",
        "named_children",
        "named_modules",
        "named_parameters",
        "parameters",
        "pop",
        "popitem",
        "register_backward_hook",
        "register_buffer",
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
        "register_load_state_dict_post_hook",
        "register_load_state_dict_pre_hook",
        "register_module",
        "register_parameter",
        "register_state_dict_post_hook",
        "register_state_dict_pre_hook",
        "requires_grad_",
        "set_extra_state",
        "set_submodule",
        "setdefault",
        "share_memory",
        "state_dict",
        "to",
        "to_empty",
        "train",
        "training",
        "type",
        "update",
        "values",
        "xpu",
        "zero_grad",
    ]
)
"""What a module of torch or a dictionary has, so that no side channel may be called so; those with a leading underscore besides."""


@dataclass(frozen=True, kw_only=True)
class PatchConfig(Strict):
    """Everything needed to rebuild a patch on its base. The default sizes are the compact preset: at most 20 MB at 7B."""

    side_channels: Annotated[dict[str, SideChannelConfig], NullIsEmpty()]
    """Channels by name. Residuals of several channels add; each has its own alignment, width and gate. May be empty for a
    LoRA-only patch (the video-only baseline)."""
    lora: LoraSettings | None = field(default_factory=LoraSettings)
    """Low-rank updates of the language model, or null for none."""
    missing_channel: Literal["base", "lora_only"] = "base"
    """What a video without any of its side channels gets: exactly the base model, or the base with LoRA (the authors' behaviour)."""
    newline: Literal["base", "grid"] = "base"
    """Where the base's newline embedding stands in a video: where the base puts it (LLaVA-OneVision: one behind the last frame), or
    grid: behind every row of tokens of every frame (the authors' recipes). grid lengthens the prompt, by the patched model itself."""
    vocabulary: int | None = None
    """Number of token ids that the language model chooses from; logits of ids from there on are -inf. The authors' code cuts
    the embeddings and the head to the tokenizer's length. null: every row of the head."""
    storage_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """How tensors are stored on disk. They are trained in float32."""

    def __post_init__(self) -> None:
        for name in self.side_channels:
            if not name.isidentifier():
                raise ValueError(f"side channel {name!r}: a channel's name must be a Python identifier")
            if name.startswith("_") or name in TAKEN_NAMES:
                raise ValueError(
                    f"side channel {name!r}: the name would hide a part of a module or a mapping; choose another one"
                )
        if not self.side_channels and self.lora is None:
            raise ValueError("a patch needs at least one side channel or lora")
        if sum(c.fusion.adds_llm_tokens for c in self.side_channels.values()) > 1:
            raise ValueError("at most one channel of a patch can be fused with 'concat' or 'interleave'")
        self._check_whole_prompt_settings()

    def _check_whole_prompt_settings(self) -> None:
        """newline and vocabulary change what every row computes, so no row can be the base alone."""
        if self.vocabulary is not None and self.vocabulary < 1:
            raise ValueError(f"vocabulary must be at least 1, or null for all of the base's, got {self.vocabulary}")
        if self.newline == "grid" and any(c.fusion.adds_llm_tokens for c in self.side_channels.values()):
            raise ValueError("newline 'grid' cannot be combined with a channel fused by 'concat' or 'interleave'")
        changed = [
            name for name, on in (("newline", self.newline != "base"), ("vocabulary", self.vocabulary is not None)) if on
        ]
        if changed and self.side_channels and self.missing_channel == "base":
            raise ValueError(
                f"{' and '.join(changed)} change what the base computes, so a video without its side channel cannot be exactly "
                "the base; set missing_channel to 'lora_only'"
            )

    @property
    def reads_pre_projector(self) -> bool:
        """Whether some channel makes its queries of what enters the base's projector."""
        return any(channel.fusion.query_source == "pre_projector" for channel in self.side_channels.values())

    @classmethod
    def compact(cls, **widths: int) -> PatchConfig:
        """The default: fusion and LoRA together at most 20 MB at 7B. ``PatchConfig.compact(audio=128)``."""
        return cls(side_channels={name: SideChannelConfig(kind=name, width=width) for name, width in widths.items()})

    @classmethod
    def paper(cls, **widths: int) -> PatchConfig:
        """The published sizes: D 512, 4 heads, 2 layers, LoRA rank 64 on all seven linear kinds (18 + 323 MB at 7B).

        The published features were extracted before training, so the channels read stored ones.
        """
        fusion = FusionConfig(
            width=512, embed_width=512, alignment="index", share_key_value_projection=True, query_source="pre_projector"
        )
        channels = {}
        for name, width in widths.items():
            stored = EncoderConfig(name="features", settings={"width": width})
            channels[name] = SideChannelConfig(kind=name, width=width, encoder=stored, fusion=fusion)
        lora = LoraSettings(rank=64, alpha=16.0, targets=LORA_LINEARS, dropout=0.05)
        return cls(side_channels=channels, lora=lora, missing_channel="lora_only")
