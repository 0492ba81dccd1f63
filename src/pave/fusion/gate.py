"""An instruction-aware gate: how much of a channel's residual a video token takes, given the question."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pave.tokens import QuestionTokens


class InstructionGate(nn.Module):
    """One scalar in (0, 2) for each video token: ``2 * sigmoid(MLP(mean of the prompt's embeddings, fused token))``.

    The last linear starts at zero, so a fresh gate is exactly 1. Both inputs are normalised without parameters first,
    because the scale of prompt embeddings differs by orders of magnitude between language models. The idea of gating a
    side channel by the question is that of arXiv 2605.26232; this form is our own.

    Args:
        llm_width: E, the width of the prompt's embeddings.
        width: D, the width of the fused tokens.
        bottleneck: hidden width of the MLP.
    """

    def __init__(self, llm_width: int, width: int, bottleneck: int = 64) -> None:
        super().__init__()
        self.from_question = nn.Linear(llm_width, bottleneck)
        self.from_token = nn.Linear(width, bottleneck, bias=False)
        self.to_scalar = nn.Linear(bottleneck, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start at exactly 1."""
        nn.init.xavier_uniform_(self.from_question.weight)
        nn.init.zeros_(self.from_question.bias)
        nn.init.xavier_uniform_(self.from_token.weight)
        nn.init.zeros_(self.to_scalar.weight)
        nn.init.zeros_(self.to_scalar.bias)

    def forward(self, token_BTSD: Tensor, question: QuestionTokens) -> Tensor:
        """The gate, (B, T, S, 1). A video whose prompt has no text is gated by its tokens alone.

        Args:
            token_BTSD: the fused tokens.
            question: the prompt of each video.
        """
        valid_BL1 = question.valid_BL[:, :, None]
        embeds_BLE = question.embeds_BLE.to(self.from_question.weight.dtype)
        total_BE = torch.where(valid_BL1, embeds_BLE, 0.0).sum(dim=1)
        mean_BE = total_BE / valid_BL1.sum(dim=1).clamp(min=1)
        question_BD = self.from_question(F.layer_norm(mean_BE, mean_BE.shape[-1:]))
        token_BTSD = self.from_token(F.layer_norm(token_BTSD, token_BTSD.shape[-1:]))
        return 2 * torch.sigmoid(self.to_scalar(F.gelu(token_BTSD + question_BD[:, None, None])))
