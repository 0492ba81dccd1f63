"""What a fusion module is: the two ways in which a side channel can reach the language model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pave.fusion.standardize import Standardize
from pave.tokens import QuestionTokens, SideTokens, VideoTokens


class FusionModule(nn.Module, ABC):
    """A trainable module that brings one side channel to the language model.

    Attributes:
        side_width: C, the width of the side features it takes.
        llm_width: E, the width of what it returns.
        standardize: what brings the side features to unit size first; None where they are taken as they are.
    """

    side_width: int
    llm_width: int
    standardize: Standardize | None

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """All trainable parameters, each in exactly one group, for learning rates that differ.

        Groups: ``output_norm`` (the LayerNorm that keeps a fresh patch an identity; a larger rate takes training off the
        saddle at zero), ``gate``, and ``fusion`` (the rest). A group may be empty.
        """
        return {"output_norm": [], "gate": [], "fusion": list(self.parameters())}

    def _prepared(self, side: SideTokens, dtype: torch.dtype) -> SideTokens:
        """The tokens at unit size if that was asked for, in the dtype of the module; steps that are not finite count as missing."""
        embeds_BKMC = side.embeds_BKMC if self.standardize is None else self.standardize(side.embeds_BKMC)
        return SideTokens(embeds_BKMC.to(dtype), side.valid_BK, side.times_BK).without_nonfinite()

    def _check_side(self, side: SideTokens, videos: int) -> None:
        if side.width != self.side_width:
            raise ValueError(
                f"side channel: features are {side.width} wide, but the patch was built for width {self.side_width}; "
                "use the encoder that the patch's config names"
            )
        if len(side) != videos:
            raise ValueError(
                f"side channel: tokens of {len(side)} videos for a batch of {videos} videos; give one row per video"
            )


class ResidualFusion(FusionModule):
    """Gives a residual to add to the video tokens; their number does not change.

    Attributes:
        reads_frame_times: whether ``video.times_BT`` must be there.
        reads_pre_projector: whether ``video.pre_projector_BTSC`` must be there.
        reads_question: whether ``question`` must be there.
    """

    reads_frame_times: bool
    reads_pre_projector: bool
    reads_question: bool

    @abstractmethod
    def forward(self, video: VideoTokens, side: SideTokens, question: QuestionTokens | None = None) -> Tensor:
        """The residual (B, T, S, E), in the dtype of the module's parameters.

        It is exactly 0 at frames with no side step in reach, at padded frames, and for videos without the channel.
        Side steps that hold a NaN or an infinity count as missing.
        """


@dataclass(frozen=True)
class ExtraTokens:
    """Further tokens for the language model. X counts the tokens of the longest video of the batch.

    Attributes:
        embeds_BXE: the tokens of each video in time order; rows with fewer are padded with zeros at the end.
        valid_BX: True at real tokens.
        after_frame_BX: index of the frame after whose tokens each one goes; never decreases along a row.
    """

    embeds_BXE: Tensor
    valid_BX: Tensor
    after_frame_BX: Tensor


class TokenFusion(FusionModule):
    """Gives extra tokens that lengthen the prompt. They depend on frame times only, never on the video's content,
    because the prompt must be laid out before the video is encoded.

    Attributes:
        reads_frame_times: whether ``frame_times_BT`` must be given.
    """

    reads_frame_times: bool

    @abstractmethod
    def forward(self, side: SideTokens, frame_valid_BT: Tensor, frame_times_BT: Tensor | None = None) -> ExtraTokens:
        """The extra tokens. Side steps that hold a NaN or an infinity count as missing."""
