"""Side features at unit size: the numbers, and that both kinds of fusion use them."""

import numpy as np
import pytest
import torch

from pave.config import FusionConfig
from pave.fusion import Standardize, build_fusion
from pave.tokens import SideTokens, VideoTokens


def features(rows=200, seed=0):
    """A temperature near 300, a share near 0.01, and a column that never changes."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.normal(300, 2, rows), rng.normal(0.01, 0.002, rows), np.full(rows, 7.0)], axis=1).astype(np.float32)


def test_a_fresh_module_changes_nothing():
    x = torch.from_numpy(features())
    assert torch.equal(Standardize(3)(x), x)


def test_mean_and_deviation_are_those_of_numpy_without_rows_that_are_not_finite():
    x = features()
    module = Standardize(3)
    spoilt = np.concatenate([x, [[np.nan, 0, 0]], [[0, np.inf, 0]]]).astype(np.float32)
    module.measure(torch.from_numpy(spoilt))
    np.testing.assert_allclose(module.mean_C.numpy(), x.astype(np.float64).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(module.deviation_C.numpy()[:2], x.astype(np.float64).std(axis=0)[:2], rtol=1e-6)
    assert module.deviation_C[2] == 1
    out = module(torch.from_numpy(x))
    np.testing.assert_allclose(out.numpy(), (x - module.mean_C.numpy()) / module.deviation_C.numpy(), rtol=1e-6)
    assert (out[:, 2] == 0).all()


def test_a_constant_that_float32_cannot_average_exactly_still_counts_as_constant():
    module = Standardize(1)
    module.measure(torch.full((1001, 1), 0.1))
    assert module.deviation_C == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_features_of_16_bits_are_shifted_in_32(dtype):
    module = Standardize(1)
    module.mean_C.fill_(1000.5)
    out = module(torch.tensor([[1000.0]], dtype=dtype))
    assert out.dtype == torch.float32 and out.item() == -0.5


@pytest.mark.parametrize("kind", ["cross_attention", "concat", "interleave"])
def test_a_fusion_module_sees_standardised_features(kind):
    torch.manual_seed(0)
    plain = build_fusion(FusionConfig(kind=kind, width=16, embed_width=16), side_width=3, llm_width=8)
    own = build_fusion(FusionConfig(kind=kind, width=16, embed_width=16, standardize=True), side_width=3, llm_width=8)
    own.load_state_dict(plain.state_dict(), strict=False)
    if kind == "cross_attention":
        for module in (plain, own):
            torch.nn.init.ones_(module.output_norm.weight)  # a fresh residual is zero
    x = torch.from_numpy(features(5))[:, None]
    own.standardize.measure(torch.from_numpy(features()))
    raw = SideTokens.from_videos([x], [torch.arange(5.0)], width=3)
    ready = SideTokens.from_videos([own.standardize(x)], [torch.arange(5.0)], width=3)
    valid, times = torch.ones(1, 4, dtype=torch.bool), torch.arange(4.0, dtype=torch.float64)[None]
    if kind == "cross_attention":
        video = VideoTokens(torch.randn(1, 4, 2, 8), valid, times)
        found, wanted, untouched = own(video, raw), plain(video, ready), plain(video, raw)
    else:
        found, wanted, untouched = (m(s, valid, times).embeds_BXE for m, s in ((own, raw), (plain, ready), (plain, raw)))
    assert torch.equal(found, wanted) and not torch.allclose(found, untouched, rtol=0.1)


def test_a_step_that_is_not_finite_still_counts_as_missing():
    module = build_fusion(FusionConfig(width=16, embed_width=16, standardize=True), side_width=3, llm_width=8)
    torch.nn.init.ones_(module.output_norm.weight)
    x = torch.from_numpy(features(2))[:, None].clone()
    x[1, 0, 0] = torch.nan
    video = VideoTokens(
        torch.randn(1, 2, 2, 8), torch.ones(1, 2, dtype=torch.bool), torch.arange(2.0, dtype=torch.float64)[None]
    )
    residual = module(video, SideTokens.from_videos([x], [torch.arange(2.0)], width=3))
    assert (residual[0, 1] == 0).all() and (residual[0, 0] != 0).any()


@pytest.mark.parametrize(
    ("rows", "text"), [(torch.zeros(4, 2), "width 3"), (torch.full((4, 3), torch.nan), "no finite feature")]
)
def test_what_cannot_be_measured_is_refused(rows, text):
    with pytest.raises(ValueError, match=text):
        Standardize(3).measure(rows)
