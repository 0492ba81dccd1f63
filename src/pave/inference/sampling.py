"""Drawing tokens row by row, each row by its own settings and its own random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from pave.inference.request import Sampling


class RowSampler(LogitsProcessor):
    """Leaves each row that is sampled one token, the drawn one, so that greedy decoding takes it.

    A row draws one random number a step from a generator of its own, so what it draws does not depend on the rows beside it.

    Args:
        rows: how each row of the batch is generated.
    """

    def __init__(self, rows: Sequence[Sampling]) -> None:
        self._rows = rows
        self._generators = [torch.Generator() for _ in rows]
        for row, generator in zip(rows, self._generators, strict=True):
            generator.manual_seed(int(torch.randint(2**63 - 1, ())) if row.seed is None else row.seed)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The logits (rows, vocabulary) with -inf at all but the drawn token of rows that are sampled."""
        out = scores.clone()
        for row, (sampling, generator) in enumerate(zip(self._rows, self._generators, strict=True)):
            if sampling.temperature:
                token = draw(scores[row], sampling, float(torch.rand((), dtype=torch.float64, generator=generator)))
                out[row] = float("-inf")
                out[row, token] = 0.0
        return out


def draw(logits_V: Tensor, sampling: Sampling, uniform: float) -> int:
    """The token at which the probabilities, largest first, add up to more than ``uniform``.

    Args:
        logits_V: of every token.
        sampling: temperature above 0, top_k and top_p; top_k cuts first.
        uniform: from 0 up to 1.
    """
    count = min(sampling.top_k or len(logits_V), len(logits_V))
    order = torch.sort(logits_V.float() / sampling.temperature, descending=True, stable=True)
    probability = order.values[:count].softmax(dim=0).double().cpu()
    before = probability.cumsum(dim=0) - probability
    probability = probability[before < sampling.top_p]  # the first one always stays
    total = probability.cumsum(dim=0)
    place = int(torch.searchsorted(total, uniform * float(total[-1]), right=True))
    return int(order.indices[min(place, len(total) - 1)])
