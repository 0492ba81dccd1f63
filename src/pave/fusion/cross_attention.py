"""The paper's fusion module: every video token attends to the side tokens in the temporal neighbourhood of its frame."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from pave.fusion.attention import group_frames
from pave.fusion.base import ResidualFusion
from pave.fusion.gate import InstructionGate
from pave.fusion.layers import CrossAttentionLayer, SideStream
from pave.fusion.rope import rotations, sections, square_grid
from pave.fusion.standardize import Standardize
from pave.fusion.temporal_alignment import Alignment, EmptyFrames, Resampled, align
from pave.tokens import QuestionTokens, SideTokens, VideoTokens

QuerySource = Literal["post_projector", "pre_projector", "learnable"]


class TemporalAlignedCrossAttention(ResidualFusion):
    """``z_v + g(z_v, z_s)``: this is g, the module of arXiv 2503.19794 with its arithmetic and named options.

    Map the side features to ``embed_width``; map the queries to ``width``; ``num_layers`` of attention and feed-forward;
    then an MLP to the language model's width and a LayerNorm whose weight and bias start at zero. A fresh module is
    therefore exactly zero, and the patched model exactly its base.

    Linear weights start Xavier-uniform (variance is kept at any width; 0.02 is far too small for narrow modules), their
    biases at zero. The learnable query table starts normal with standard deviation 1, the scale of a mapped token of unit
    variance. Without the output norm the last linear starts at zero instead; without the output MLP as well (possible in
    old checkpoints only) a fresh module is not an identity.

    Args:
        side_width: C, width of the side features.
        llm_width: E, width of the language model.
        query_width: width of the query source; None for learnable queries.
        width: D.
        embed_width: width that side features are mapped to before keys and values.
        num_layers, num_heads: of the attention; ``width`` is a multiple of ``num_heads``.
        alignment, neighbourhood_frames, neighbourhood_seconds, empty_frames: see :mod:`pave.fusion.temporal_alignment`.
        query_source: "post_projector" reads ``video.post_projector_BTSE``, "pre_projector" ``video.pre_projector_BTSC``,
            "learnable" a table of (num_frames, tokens_per_frame, width) parameters.
        share_key_value_projection: see :class:`CrossAttentionLayer`.
        rope: see :mod:`pave.fusion.rope`; needs tokens on square grids, or ``video.grid``.
        dropout: before the output norm.
        standardize: see :class:`pave.fusion.standardize.Standardize`.
        gate: see :class:`pave.fusion.gate.InstructionGate`.
        output_mlp: linear D to 2D, GELU, linear 2D to E; without it ``width`` equals ``llm_width``.
        output_norm: the final LayerNorm.
        num_frames, tokens_per_frame: T and S of the learnable query table.

    Raises:
        ValueError: if options contradict each other.
    """

    def __init__(
        self,
        *,
        side_width: int,
        llm_width: int,
        query_width: int | None = None,
        width: int = 256,
        embed_width: int = 256,
        num_layers: int = 2,
        num_heads: int = 4,
        alignment: Alignment = "timestamps",
        neighbourhood_frames: int = 0,
        neighbourhood_seconds: float = 0.0,
        empty_frames: EmptyFrames = "skip",
        query_source: QuerySource = "post_projector",
        share_key_value_projection: bool = False,
        rope: bool = False,
        dropout: float = 0.0,
        standardize: bool = False,
        gate: bool = False,
        output_mlp: bool = True,
        output_norm: bool = True,
        num_frames: int | None = None,
        tokens_per_frame: int | None = None,
    ) -> None:
        super().__init__()
        _check_choice("alignment", alignment, Alignment)
        _check_choice("empty_frames", empty_frames, EmptyFrames)
        _check_choice("query_source", query_source, QuerySource)
        if width % num_heads:
            raise ValueError(f"width ({width}) must be a multiple of num_heads ({num_heads})")
        if not output_mlp and width != llm_width:
            raise ValueError(f"output_mlp False needs width ({width}) equal to the language model's width ({llm_width})")
        if rope:
            sections(width // num_heads)
        self.side_width, self.llm_width, self.width = side_width, llm_width, width
        self.num_heads, self.rope, self.query_source = num_heads, rope, query_source
        self.alignment: Alignment = alignment
        self.neighbourhood_frames, self.neighbourhood_seconds = neighbourhood_frames, neighbourhood_seconds
        self.empty_frames: EmptyFrames = empty_frames
        self.reads_frame_times = alignment == "timestamps"
        self.reads_pre_projector = query_source == "pre_projector"
        self.reads_question = gate

        self.standardize = Standardize(side_width) if standardize else None
        self.side_embed = nn.Linear(side_width, embed_width)
        self.query_embed: nn.Linear | None = None
        self.query_table: nn.Parameter | None = None
        if query_source == "learnable":
            if num_frames is None or tokens_per_frame is None:
                raise ValueError("query_source 'learnable' needs num_frames and tokens_per_frame")
            self.query_table = nn.Parameter(torch.empty(num_frames, tokens_per_frame, width))
        elif query_width is None:
            raise ValueError(f"query_source {query_source!r} needs query_width, the width of those features")
        else:
            self.query_embed = nn.Linear(query_width, width)
        self.layers = nn.ModuleList(
            CrossAttentionLayer(width, embed_width, num_heads, share_key_value_projection=share_key_value_projection)
            for _ in range(num_layers)
        )
        self.output_mlp = (
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, llm_width)) if output_mlp else None
        )
        self.dropout = nn.Dropout(dropout)
        self.output_norm = nn.LayerNorm(llm_width) if output_norm else None
        self.gate = InstructionGate(llm_width, width) if gate else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as described in the class's docstring."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        if self.query_table is not None:
            nn.init.normal_(self.query_table)
        if self.output_norm is not None:
            nn.init.zeros_(self.output_norm.weight)
            nn.init.zeros_(self.output_norm.bias)
        elif self.output_mlp is not None:
            nn.init.zeros_(self.output_mlp[-1].weight)  # type: ignore[arg-type]
        if self.gate is not None:
            self.gate.reset_parameters()

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """See :meth:`FusionModule.parameter_groups`."""
        norm = [] if self.output_norm is None else list(self.output_norm.parameters())
        gate = [] if self.gate is None else list(self.gate.parameters())
        apart = {id(parameter) for parameter in (*norm, *gate)}
        rest = [parameter for parameter in self.parameters() if id(parameter) not in apart]
        return {"output_norm": norm, "gate": gate, "fusion": rest}

    def forward(
        self,
        video: VideoTokens,
        side: SideTokens,
        question: QuestionTokens | None = None,
        *,
        side_grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """The residual (B, T, S, E); see :meth:`ResidualFusion.forward`.

        Args:
            video: the base's tokens; the query source and, under timestamps alignment, frame times must be there.
            side: the channel's tokens.
            question: the prompt; read by the gate only.
            side_grid: rows and columns of a side step's tokens for rope; a square is assumed without it.

        Raises:
            ValueError: if widths, counts of videos or needed inputs do not fit the module.
        """
        if self.gate is not None and question is None:
            raise ValueError("gate: the instruction-aware gate needs the prompt's tokens, but no question was given")
        stream = self._side_stream(video, side, side_grid)
        token_BTSD = self._queries(video)
        for layer in self.layers:
            token_BTSD = layer(token_BTSD, stream)
        residual_BTSE = self.dropout(token_BTSD if self.output_mlp is None else self.output_mlp(token_BTSD))
        if self.output_norm is not None:
            residual_BTSE = self.output_norm(residual_BTSE)
        if self.gate is not None:
            assert question is not None
            residual_BTSE = residual_BTSE * self.gate(token_BTSD, question)
        reads_BT = stream.windows.length_BT > 0
        return torch.where(reads_BT[:, :, None, None], residual_BTSE, 0.0).to(self.side_embed.weight.dtype)

    @torch.no_grad()
    def attention_map(
        self, video: VideoTokens, side: SideTokens, layer: int = -1, *, side_grid: tuple[int, int] | None = None
    ) -> Tensor:
        """What each video token looks at in one layer, for reports on small inputs: (B, T, N, S, K, M), dense.

        Side steps are in the caller's order. The weight on a resampled step is shared out to the two steps it was made of,
        so the weights of a token sum to 1, or to 0 where its frame reads nothing.
        """
        stream = self._side_stream(video, side, side_grid)
        token_BTSD = self._queries(video)
        *before, last = list(self.layers)[: layer % len(self.layers) + 1]
        for earlier in before:
            token_BTSD = earlier(token_BTSD, stream)
        weight_BTNSRM = last.attention_weights(token_BTSD, stream)  # type: ignore[operator]
        weight_BTNSRM = torch.where((stream.windows.length_BT > 0)[:, :, None, None, None, None], weight_BTNSRM, 0.0)
        K = max(side.valid_BK.shape[1], 1)
        weight_BTNSKM = weight_BTNSRM[..., :K, :]
        made = stream.windows.resampled
        if made is not None:
            extra = weight_BTNSRM[..., K:, :]
            shape = extra.shape
            for index_BT, share_BT in ((made.left_BT, 1 - made.weight_BT), (made.right_BT, made.weight_BT)):
                index = index_BT[:, None, None, None, :, None].expand(shape)
                share = share_BT[:, None, None, None, :, None].to(extra.dtype)
                weight_BTNSKM = weight_BTNSKM.scatter_add(4, index, extra * share)
        return weight_BTNSKM[..., : side.valid_BK.shape[1], :]

    def _queries(self, video: VideoTokens) -> Tensor:
        """The mapped queries (B, T, S, D)."""
        source = self._query_source(video)
        return source if self.query_embed is None else self.query_embed(source.to(self.query_embed.weight.dtype))

    def _query_source(self, video: VideoTokens) -> Tensor:
        """What queries are made of, (B, T, S, C)."""
        B, T, S = video.post_projector_BTSE.shape[:3]
        if self.query_table is not None:
            if self.query_table.shape[:2] != (T, S):
                known = " x ".join(map(str, self.query_table.shape[:2]))
                raise ValueError(
                    f"query_source 'learnable': the table is for {known} tokens (frames x tokens per frame), "
                    f"but the video has {T} x {S}; sample that many frames"
                )
            return self.query_table.expand(B, T, S, self.width)
        assert self.query_embed is not None
        source = video.pre_projector_BTSC if self.query_source == "pre_projector" else video.post_projector_BTSE
        if source is None:
            raise ValueError(
                "query_source 'pre_projector': the base gave no features from before its projector; "
                "use a family that exposes them, or query_source 'post_projector'"
            )
        if source.shape[3] != self.query_embed.in_features:
            raise ValueError(
                f"query_source {self.query_source!r}: features are {source.shape[3]} wide, "
                f"but the patch was built for width {self.query_embed.in_features}"
            )
        return source

    def _side_stream(self, video: VideoTokens, side: SideTokens, side_grid: tuple[int, int] | None) -> SideStream:
        """Align the side steps with the frames, map them, and resample where the alignment asks for it."""
        self._check_side(side, len(video.valid_BT))
        side = _at_least_one_step(side)
        side = self._prepared(side, self.side_embed.weight.dtype)
        windows = align(
            video.valid_BT,
            video.times_BT,
            side.valid_BK,
            side.times_BK,
            alignment=self.alignment,
            neighbourhood_frames=self.neighbourhood_frames,
            neighbourhood_seconds=self.neighbourhood_seconds,
            empty_frames=self.empty_frames,
        )
        embeds_BRMD = self.side_embed(side.embeds_BKMC)
        if windows.resampled is not None:
            embeds_BRMD = torch.cat([embeds_BRMD, _resample(embeds_BRMD, windows.resampled)], dim=1)
        angles = None
        if self.rope:
            S, M = video.post_projector_BTSE.shape[2], side.embeds_BKMC.shape[2]
            query_grid = video.grid or square_grid(S, "video tokens per frame")
            key_grid = side_grid or square_grid(M, "side tokens per step")
            frames, steps = (video.valid_BT, video.times_BT), (side.valid_BK, side.times_BK)
            angles = rotations(self.alignment, self.width // self.num_heads, windows, frames, steps, query_grid, key_grid)
        return SideStream(embeds_BRMD, windows, group_frames(windows), angles)


def _resample(embeds: Tensor, made: Resampled) -> Tensor:
    row_B1 = torch.arange(len(embeds), device=embeds.device)[:, None]
    weight = made.weight_BT.to(embeds.dtype)[:, :, None, None]
    return torch.lerp(embeds[row_B1, made.left_BT], embeds[row_B1, made.right_BT], weight)


def _at_least_one_step(side: SideTokens) -> SideTokens:
    """A batch in which no video has the channel may have K = 0; one missing step keeps the arithmetic the same."""
    B, K, M, C = side.embeds_BKMC.shape
    if K:
        return side
    times_BK = None if side.times_BK is None else side.times_BK.new_zeros(B, 1)
    return SideTokens(side.embeds_BKMC.new_zeros(B, 1, M, C), side.valid_BK.new_zeros(B, 1), times_BK)


def _check_choice(option: str, value: str, choices: object) -> None:
    known = get_args(choices)
    if value not in known:
        raise ValueError(f"{option} must be one of {', '.join(map(repr, known))}, got {value!r}")
