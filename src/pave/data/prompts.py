"""The text of a conversation, the same at training and at inference, and where the answers stand in it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Prompt:
    """A conversation as the base's chat template writes it, with one placeholder for the video."""

    text: str
    answers: tuple[tuple[int, int], ...]
    """Per answered turn the characters (start, end) of the answer and its end-of-turn token: what is learnt."""
    turns: tuple[tuple[int, int], ...] = ()
    """The same for the whole turn: the header before the answer, and all that the template writes behind it."""


def render_prompt(processor: Any, turns: Sequence[tuple[str, str | None]]) -> Prompt:
    """Write a conversation about one video with the chat template of ``processor``.

    An answer always follows the template's own generation prompt, so that a model is trained on exactly the text that it later
    continues. Where a template writes answered turns otherwise (the published one of LLaVA-OneVision has a blank after
    ``assistant`` in an answered turn, none in its generation prompt), the generation prompt wins; elsewhere the text equals
    the template's rendering of the whole conversation.

    Args:
        processor: a processor with a chat template.
        turns: (question, answer) pairs, the video before the first question. The last answer may be None: the text then
            ends with the generation prompt. White space around an answer is removed.

    Raises:
        ValueError: if there is no turn, an answer is empty or missing before the last turn, or the template rewrites
            earlier turns so that no training text can match what generation sees.
    """
    if not turns:
        raise ValueError("the conversation has no turn")
    messages: list[dict[str, Any]] = []
    text = ""
    answers: list[tuple[int, int]] = []
    whole_turns: list[tuple[int, int]] = []
    for number, (question, answer) in enumerate(turns):
        history = _render(processor, messages) if messages else ""
        content: list[dict[str, str]] = [{"type": "text", "text": question}]
        messages.append({"role": "user", "content": content if number else [{"type": "video"}, *content]})
        prompt = _render(processor, messages, add_generation_prompt=True)
        text += _after(history, prompt, "the turns before a question")
        if answer is None:
            if number + 1 < len(turns):
                raise ValueError(f"turn {number + 1} of {len(turns)} has no answer; only the last one may lack it")
            break
        answer = answer.strip()
        if not answer:
            raise ValueError(f"the answer of turn {number + 1} is empty")
        asked = _render(processor, messages)
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        whole = _render(processor, messages)
        if whole.startswith(prompt):
            tail = whole[len(prompt) :]
        else:
            turn = _after(asked, whole, "a question before its answer")
            tail = answer + _behind(processor, messages, asked, answer)
            if not turn.endswith(tail):
                raise ValueError(f"the chat template does not write the answer {answer[:60]!r} as it is")
        header = len(_after(asked, prompt, "a question before its answer"))
        whole_turns.append((len(text) - header, len(text) + len(tail)))
        answers.append((len(text), len(text) + len(tail.rstrip())))
        text += tail
    return Prompt(text, tuple(answers), tuple(whole_turns))


def _render(processor: Any, messages: list[dict[str, Any]], add_generation_prompt: bool = False) -> str:
    # a copy, because apply_chat_template changes the messages it is given
    return str(
        processor.apply_chat_template(copy.deepcopy(messages), tokenize=False, add_generation_prompt=add_generation_prompt)
    )


def _behind(processor: Any, messages: list[dict[str, Any]], asked: str, answer: str) -> str:
    """What the template writes behind the answer that ends ``messages``.

    The same turn is written with an answer that is in no template: "end" is also a part of ``<|im_end|>``.
    """
    stand_in = f"\N{SNOWMAN}{answer}\N{SNOWMAN}"
    copies = [*messages[:-1], {"role": "assistant", "content": [{"type": "text", "text": stand_in}]}]
    _, found, behind = _after(asked, _render(processor, copies), "a question before its answer").rpartition(stand_in)
    if not found:
        raise ValueError(f"the chat template does not write the answer {answer[:60]!r} as it is")
    return behind


def _after(prefix: str, text: str, what: str) -> str:
    if not text.startswith(prefix):
        raise ValueError(
            f"the chat template rewrites {what} (it writes {prefix[-60:]!r} first and {text[: len(prefix)][-60:]!r} later), so "
            "training and generation would see different texts; use a template that only appends, or one turn per sample"
        )
    return text[len(prefix) :]
