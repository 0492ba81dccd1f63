"""The builder: every field of the config arrives in the module."""

import dataclasses
import inspect

import pytest
import torch

from pave.config import FusionConfig
from pave.fusion import ConcatFusion, FusionModule, InterleaveFusion, TemporalAlignedCrossAttention, build_fusion
from pave.tokens import SideTokens


def test_every_field_but_kind_is_an_argument_of_the_module():
    fields = {f.name for f in dataclasses.fields(FusionConfig)} - {"kind"}
    arguments = set(inspect.signature(TemporalAlignedCrossAttention).parameters)
    assert fields == arguments - {"side_width", "llm_width", "query_width"}
    defaults = {p.name: p.default for p in inspect.signature(TemporalAlignedCrossAttention).parameters.values()}
    config = FusionConfig()
    assert {name: defaults[name] for name in fields} == {name: getattr(config, name) for name in fields}


def test_every_option_reaches_the_module():
    config = FusionConfig(
        alignment="timestamps",
        neighbourhood_frames=2,
        neighbourhood_seconds=0.25,
        empty_frames="nearest",
        query_source="pre_projector",
        num_layers=3,
        num_heads=2,
        width=48,
        embed_width=20,
        share_key_value_projection=True,
        rope=True,
        dropout=0.3,
        gate=True,
    )
    module = build_fusion(config, side_width=9, llm_width=30, pre_projector_width=11)
    assert isinstance(module, TemporalAlignedCrossAttention)
    assert (module.side_width, module.llm_width, module.width, module.num_heads) == (9, 30, 48, 2)
    assert (module.alignment, module.neighbourhood_frames, module.neighbourhood_seconds) == ("timestamps", 2, 0.25)
    assert (module.empty_frames, module.query_source, module.rope) == ("nearest", "pre_projector", True)
    assert len(module.layers) == 3 and all(layer.value is None for layer in module.layers)
    assert module.side_embed.weight.shape == (20, 9) and module.query_embed.weight.shape == (48, 11)
    assert module.dropout.p == 0.3 and module.gate is not None
    assert module.reads_pre_projector and module.reads_frame_times and module.reads_question

    config = FusionConfig(
        alignment="index",
        query_source="learnable",
        num_frames=3,
        tokens_per_frame=5,
        width=30,
        num_heads=1,
        output_mlp=False,
        output_norm=False,
    )
    module = build_fusion(config, side_width=9, llm_width=30)
    assert module.query_table.shape == (3, 5, 30)
    assert module.output_mlp is None and module.output_norm is None and module.gate is None
    assert not (module.reads_pre_projector or module.reads_frame_times or module.reads_question)


@pytest.mark.parametrize(
    ("kind", "gate"), [("cross_attention", False), ("cross_attention", True), ("concat", False), ("interleave", False)]
)
def test_built_on_the_meta_device_without_memory(kind, gate):
    with torch.device("meta"):
        module = build_fusion(FusionConfig(kind=kind, gate=gate), side_width=1024, llm_width=3584)
    assert isinstance(module, FusionModule)
    assert all(p.is_meta for p in module.parameters())
    module.to_empty(device="cpu").reset_parameters()
    for p in module.parameters():
        assert torch.isfinite(p).all()


def test_reset_after_to_empty_is_a_fresh_identity():
    with torch.device("meta"):
        module = build_fusion(FusionConfig(gate=True, width=32), side_width=4, llm_width=8)
    module.to_empty(device="cpu")
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(torch.nan)
    module.reset_parameters()
    fresh = build_fusion(FusionConfig(gate=True, width=32), side_width=4, llm_width=8)
    for name, p in module.named_parameters():
        assert torch.isfinite(p).all(), name
        assert bool((p == 0).all()) == bool((fresh.get_parameter(name) == 0).all()), name


def test_baselines():
    concat = build_fusion(FusionConfig(kind="concat", width=12), side_width=4, llm_width=8)
    assert type(concat) is ConcatFusion and concat.hidden.weight.shape == (12, 4)
    inter = build_fusion(FusionConfig(kind="interleave", alignment="index"), side_width=4, llm_width=8)
    assert type(inter) is InterleaveFusion and not inter.reads_frame_times
    extra = inter(SideTokens(torch.zeros(1, 2, 1, 4)), torch.ones(1, 2, dtype=torch.bool))
    assert extra.after_frame_BX.tolist() == [[0, 1]]


def test_missing_pre_projector_features_are_refused():
    with pytest.raises(ValueError, match="exposes no features from before its projector; use query_source 'post_projector'"):
        build_fusion(FusionConfig(query_source="pre_projector"), side_width=4, llm_width=8)
