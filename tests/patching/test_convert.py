"""Reading the authors' fusion module: every option, and every mistake named."""

import copy
import logging

import pytest
import torch

from fusion.slow_reference import slow_residual
from pave.patching.convert import fusion_from_reference
from pave.patching.convert.reference_fusion import read_fusion

BASE = {
    "input_dim": 5,
    "output_dim": 12,
    "embed_dim": 7,
    "fast_input_mapping_type": "linear",
    "query_input_dim": 6,
    "cross_attn_hidden_dim": 16,
    "num_cross_attn_head": 2,
    "num_cross_attn_layer": 2,
    "use_3d_rope": False,
    "use_output_mlp": True,
    "use_dropout": False,
    "use_output_norm": True,
    "train_addition_start_end_tokens": False,
    "use_slow_feat_before_mlp": True,
}
LEARNABLE = {"query_type": "learnable", "chunks_number": 4, "number_of_query": 9, "query_input_dim": None}


def reference(**changes):
    """A config and random weights under the authors' names, written out from the description of their format."""
    config = {**BASE, **changes}
    C, E, D = config["input_dim"], config["output_dim"], config["cross_attn_hidden_dim"]
    embed, Q = config["embed_dim"], config["query_input_dim"]
    shapes = {"input_mapping.weight": (embed, C), "input_mapping.bias": (embed,)}
    if config.get("query_type") == "learnable":
        shapes["learnable_query"] = (config["chunks_number"], config["number_of_query"], D)
    else:
        shapes |= {"query_input_mapping.weight": (D, Q), "query_input_mapping.bias": (D,)}
    for i in range(config["num_cross_attn_layer"]):
        at = f"cross_attn_layers.{i}."
        for kind, width in (("q", D), ("k", embed), ("v", embed)):
            shapes |= {f"{at}attn.{kind}_linear.weight": (D, width), f"{at}attn.{kind}_linear.bias": (D,)}
        shapes |= {f"{at}ffn.0.weight": (D,), f"{at}ffn.0.bias": (D,)}
        shapes |= {f"{at}ffn.1.weight": (2 * D, D), f"{at}ffn.3.weight": (D, 2 * D)}
    if config["use_output_mlp"]:
        shapes |= {"output_mapping.0.weight": (2 * D, D), "output_mapping.0.bias": (2 * D,)}
        shapes |= {"output_mapping.2.weight": (E, 2 * D), "output_mapping.2.bias": (E,)}
    if config["use_output_norm"]:
        shapes |= {"output_norm.weight": (E,), "output_norm.bias": (E,)}
    if config["train_addition_start_end_tokens"]:
        shapes["start_end_tokens"] = (4, E)
    generator = torch.Generator().manual_seed(0)
    return config, {name: torch.randn(shape, generator=generator) * 0.4 for name, shape in shapes.items()}


def inputs(B, K, T, S, h=2, w=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, K, h, w, 5, generator=generator), torch.randn(B, T, S, 6, generator=generator)


CASES = {
    "published": ({}, (2, 2), 9),
    "three layers": ({"num_cross_attn_layer": 3}, (2, 2), 9),
    "rope": ({"use_3d_rope": True}, (2, 2), 9),
    "rope, more tokens in a step than in a frame": ({"use_3d_rope": True}, (3, 3), 4),
    "rope, head width 128": ({"use_3d_rope": True, "cross_attn_hidden_dim": 128, "num_cross_attn_head": 1}, (2, 2), 4),
    "steps of no square": ({}, (1, 3), 4),
    "no output mlp": ({"use_output_mlp": False, "output_dim": 16}, (2, 2), 4),
    "no output norm": ({"use_output_norm": False}, (2, 2), 4),
    "dropout": ({"use_dropout": True}, (2, 2), 4),
    "start and end tokens without output norm": (
        {"train_addition_start_end_tokens": True, "use_output_norm": False},
        (2, 2),
        4,
    ),
    "no output mlp, no output norm": ({"use_output_mlp": False, "use_output_norm": False, "output_dim": 16}, (2, 2), 4),
    "start and end tokens": ({"train_addition_start_end_tokens": True}, (2, 2), 4),
    "learnable": (LEARNABLE, (2, 2), 9),
    "learnable, rope": ({**LEARNABLE, "use_3d_rope": True}, (2, 2), 9),
}


@pytest.mark.parametrize("case", CASES)
def test_every_option_against_the_slow_reference(case):
    """Ragged lengths in one batch: more steps than frames, fewer, one, none."""
    changes, (h, w), S = CASES[case]
    config, weights = reference(**changes)
    module = fusion_from_reference(config, weights)
    T, lengths = 4, [10, 3, 1, 4, 0, 8]
    features, queries = inputs(len(lengths), 10, T, S, h, w)
    for b, length in enumerate(lengths):
        features[b, length:] = 1e3  # padding must not be read
    with torch.no_grad():
        got = module(features, lengths, None if "query_type" in changes else queries, T)
        as_tensor = module(features, torch.tensor(lengths), queries, T)
    assert got.shape == (len(lengths), T * S, config["output_dim"])
    assert torch.equal(got, as_tensor)
    for b, length in enumerate(lengths):
        side = features[b, :length].flatten(1, 2) if length else torch.zeros(0, h * w, 5)
        wanted = slow_residual(module.fusion, queries[b], side).flatten(0, 1)
        torch.testing.assert_close(got[b], wanted, atol=2e-5, rtol=1e-5)


def test_rope_takes_rows_and_columns_of_the_side_grid():
    config, weights = reference(use_3d_rope=True)
    module = fusion_from_reference(config, weights)
    features, queries = inputs(1, 8, 4, 9, 1, 4)
    row = module(features, [8], queries, 4)
    assert not torch.allclose(row, module(features.reshape(1, 8, 2, 2, 5), [8], queries, 4))
    assert not torch.allclose(row, module(features.reshape(1, 8, 4, 1, 5), [8], queries, 4))


@pytest.mark.parametrize("prefix", ["temporal_aggregator.", "base_model.model.model.temporal_aggregator."])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_prefix_and_16_bit_storage(prefix, dtype):
    config, weights = reference()
    stored = {prefix + name: tensor.to(dtype) for name, tensor in weights.items()}
    module = fusion_from_reference(config, stored)
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    features, queries = inputs(2, 6, 3, 4)
    plain = fusion_from_reference(config, {name: tensor.to(dtype).float() for name, tensor in weights.items()})
    got = module(features.to(dtype), [6, 5], queries.to(dtype), 3)
    assert got.dtype == torch.float32
    assert torch.equal(got, plain(features.to(dtype).float(), [6, 5], queries.to(dtype).float(), 3))


def test_weights_are_copied():
    config, weights = reference()
    before = copy.deepcopy(weights)
    module = fusion_from_reference(config, weights)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert all(torch.equal(weights[name], before[name]) for name in weights)


def test_value_weights_are_dropped_and_said_so(caplog):
    config, weights = reference()
    with caplog.at_level(logging.INFO):
        module = fusion_from_reference(config, weights)
    assert "cross_attn_layers.0.attn.v_linear.weight" in caplog.text
    kept = sum(t.numel() for name, t in weights.items() if "v_linear" not in name)
    assert sum(p.numel() for p in module.parameters()) == kept
    without = {name: t for name, t in weights.items() if "v_linear" not in name}
    features, queries = inputs(1, 6, 3, 4)
    assert torch.equal(module(features, [6], queries, 3), fusion_from_reference(config, without)(features, [6], queries, 3))


def test_sizes_are_read_off_the_weights_and_assumptions_are_said(caplog):
    config, weights = reference(num_cross_attn_head=4, num_cross_attn_layer=3)
    module = fusion_from_reference({}, weights)
    assert "num_cross_attn_head is not given; assuming 4" in caplog.text
    assert "use_3d_rope is not given; assuming False" in caplog.text
    features, queries = inputs(1, 6, 3, 4)
    assert torch.equal(module(features, [6], queries, 3), fusion_from_reference(config, weights)(features, [6], queries, 3))


@pytest.mark.parametrize("output_dim", [12, None])
def test_without_output_mlp_and_norm_the_queries_come_out_as_wide_as_they_are(output_dim, caplog):
    config, weights = reference(use_output_mlp=False, use_output_norm=False)
    module = fusion_from_reference({**config, "output_dim": output_dim}, weights)
    features, queries = inputs(1, 6, 3, 4)
    wanted = slow_residual(module.fusion, queries[0], features[0].flatten(1, 2)).flatten(0, 1)
    torch.testing.assert_close(module(features, [6], queries, 3)[0], wanted, atol=2e-5, rtol=1e-5)
    assert wanted.shape == (12, 16) and ("output_dim is not read" in caplog.text) == (output_dim == 12)


@pytest.mark.parametrize("shape", [(4, 9, 16), (1, 4, 9, 16), (36, 16), (1, 36, 16)])
def test_query_table_stored_flat(shape):
    config, weights = reference(**LEARNABLE)
    features, _ = inputs(1, 6, 4, 9)
    wanted = fusion_from_reference(config, weights)(features, [6], None, 4)
    weights["learnable_query"] = weights["learnable_query"].reshape(shape)
    assert torch.equal(fusion_from_reference(config, weights)(features, [6], None, 4), wanted)


def test_learnable_checkpoint_may_hold_a_query_mapping():
    config, weights = reference(**LEARNABLE)
    features, _ = inputs(1, 6, 4, 9)
    wanted = fusion_from_reference(config, weights)(features, [6], None, 4)
    weights |= {"query_input_mapping.weight": torch.randn(16, 6), "query_input_mapping.bias": torch.randn(16)}
    assert torch.equal(fusion_from_reference(config, weights)(features, [6], None, 4), wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": 3}, "unknown key 'hidden'"),
        ({"use_3d_rope": "yes"}, "use_3d_rope must be true or false, got 'yes'"),
        ({"input_dim": "24"}, "input_dim must be a whole number of at least 1, got '24'"),
        ({"num_cross_attn_layer": 0}, "num_cross_attn_layer must be a whole number of at least 1, got 0"),
        ({"embed_dim": True}, "embed_dim must be a whole number"),
        (
            {"mlp_depth": 3},
            "mlp_depth must be 2, got 3; with any other the released code builds an output MLP whose layers do not fit",
        ),
        ({"mlp_depth": True}, "mlp_depth must be 2, got True"),
        ({"dropout_rate": 1.0}, "dropout_rate must be a number from 0 to below 1, got 1.0"),
        ({"dropout_rate": "0.1"}, "dropout_rate must be a number from 0 to below 1, got '0.1'"),
        ({"fast_input_mapping_type": "conv"}, "fast_input_mapping_type must be 'linear', got 'conv'"),
        ({"num_cross_attn_head": 3}, r"width \(16\) must be a multiple of num_heads \(3\)"),
        ({"input_dim": 6}, r"input_mapping.weight has shape \(7, 5\), but the config asks for \(7, 6\)"),
        ({"output_dim": 13}, "output_mapping.2.weight has shape"),
        ({"num_cross_attn_layer": 3}, r"missing cross_attn_layers\.2\.attn\.k_linear\.bias"),
        ({"num_cross_attn_layer": 1}, r"unknown cross_attn_layers\.1\.attn\.k_linear\.bias"),
        ({"use_output_norm": False}, r"unknown output_norm\.bias, output_norm\.weight"),
        ({"train_addition_start_end_tokens": True}, "missing start_end_tokens"),
        ({**LEARNABLE}, "missing learnable_query"),
    ],
)
def test_config_that_does_not_fit_is_refused(change, message):
    config, weights = reference()
    with pytest.raises(ValueError, match=message):
        fusion_from_reference({**config, **change}, weights)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.pop("output_norm.bias"), r"missing output_norm\.bias"),
        (lambda w: w.pop("input_mapping.weight"), r"missing input_mapping\.weight"),
        (lambda w: w.update(extra=torch.zeros(1)), "unknown extra"),
        (lambda w: w.update(start_end_tokens=torch.zeros(4, 12)), "unknown start_end_tokens"),
        (lambda w: w.update(learnable_query=torch.zeros(4, 9, 16)), "unknown learnable_query"),
        (
            lambda w: w.update({"cross_attn_layers.0.attn.v_linear.weight": torch.zeros(16, 8)}),
            r"v_linear\.weight has shape \(16, 8\)",
        ),
        (
            lambda w: w.update({"cross_attn_layers.0.ffn.1.bias": torch.zeros(32)}),
            r"unknown cross_attn_layers\.0\.ffn\.1\.bias",
        ),
        (lambda w: w.update({"output_norm.weight": torch.zeros(12, 1)}), r"output_norm\.weight has shape \(12, 1\)"),
        (lambda w: w.update({"a.temporal_aggregator.x": torch.zeros(1)}), "several prefixes"),
    ],
)
def test_weights_that_do_not_fit_are_refused(edit, message):
    config, weights = reference()
    edit(weights)
    with pytest.raises(ValueError, match=message):
        fusion_from_reference(config, weights)


def test_calls_that_do_not_fit_are_refused():
    module = fusion_from_reference(*reference())
    features, queries = inputs(2, 6, 3, 4)
    for lengths in ([6], [6, 7], [6, -1]):
        with pytest.raises(ValueError, match="lengths must be 2 numbers of steps from 0 to 6"):
            module(features, lengths, queries, 3)
    with pytest.raises(ValueError, match=r"queries must have shape \(2 videos, 4 frames.*got \(2, 3, 4, 6\)"):
        module(features, [6, 6], queries, 4)
    with pytest.raises(ValueError, match="got none"):
        module(features, [6, 6], None, 3)
    with pytest.raises(ValueError, match="side features must have shape"):
        module(features[0], [6], queries[:1], 3)
    with pytest.raises(ValueError, match="table is for 4 x 9"):
        fusion_from_reference(*reference(**LEARNABLE))(features, [6, 6], None, 3)


@pytest.mark.parametrize(
    ("given", "dropout"),
    [
        ({"use_dropout": True, "dropout_rate": 0.25}, 0.25),
        ({"use_dropout": True, "dropout_rate": 0}, 0.0),
        ({"use_dropout": True}, 0.1),
        ({"use_dropout": False, "dropout_rate": 0.25}, 0.0),
        ({"use_dropout": None, "dropout_rate": 0.25}, 0.0),
    ],
)
def test_dropout_and_depth_are_read(given, dropout):
    """The constructor's arguments as somebody writes them down: the rate counts where dropout is used at all."""
    config, weights = reference()
    read = read_fusion({**config, "mlp_depth": 2, **given}, weights)
    assert read.config.dropout == dropout
    assert read.module.state_dict().keys() == read_fusion(config, weights).module.state_dict().keys()
