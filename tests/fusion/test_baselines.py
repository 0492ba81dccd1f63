"""Concat and interleave: which tokens, in which order, after which frame."""

import pytest
import torch

from pave.fusion import ConcatFusion, InterleaveFusion
from pave.tokens import SideTokens


def side_of(*videos):
    """One (times, features) per video; the features of a step are its first time, so order can be read off."""
    return SideTokens.from_videos(
        [None if times is None else torch.tensor(times)[:, None, None] * torch.ones(1, 2, 3) for times in videos],
        [None if times is None else torch.tensor(times) for times in videos],
        width=3,
        tokens_per_step=2,
    )


def frames(*rows):
    valid = torch.tensor([[t is not None for t in row] for row in rows])
    return valid, torch.tensor([[torch.nan if t is None else t for t in row] for row in rows], dtype=torch.float64)


def by_hand(module, x):
    x = torch.nn.functional.gelu(x @ module.hidden.weight.T + module.hidden.bias)
    return x @ module.output.weight.T + module.output.bias


def test_concat_puts_all_steps_in_time_order_after_the_last_frame():
    module = ConcatFusion(side_width=3, llm_width=7, width=5)
    torch.nn.init.ones_(module.output.bias)  # padding must be zero for a trained module too
    valid, times = frames([0.0, 1.0, 2.0], [0.0, 1.0, None], [0.0, None, None])
    extra = module(side_of([3.0, 1.0, 2.0], [5.0], None), valid, times)
    assert extra.embeds_BXE.shape == (3, 6, 7)
    assert extra.valid_BX.tolist() == [[True] * 6, [True] * 2 + [False] * 4, [False] * 6]
    assert extra.after_frame_BX.tolist() == [[2] * 6, [1] * 6, [0] * 6]
    for place, time in enumerate([1.0, 1.0, 2.0, 2.0, 3.0, 3.0]):
        torch.testing.assert_close(extra.embeds_BXE[0, place], by_hand(module, torch.full((3,), time)))
    assert (extra.embeds_BXE[~extra.valid_BX] == 0).all()
    assert not module.reads_frame_times
    assert torch.equal(module(side_of([3.0, 1.0, 2.0], [5.0], None), valid).after_frame_BX, extra.after_frame_BX)


def test_interleave_puts_each_step_after_the_frame_that_owns_it_and_leaves_none_out():
    module = InterleaveFusion(side_width=3, llm_width=7, width=5)
    valid, times = frames([0.0, 2.0, 4.0], [1.0, None, None], [1.0, 3.0, 3.0])
    extra = module(side_of([9.0, 1.0, -7.0, 0.9, 2.5], [0.0, 5.0], [0.0, 2.0, 8.0]), valid, times)
    # steps of video 0 in time order: -7, 0.9 | 1.0, 2.5 | 9
    assert extra.after_frame_BX[0, ::2].tolist() == [0, 0, 1, 1, 2]
    torch.testing.assert_close(extra.embeds_BXE[0, 0], extra.embeds_BXE[0, 1])
    torch.testing.assert_close(extra.embeds_BXE[0, 2], by_hand(module, torch.full((3,), 0.9)))
    assert extra.after_frame_BX[1, ::2].tolist() == [0] * 5
    assert extra.valid_BX[1, ::2].tolist() == [True, True, False, False, False]
    assert extra.after_frame_BX[2, ::2].tolist() == [0, 2, 2, 2, 2]  # of two frames of equal time, the last


def test_interleave_by_index_follows_the_chunks():
    module = InterleaveFusion(side_width=3, llm_width=7, width=5, alignment="index")
    valid = torch.tensor([[True] * 4, [True, True, True, True], [True, False, True, False]])
    side = side_of([float(k) for k in range(10)], [0.0, 1.0], [0.0, 1.0, 2.0])
    extra = module(side, valid)
    assert extra.after_frame_BX[0, ::2].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3]
    assert extra.after_frame_BX[1, ::2].tolist()[:2] == [0, 2]
    assert extra.after_frame_BX[2, ::2].tolist()[:3] == [0, 0, 2]


@pytest.mark.parametrize("kind", [ConcatFusion, InterleaveFusion])
def test_steps_that_are_not_finite_count_as_missing(kind):
    module = kind(side_width=3, llm_width=7, width=5)
    valid, times = frames([0.0, 1.0])
    side = side_of([0.0, 1.0, 2.0])
    side.embeds_BKMC[0, 1, 0, 0] = torch.inf
    extra, without = module(side, valid, times), module(side_of([0.0, 2.0]), valid, times)
    assert extra.valid_BX.tolist() == [[True] * 4 + [False] * 2]
    assert torch.equal(extra.embeds_BXE[:, :4], without.embeds_BXE)
    assert torch.equal(extra.after_frame_BX[:, :4], without.after_frame_BX)
    assert torch.isfinite(extra.embeds_BXE).all()


@pytest.mark.parametrize("kind", [ConcatFusion, InterleaveFusion])
def test_batch_without_the_channel(kind):
    valid, times = frames([0.0, 1.0], [0.0, 1.0])
    extra = kind(side_width=3, llm_width=7)(side_of(None, None), valid, times)
    assert extra.embeds_BXE.shape == (2, 0, 7) and extra.valid_BX.shape == (2, 0) and extra.after_frame_BX.shape == (2, 0)


def test_parameter_groups_are_complete():
    module = ConcatFusion(side_width=3, llm_width=7)
    groups = module.parameter_groups()
    assert not groups["output_norm"] and not groups["gate"]
    assert [id(p) for p in groups["fusion"]] == [id(p) for p in module.parameters()]


def test_gradients_reach_every_parameter_and_low_precision_works():
    module = InterleaveFusion(side_width=3, llm_width=7)
    valid, times = frames([0.0, 1.0])
    module(side_of([0.5, 1.0]), valid, times).embeds_BXE.square().sum().backward()
    assert all((p.grad != 0).any() for p in module.parameters())
    low = module.to(torch.bfloat16)(side_of([0.5, 1.0]), valid, times)
    assert low.embeds_BXE.dtype == torch.bfloat16


def test_times_that_do_not_fit_are_refused():
    module = InterleaveFusion(side_width=3, llm_width=7)
    valid, times = frames([0.0, 1.0])
    with pytest.raises(ValueError, match=r"every video frame.*alignment 'index'"):
        module(side_of([0.0]), valid)
    with pytest.raises(ValueError, match="every side step"):
        module(SideTokens(torch.zeros(1, 1, 2, 3)), valid, times)
    with pytest.raises(ValueError, match="must not decrease"):
        module(side_of([0.0]), valid, times.flip(1))
    with pytest.raises(ValueError, match="features are 4 wide, but the patch was built for width 3"):
        module(SideTokens(torch.zeros(1, 1, 2, 4), times_BK=torch.zeros(1, 1)), valid, times)
