"""Text as it comes: what of a growing answer is certain, where it stops, and which rows of a batch are done."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from pave.inference.request import FinishReason, Sampling

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""How a tokenizer writes the first bytes of a character whose others are still to come."""

OnText = Callable[[int, str], None]
"""Takes the number of a row and the next piece of its answer."""


class RowTexts(StoppingCriteria):
    """Follows every row of a batch while it is generated: its tokens, its text, and whether it is done.

    Args:
        tokenizer: of the base.
        rows: how each row is generated.
        ends: tokens that end an answer.
        on_text: called with pieces of whole characters, which together are the answer's text.
        cancelled: asked before every step whether a row is not wanted any more.
    """

    def __init__(
        self,
        tokenizer: Any,
        rows: Sequence[Sampling],
        ends: Collection[int],
        on_text: OnText | None = None,
        cancelled: Callable[[int], bool] | None = None,
    ) -> None:
        self.rows = [Row(tokenizer, sampling, ends) for sampling in rows]
        self._sampled = any(sampling.temperature for sampling in rows)
        self._on_text = on_text
        self._cancelled = cancelled

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Take the newest token of every row, (rows, tokens so far); returns which rows are done, (rows,)."""
        for number, token in enumerate(input_ids[:, -1].tolist()):
            row = self.rows[number]
            if row.finish_reason is not None:
                continue
            if self._cancelled is not None and self._cancelled(number):
                row.finish_reason = "cancelled"
            else:
                row.put(token)
            if self._on_text is not None and (piece := row.new_text()):
                self._on_text(number, piece)
        return torch.tensor([row.finish_reason is not None for row in self.rows], device=input_ids.device)

    def check_beams(self) -> None:
        """Refuse rows that a beam search cannot follow.

        Raises:
            ValueError: if they were to be streamed, cancelled or sampled.
        """
        if self._on_text is not None or self._cancelled is not None or self._sampled:
            raise ValueError("num_beams: a beam search is neither streamed nor cancelled nor sampled; leave it out")

    def of_beams(self, tokens: Tensor) -> list[Row]:
        """The rows of a beam search from all their tokens."""
        for row, ids in zip(self.rows, tokens.tolist(), strict=True):
            for token in ids:
                if row.finish_reason is None:
                    row.put(token)
        return self.rows


class Row:
    """One growing answer.

    Args:
        tokenizer: of the base.
        sampling: its longest length and the texts it ends before.
        ends: tokens that end it.
    """

    def __init__(self, tokenizer: Any, sampling: Sampling, ends: Collection[int]) -> None:
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._ends = ends
        self._told = ""
        """What ``new_text`` has given."""

    def put(self, token: int) -> None:
        """Take the next token."""
        self.tokens.append(token)
        if token in self._ends or (self._sampling.stop and self._stops_at(self._raw()) is not None):
            self.finish_reason = "stop"
        elif len(self.tokens) >= self._sampling.max_new_tokens:
            self.finish_reason = "length"

    @property
    def text(self) -> str:
        """Of the answer so far."""
        raw = self._raw()
        return raw[: self._stops_at(raw)].rstrip()

    def new_text(self) -> str:
        """What is certain of the text and was not given yet; all of it once the answer is done."""
        if self.finish_reason is not None:
            certain = self.text
        else:
            raw = self._raw()
            certain = raw[: self._certain(raw)].rstrip()
        if not certain.startswith(self._told):
            return ""  # a tokenizer that writes earlier words anew when others follow
        piece = certain[len(self._told) :]
        self._told = certain
        return piece

    def _raw(self) -> str:
        """White space before an answer is no part of it."""
        return str(self._tokenizer.decode(self.tokens, skip_special_tokens=True)).lstrip()

    def _stops_at(self, raw: str) -> int | None:
        places = [place for stop in self._sampling.stop if (place := raw.find(stop)) >= 0]
        return min(places, default=None)

    def _certain(self, raw: str) -> int:
        """How much of the text cannot change any more: no bytes of a character to come, and nothing that may begin a stop."""
        end = len(raw.rstrip(_INCOMPLETE))
        longest = max((len(stop) for stop in self._sampling.stop), default=1) - 1
        for place in range(max(0, end - longest), end):
            if any(stop.startswith(raw[place:end]) for stop in self._sampling.stop):
                return place
        return end
