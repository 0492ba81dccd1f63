"""The containers that flow into a fusion module."""

import pytest
import torch

from pave import SideTokens


def test_videos_are_padded_and_their_dtypes_widened():
    """A first video in half precision does not round those that follow."""
    fine = torch.tensor([[[1 + 2.0**-20]], [[3.0]]])
    side = SideTokens.from_videos([torch.ones(1, 1).half(), None, fine], [torch.zeros(1), None, torch.tensor([5, 6])])
    assert side.embeds_BKMC.dtype == torch.float32 and side.embeds_BKMC.shape == (3, 2, 1, 1)
    assert torch.equal(side.embeds_BKMC[2], fine)
    assert side.valid_BK.tolist() == [[True, False], [False, False], [True, True]]
    assert side.times_BK.dtype == torch.float64 and side.times_BK[2].tolist() == [5.0, 6.0]
    assert side.present_B().tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("embeds", "times", "message"),
    [
        ([torch.ones(3)], [torch.ones(3)], r"video 0 has features of shape \(3,\)"),
        ([torch.ones(3, 1, 2, 2)], [torch.ones(3)], "video 0 has features of shape"),
        ([torch.ones(3, 2)], [torch.ones(2)], "video 0 has 3 steps but 2 times"),
        ([torch.ones(3, 2)], [None], "video 0 has 3 steps but none times"),
        ([torch.ones(3, 2), torch.ones(3, 4)], [torch.ones(3)] * 2, "videos disagree in"),
        ([None], [None], "no video has the channel, so its width must be given"),
        ([torch.ones(3, 2)], [], "1 feature tensors but 0 time tensors"),
        ([torch.ones(3, 2)], [torch.tensor([0.0, float("nan"), 1.0])], "a time that is not finite at a valid step"),
    ],
)
def test_videos_that_do_not_fit_are_refused(embeds, times, message):
    with pytest.raises(ValueError, match=message):
        SideTokens.from_videos(embeds, times)
