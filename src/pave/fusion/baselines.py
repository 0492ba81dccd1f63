"""Baselines that hand the side tokens to the language model as further tokens, instead of fusing them into the video's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pave.fusion.base import ExtraTokens, TokenFusion
from pave.fusion.standardize import Standardize
from pave.fusion.temporal_alignment import Alignment, frame_intervals, time_order
from pave.tokens import SideTokens


class ConcatFusion(TokenFusion):
    """All side tokens, in time order, after the last frame of the video.

    Each token is mapped by linear C to D, GELU, linear D to E. The last linear starts with standard deviation 0.02, so
    that new tokens do not start out much larger than embedded text. A fresh baseline is no identity: it lengthens the
    prompt.

    Args:
        side_width: C.
        llm_width: E.
        width: D, the hidden width.
        standardize: see :class:`pave.fusion.standardize.Standardize`.
    """

    def __init__(self, *, side_width: int, llm_width: int, width: int = 256, standardize: bool = False) -> None:
        super().__init__()
        self.standardize = Standardize(side_width) if standardize else None
        self.side_width, self.llm_width = side_width, llm_width
        self.reads_frame_times = False
        self.hidden = nn.Linear(side_width, width)
        self.activation = nn.GELU()
        self.output = nn.Linear(width, llm_width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as described in the class's docstring."""
        nn.init.xavier_uniform_(self.hidden.weight)
        nn.init.normal_(self.output.weight, std=0.02)
        nn.init.zeros_(self.hidden.bias)
        nn.init.zeros_(self.output.bias)

    def forward(self, side: SideTokens, frame_valid_BT: Tensor, frame_times_BT: Tensor | None = None) -> ExtraTokens:
        """See :meth:`TokenFusion.forward`. X = K * M."""
        self._check_side(side, len(frame_valid_BT))
        dtype = self.hidden.weight.dtype
        side = self._prepared(side, dtype)
        B, _, M, _ = side.embeds_BKMC.shape
        order_BK = time_order(side.valid_BK, side.times_BK)
        valid_BK = side.valid_BK.gather(1, order_BK)
        features_BKMC = side.embeds_BKMC[torch.arange(B, device=side.device)[:, None], order_BK]
        embeds_BKME = self.output(self.activation(self.hidden(features_BKMC)))
        embeds_BKME = torch.where(valid_BK[:, :, None, None], embeds_BKME, 0.0).to(dtype)
        after_BK = self._after_frame(side, order_BK, frame_valid_BT, frame_times_BT)
        after_BK = torch.where(valid_BK, after_BK, _last_frame(frame_valid_BT))
        return ExtraTokens(
            embeds_BKME.flatten(1, 2), valid_BK.repeat_interleave(M, dim=1), after_BK.repeat_interleave(M, dim=1)
        )

    def _after_frame(self, side: SideTokens, order_BK: Tensor, frame_valid_BT: Tensor, frame_times_BT: Tensor | None) -> Tensor:
        """The frame after which each step goes, steps in time order, (B, K)."""
        return _last_frame(frame_valid_BT).expand_as(order_BK)


class InterleaveFusion(ConcatFusion):
    """Every side token after the frame it belongs to, in time order.

    The frame is the owner of the step by the rules of :mod:`pave.fusion.temporal_alignment`, except that no step is left
    out: what lies before the first interval goes after the first frame, what lies after the last one goes after the last
    frame. Under index alignment a stream of K < T steps is not resampled; step k goes after frame ``k * T // K``.

    Args:
        side_width, llm_width, width, standardize: as for :class:`ConcatFusion`.
        alignment: "timestamps" or "index".
    """

    def __init__(
        self,
        *,
        side_width: int,
        llm_width: int,
        width: int = 256,
        alignment: Alignment = "timestamps",
        standardize: bool = False,
    ) -> None:
        super().__init__(side_width=side_width, llm_width=llm_width, width=width, standardize=standardize)
        self.alignment = alignment
        self.reads_frame_times = alignment == "timestamps"

    def _after_frame(self, side: SideTokens, order_BK: Tensor, frame_valid_BT: Tensor, frame_times_BT: Tensor | None) -> Tensor:
        if self.alignment == "index":
            return _owner_by_index(side, order_BK, frame_valid_BT)
        if frame_times_BT is None or side.times_BK is None:
            what = "video frame" if frame_times_BT is None else "side step"
            raise ValueError(f"interleave with alignment 'timestamps' needs the time of every {what}; use alignment 'index'")
        return _owner_by_time(side.times_BK.gather(1, order_BK), frame_valid_BT, frame_times_BT.double())


def _last_frame(frame_valid_BT: Tensor) -> Tensor:
    """Index of the last valid frame of each video, (B, 1)."""
    index_T = torch.arange(frame_valid_BT.shape[1], device=frame_valid_BT.device)
    return (index_T * frame_valid_BT).amax(dim=1, keepdim=True)


def _frame_of_rank(rank_BK: Tensor, frame_valid_BT: Tensor) -> Tensor:
    """Index of the frame that is number ``rank`` among the valid frames of its video."""
    valid_first_BT = torch.argsort((~frame_valid_BT).byte(), dim=1, stable=True)
    last_B1 = (frame_valid_BT.sum(dim=1, keepdim=True) - 1).clamp(min=0)
    return valid_first_BT.gather(1, torch.minimum(rank_BK.clamp(min=0), last_B1))


def _owner_by_index(side: SideTokens, order_BK: Tensor, frame_valid_BT: Tensor) -> Tensor:
    place_BK = torch.arange(order_BK.shape[1], device=order_BK.device).expand_as(order_BK)
    steps_B1 = side.valid_BK.sum(dim=1, keepdim=True).clamp(min=1)
    frames_B1 = frame_valid_BT.sum(dim=1, keepdim=True).clamp(min=1)
    share_B1, remainder_B1 = (steps_B1 // frames_B1).clamp(min=1), steps_B1 % frames_B1
    large_B1 = remainder_B1 * (share_B1 + 1)  # the steps in the first chunks, which own one step more
    chunk_BK = torch.where(place_BK < large_B1, place_BK // (share_B1 + 1), remainder_B1 + (place_BK - large_B1) // share_B1)
    spread_BK = place_BK * frames_B1 // steps_B1
    return _frame_of_rank(torch.where(steps_B1 < frames_B1, spread_BK, chunk_BK), frame_valid_BT)


def _owner_by_time(steps_BK: Tensor, frame_valid_BT: Tensor, frame_times_BT: Tensor) -> Tensor:
    valid_first_BT = torch.argsort((~frame_valid_BT).byte(), dim=1, stable=True)
    times_BT = torch.where(frame_valid_BT, frame_times_BT, torch.inf).gather(1, valid_first_BT)
    if not bool(torch.isfinite(frame_times_BT)[frame_valid_BT].all()) or bool((times_BT.diff(dim=1) < 0).any()):
        raise ValueError("interleave: frame times must be finite and must not decrease; sort the frames by time")
    lower_BT, _ = frame_intervals(frame_valid_BT, frame_times_BT)
    lower_BT = torch.where(frame_valid_BT, lower_BT, torch.inf).sort(dim=1).values
    return _frame_of_rank(torch.searchsorted(lower_BT, steps_BK, right=True) - 1, frame_valid_BT)
