"""The memory that a training step of a patch takes on one device, by arithmetic on shapes.

It follows what autograd keeps for its backward pass. The base is frozen, so its linear layers keep no input; what is kept
are the inputs of the functions that are not linear and of the layers that are trained. Letters: E, F widths of the language
model and of its MLP, Q and G widths of all query heads and of all key heads; D width of the fusion; r bytes of the base's dtype,
a bytes in which linear layers give their output (2 under mixed precision, else r), l bytes of the inputs of LoRA (2 under mixed
precision, else 4). A layer of the language model keeps, per token:

- two RMS norms, in float32: 2 x 4E
- attention: queries, keys, values (keys and values repeated for every query head where the batch is padded), output: a(2Q + 2G)
- the gated MLP: gate, its activation, the other factor: 3aF
- each LoRA target: its input, l x its input width (once more as a mask of one byte with dropout), and l x rank

Without activation checkpointing that is kept of every layer. With it every layer keeps its input, rE, and one layer at a time is
computed again. A fusion layer keeps 8aD + 4D per video token, its output MLP and norm 5aD + 4E + aE, the side tokens 2aD per layer.
The head runs on answer tokens only: logits in a bytes, and three copies of them in float32 (their float32 form, their
log-softmax, their gradient). The peak is the larger of two moments: while the vision tower runs, without gradients, and at the
beginning of the backward pass, when all activations are there. AdamW holds two float32 numbers for every trained parameter.
Not counted: what the device's runtime takes for itself (about 0.5 GB with CUDA), fragmentation, and the optimizer's temporary copies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from pave.config import FusionConfig, PatchConfig
from pave.patching.cost import BYTES, SIDE_LINEARS
from pave.patching.lookup import patch_parameters, patch_slot

_MASTER = 4
"""Bytes of a trained parameter and of its gradient; AdamW holds twice as much."""


@dataclass(frozen=True, kw_only=True)
class SharedRows:
    """A forward pass in which questions about one video share its row (``data.share_videos``)."""

    rows: int
    """Videos at most: the forward pass that takes most memory."""
    longest: int
    """Most questions in a row of it."""
    mean_rows: float
    """Videos on average, for operations."""


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """The shape of one forward pass of training."""

    batch_size: int = 1
    """Questions; each has a video of its own unless ``shared`` says otherwise."""
    num_frames: int = 32
    """Sampled frames of a video."""
    text_tokens: int = 64
    """Tokens of a prompt besides the video's, its answer included."""
    answer_tokens: int = 16
    """Of those, the ones that are learnt."""
    side_steps: Mapping[str, int] = field(default_factory=dict)
    """K by channel; 64 where a channel is not named."""
    side_tokens_per_step: Mapping[str, int] = field(default_factory=dict)
    """M by channel; 1 where a channel is not named."""
    grid: tuple[int, int] | None = None
    """Rows and columns of tokens of a step, for bases of dynamic resolution; default 14 x 14."""
    shared: SharedRows | None = None
    """How questions share videos; None: a row for each question."""

    @property
    def rows(self) -> int:
        """Rows, each with one video; with ``shared``, of the forward pass that takes most memory."""
        return self.batch_size if self.shared is None else self.shared.rows

    @property
    def mean_questions(self) -> float:
        """Questions in a row on average."""
        return 1.0 if self.shared is None else self.batch_size / self.shared.mean_rows

    @property
    def padded(self) -> bool:
        """Whether attention takes a mask."""
        return self.rows > 1 or self.shared is not None

    def side(self, channel: str) -> tuple[int, int]:
        """(K, M) of a channel."""
        return self.side_steps.get(channel, 64), self.side_tokens_per_step.get(channel, 1)


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """How a step is computed."""

    base_dtype: str = "bfloat16"
    """Of the base's weights."""
    mixed_precision: bool = True
    """bfloat16 autocast."""
    activation_checkpointing: bool = True
    """Recompute the language model's layers in the backward pass."""
    stored_vision: bool = False
    """Vision features are read, so that the tower does not run."""
    shards: int = 1
    """Devices over which the parameters, gradients and optimizer states are sharded (FSDP); 1: each holds all."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Length of one sample's prompt in the language model, by origin."""

    video: int
    extra: int
    """Newlines behind every row (``newline: grid``), and side tokens that lengthen the prompt (concat, interleave)."""
    text: int

    @property
    def total(self) -> int:
        return self.video + self.extra + self.text

    def row(self, questions: float) -> float:
        """Length of a row in which so many questions stand behind one video."""
        return self.video + self.extra + questions * self.text


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device."""

    base_weights: int
    patch_weights: int
    gradients: int
    optimizer: int
    activations: int
    """Kept from the forward for the backward pass."""
    working: int
    """At work at one time: a layer computed again, gradients of activations, a layer gathered from other devices."""
    logits: int
    vision: int
    """While the vision tower and the projector run, before anything of the above but the first four is there."""

    @property
    def fixed(self) -> int:
        """Between two steps."""
        return self.base_weights + self.patch_weights + self.gradients + self.optimizer

    @property
    def peak(self) -> int:
        return self.fixed + max(self.vision, self.activations + self.working + self.logits)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the arithmetic needs to know of the base and the patch."""

    base_parameters: int
    trained: int
    layer_parameters: int
    layers: int
    E: int
    F: int
    Q: int
    G: int
    vocabulary: int
    lora_inputs: tuple[int, ...]
    """Input width of every LoRA target of one layer."""
    fusions: Mapping[str, tuple[int, int]]
    """By channel: width of the queries' source, and widths of the inputs and outputs of all layers on side tokens."""
    steps: int
    per_step: int
    vision_patches: int
    """Patches of the tower for one time step."""
    vision_width: int
    vision_mlp: int
    vision_states: int
    """States of the tower that are kept until it has ended."""
    projected: int
    """Tokens that the projector makes of one time step."""

    @classmethod
    def of(
        cls, model: Any, interface: Any, config: Any, patch: PatchConfig, base_parameters: int, video: tuple[int, int]
    ) -> Sizes:
        text, tower = config.get_text_config(), config.vision_config
        steps, per_step = video
        layer = model.get_decoder().layers[0]
        targets = () if patch.lora is None else patch.lora.targets
        inputs = [m.in_features for path, m in layer.named_modules() if path.rsplit(".", 1)[-1] in targets]
        Q, G = head_widths(text)
        is_llava = config.model_type == "llava_onevision"
        patches = (tower.image_size // tower.patch_size) ** 2 if is_llava else per_step * tower.spatial_merge_size**2
        fusions = {}
        for name, module in patch_slot(model).fusions.items():
            query = getattr(module, "query_embed", None)
            linears = [m for path, m in module.named_modules() if path.rsplit(".", 1)[-1] in SIDE_LINEARS]
            side = sum(m.in_features + m.out_features for m in linears if isinstance(m, nn.Linear))
            fusions[name] = (0 if query is None else query.in_features, side)
        return cls(
            base_parameters=base_parameters,
            trained=sum(p.numel() for p in patch_parameters(model)),
            layer_parameters=sum(p.numel() for p in layer.parameters()),
            layers=text.num_hidden_layers,
            E=text.hidden_size,
            F=text.intermediate_size,
            Q=Q,
            G=G,
            vocabulary=text.vocab_size,
            lora_inputs=tuple(inputs),
            fusions=fusions,
            steps=steps,
            per_step=per_step,
            vision_patches=patches,
            vision_width=tower.hidden_size if is_llava else interface.pre_projector_width(config),
            vision_mlp=tower.intermediate_size if hasattr(tower, "intermediate_size") else 4 * tower.embed_dim,
            vision_states=(tower.num_hidden_layers if is_llava else 0) + 1,
            projected=patches if is_llava else per_step,
        )


def memory_of(sizes: Sizes, patch: PatchConfig, shape: StepShape, settings: StepSettings, tokens: Tokens) -> Memory:
    """The memory of a step; the formulas are those at the top of this module."""
    r = BYTES[settings.base_dtype]
    a = 2 if settings.mixed_precision else r
    shards, trained = settings.shards, _MASTER * sizes.trained
    gathered = 2 * r * sizes.layer_parameters if shards > 1 else 0
    layer, work = _layer(sizes, patch, shape, settings, tokens, r, a)
    rows = _tokens(shape, tokens)
    kept = rows * (2 * r * sizes.E + 4 * sizes.E)  # embeddings, embeddings with the video's tokens, last norm
    if settings.activation_checkpointing:
        kept += sizes.layers * rows * r * sizes.E
        work += layer
    else:
        kept += sizes.layers * layer
    kept += sum(
        _fusion(sizes, name, channel.fusion, shape, r, a)
        for name, channel in patch.side_channels.items()
        if not channel.fusion.adds_llm_tokens
    )
    learnt = rows if adds_tokens(patch) else shape.batch_size * shape.answer_tokens
    return Memory(
        base_weights=math.ceil(r * sizes.base_parameters / shards),
        patch_weights=math.ceil(trained / shards),
        gradients=math.ceil(trained / shards),
        optimizer=math.ceil(2 * trained / shards),
        activations=kept,
        working=work + gathered,
        logits=learnt * sizes.vocabulary * (a + 3 * 4),
        vision=_vision(sizes, shape, settings, a) + gathered,
    )


def _layer(
    sizes: Sizes, patch: PatchConfig, shape: StepShape, settings: StepSettings, tokens: Tokens, r: int, a: int
) -> tuple[int, int]:
    """What one layer of the language model keeps, and what is at work in its backward pass beside that."""
    rows = _tokens(shape, tokens)
    keys = sizes.Q if shape.padded else sizes.G
    kept = rows * (8 * sizes.E + a * (2 * sizes.Q + 2 * keys) + 3 * a * sizes.F)
    if patch.lora is not None:
        size = 2 if settings.mixed_precision else 4
        for width in sizes.lora_inputs:
            kept += rows * (size * (width + patch.lora.rank) + (width if patch.lora.dropout else 0))
    mask = rows**2 // shape.rows * (1 + a) if shape.padded else 0
    return kept, rows * (3 * a * sizes.F + 2 * r * sizes.E) + mask


def _tokens(shape: StepShape, tokens: Tokens) -> int:
    """Of all rows, each as long as the longest."""
    longest = 1 if shape.shared is None else shape.shared.longest
    return shape.rows * int(tokens.row(longest))


def _fusion(sizes: Sizes, name: str, config: FusionConfig, shape: StepShape, r: int, a: int) -> int:
    """What the fusion of one channel keeps."""
    source, side_widths = sizes.fusions[name]
    K, M = shape.side(name)
    video = shape.rows * sizes.steps * sizes.per_step
    D, E = config.width, sizes.E
    per_token = (r + a) * source + config.num_layers * (8 * a + 4) * D + (5 * a * D + 4 * E + a * E if config.output_mlp else 0)
    reach = 1 + 2 * config.neighbourhood_frames
    gathered = config.num_layers * 2 * a * D * shape.rows * max(K, sizes.steps) * M * reach
    return video * per_token + shape.rows * K * M * a * side_widths + gathered


def _vision(sizes: Sizes, shape: StepShape, settings: StepSettings, a: int) -> int:
    """While the tower or the projector runs: nothing is kept for a backward pass."""
    rows = shape.rows * sizes.steps
    projector = rows * sizes.projected * a * (sizes.vision_width + 3 * sizes.E)
    states = rows * sizes.vision_patches * a * sizes.vision_width * sizes.vision_states
    if settings.stored_vision:
        return rows * sizes.projected * a * sizes.E
    tower = rows * sizes.vision_patches * a * (2 * sizes.vision_mlp + 2 * sizes.vision_width)
    return states + max(tower, projector)


def adds_tokens(patch: PatchConfig) -> bool:
    """Whether a channel lengthens the prompt."""
    return any(channel.fusion.adds_llm_tokens for channel in patch.side_channels.values())


def head_widths(text: Any) -> tuple[int, int]:
    """Widths of all query heads and of all key heads of a language model's config."""
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return text.num_attention_heads * width, text.num_key_value_heads * width
