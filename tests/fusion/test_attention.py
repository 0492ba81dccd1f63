"""Windowed attention against one dense softmax with everything outside the window masked."""

import pytest
import torch

from pave.fusion.attention import group_frames, windowed_attention, windowed_attention_weights
from pave.fusion.temporal_alignment import Resampled, Windows

N, H, S, M = 2, 3, 4, 2
D = N * H


def windows(starts, lengths, K):
    order = torch.stack([torch.randperm(K, generator=torch.Generator().manual_seed(b)) for b in range(len(starts))])
    return Windows(order, torch.tensor(starts), torch.tensor(lengths))


def dense(query, key, value, windows):
    """(B, T, S, D): softmax over all tokens of the video, minus infinity outside the window."""
    out = torch.zeros_like(query)
    for b in range(query.shape[0]):
        for t in range(query.shape[1]):
            start, length = int(windows.start_BT[b, t]), int(windows.length_BT[b, t])
            inside = torch.zeros(key.shape[1], dtype=torch.bool)
            inside[windows.order_BK[b, start : start + length]] = True
            for h in range(N):
                part = slice(h * H, (h + 1) * H)
                scores = query[b, t, :, part] @ key[b].flatten(0, 1)[:, part].T / H**0.5
                scores[:, ~inside.repeat_interleave(M)] = -torch.inf
                out[b, t, :, part] = scores.softmax(-1) @ value[b].flatten(0, 1)[:, part]
    return out


def tensors(B, T, K, requires_grad=False):
    generator = torch.Generator().manual_seed(5)

    def make(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(requires_grad)

    return make(B, T, S, D), make(B, K, M, D), make(B, K, M, D)


CASES = {
    "equal lengths, no mask": (windows([[0, 2], [2, 0]], [[2, 2], [2, 2]], 4), 1, True),
    "ragged, one group": (windows([[0, 3], [1, 2]], [[3, 2], [2, 3]], 5), 1, False),
    "one long window, groups": (windows([[0, 0, 3, 5], [1, 2, 3, 0]], [[17, 1, 1, 1], [1, 1, 2, 3]], 17), 3, False),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_dense_attention(case):
    plan, count, unmasked = CASES[case]
    B, T = plan.start_BT.shape
    query, key, value = tensors(B, T, plan.order_BK.shape[1])
    groups = group_frames(plan)
    assert len(groups) == count
    assert (groups[0].mask_FW is None) == (unmasked or count > 1)
    torch.testing.assert_close(windowed_attention(query, key, value, groups, N), dense(query, key, value, plan))
    torch.testing.assert_close(windowed_attention(query, key, key, groups, N), dense(query, key, key, plan))


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_of_the_attention(case):
    plan, _, _ = CASES[case]
    B, T = plan.start_BT.shape
    query, key, value = tensors(B, T, plan.order_BK.shape[1])
    groups = group_frames(plan)
    weights = windowed_attention_weights(query, key, groups, N)
    assert weights.shape == (B, T, N, S, key.shape[1], M)
    torch.testing.assert_close(weights.sum(dim=(-1, -2)), torch.ones(B, T, N, S, dtype=torch.float64))
    used = torch.einsum("btnskm,bkmnh->btsnh", weights, value.unflatten(-1, (N, H))).flatten(-2)
    torch.testing.assert_close(used, windowed_attention(query, key, value, groups, N))


def test_cost_stays_within_twice_the_windows():
    """One video of a single frame that owns 600 steps must not make 32 short windows 600 wide."""
    lengths = torch.cat([torch.full((1, 32), 18), torch.tensor([[600] + [0] * 31])])
    plan = Windows(torch.arange(600).expand(2, 600), torch.zeros(2, 32, dtype=torch.long), lengths)
    padded = sum(group.steps_FW.numel() for group in group_frames(plan))
    assert padded <= 2 * int(lengths.clamp(min=1).sum())


def test_empty_windows_give_no_nan_forward_or_backward():
    plan = windows([[0, 4, 2]], [[2, 0, 2]], 4)
    query, key, value = tensors(1, 3, 4, requires_grad=True)
    out = windowed_attention(query, key, value, group_frames(plan), N)
    assert torch.isfinite(out).all()
    torch.where((plan.length_BT > 0)[:, :, None, None], out, 0.0).sum().backward()
    for tensor in (query, key, value):
        assert torch.isfinite(tensor.grad).all()
    assert (query.grad[:, 1] == 0).all()


def test_all_windows_empty():
    plan = windows([[0, 0]], [[0, 0]], 1)
    query, key, value = tensors(1, 2, 1)
    assert torch.isfinite(windowed_attention(query, key, value, group_frames(plan), N)).all()


def test_resampled_steps_stand_after_the_side_steps():
    made = Resampled(torch.zeros(2, 3).long(), torch.zeros(2, 3).long(), torch.zeros(2, 3))
    plan = Windows(torch.tensor([[1, 0], [0, 1]]), torch.zeros(2, 3).long(), torch.ones(2, 3).long(), made)
    assert plan.readable_BR().tolist() == [[1, 0, 2, 3, 4], [0, 1, 2, 3, 4]]
