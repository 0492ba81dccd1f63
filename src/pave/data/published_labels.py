"""Which tokens of a conversation the authors' code learns from (``data.labels: published``).

All of the assistant's turns are targets, with the header ``<|im_start|>assistant`` and the newline behind each. Besides, every token
``<|im_start|>``, ``<|im_end|>`` and newline is one wherever it stands in the text of the other turns. Answers and their end-of-turn
tokens, which are learnt here by default, are a part of that: on four conversations as the authors' code writes them, with its system
turn, 63 of 163.
"""

from __future__ import annotations

from typing import Any

from pave.data.prompts import Prompt

_MARKS = ("<|im_start|>", "<|im_end|>")


def published_targets(tokenizer: Any, prompt: Prompt, row_ids: list[int]) -> list[int]:
    """Places in ``row_ids`` that are learnt.

    Args:
        tokenizer: of the base, fast.
        prompt: the text of the row, in which a placeholder stands for the video.
        row_ids: the row as the processor has made it, the video's tokens in place of the placeholder.

    Raises:
        ValueError: if the tokenizer writes turns otherwise, with no such tokens.
    """
    marks = {tokenizer.convert_tokens_to_ids(mark) for mark in _MARKS} - {None, tokenizer.unk_token_id}
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    if len(marks) != len(_MARKS) or len(newline) != 1:
        raise ValueError(
            f"labels 'published' are told by the tokens {', '.join(_MARKS)} and a newline, which the base's tokenizer does not have; set "
            "data.labels to answers"
        )
    everywhere = marks | set(newline)
    encoded = tokenizer(prompt.text, return_offsets_mapping=True)
    text_ids: list[int] = encoded["input_ids"]
    chosen = [
        place
        for place, (token, (start, end)) in enumerate(zip(text_ids, encoded["offset_mapping"], strict=True))
        if token in everywhere or any(end > start and first <= start and end <= last for first, last in prompt.turns)
    ]
    before = _common(text_ids, row_ids)
    behind = _common(text_ids[::-1], row_ids[::-1])
    longer = len(row_ids) - len(text_ids)
    # what the processor has put in place of the placeholder is no text
    return [
        place if place < before else place + longer for place in chosen if place < before or place >= len(text_ids) - behind
    ]


def _common(one: list[int], other: list[int]) -> int:
    """How many items two lists have in common at their beginning."""
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
