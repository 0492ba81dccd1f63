"""Fusion modules: how the tokens of a side channel reach the language model. Pure torch.

``build_fusion`` is the only place that reads a config; every module takes flat keyword arguments.
"""

from __future__ import annotations

from pave.config import FusionConfig
from pave.fusion.base import ExtraTokens, FusionModule, ResidualFusion, TokenFusion
from pave.fusion.baselines import ConcatFusion, InterleaveFusion
from pave.fusion.cross_attention import TemporalAlignedCrossAttention
from pave.fusion.standardize import Standardize

__all__ = [
    "ConcatFusion",
    "ExtraTokens",
    "FusionModule",
    "InterleaveFusion",
    "ResidualFusion",
    "Standardize",
    "TemporalAlignedCrossAttention",
    "TokenFusion",
    "build_fusion",
]


def build_fusion(
    config: FusionConfig, *, side_width: int, llm_width: int, pre_projector_width: int | None = None
) -> FusionModule:
    """Build the module that ``config`` describes. Under ``torch.device("meta")`` no memory is taken.

    Args:
        config: how to fuse.
        side_width: C, width of the side features.
        llm_width: E, width of the language model.
        pre_projector_width: width of the base's features before its projector, None where the family exposes none.

    Raises:
        ValueError: if the config asks for what the base does not have, or contradicts itself.
    """
    if config.kind == "concat":
        return ConcatFusion(side_width=side_width, llm_width=llm_width, width=config.width, standardize=config.standardize)
    if config.kind == "interleave":
        return InterleaveFusion(
            side_width=side_width,
            llm_width=llm_width,
            width=config.width,
            alignment=config.alignment,
            standardize=config.standardize,
        )
    query_width: int | None = llm_width
    if config.query_source == "pre_projector":
        if pre_projector_width is None:
            raise ValueError(
                "query_source 'pre_projector': this family of base models exposes no features from before its projector; "
                "use query_source 'post_projector'"
            )
        query_width = pre_projector_width
    elif config.query_source == "learnable":
        query_width = None
    return TemporalAlignedCrossAttention(
        side_width=side_width,
        llm_width=llm_width,
        query_width=query_width,
        width=config.width,
        embed_width=config.embed_width,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        alignment=config.alignment,
        neighbourhood_frames=config.neighbourhood_frames,
        neighbourhood_seconds=config.neighbourhood_seconds,
        empty_frames=config.empty_frames,
        query_source=config.query_source,
        share_key_value_projection=config.share_key_value_projection,
        rope=config.rope,
        dropout=config.dropout,
        standardize=config.standardize,
        gate=config.gate,
        output_mlp=config.output_mlp,
        output_norm=config.output_norm,
        num_frames=config.num_frames,
        tokens_per_frame=config.tokens_per_frame,
    )
