"""What the multiple-choice benchmarks share: letters, options, the strict rule and the letter rule of Video-MME's tools.

The answer of their samples is the letter, because that is what the prompts ask for and what a patch is trained to say; the
texts of the options are in ``meta["official"]["options"]``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pave.evaluation.benchmarks.files import Item
from pave.evaluation.metrics import choice_letter, parse_choice
from pave.evaluation.predictions import Prediction

_LETTERED = re.compile(r"^\s*\(?([A-Z])[.):]\s*(.*\S)\s*$")
# As lmms-eval had them before version 0.7 (and the paper's copy of it): two commas are missing in its list, so that the last two
# entries are each two phrases glued together, which no answer holds.
_PHRASES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option isThe correct option is",
    "Best answer:Best option:",
)


def options_of(item: Item, key: str) -> list[str]:
    """The options of an official item, without the letters in front of them and else as they are, blanks at their ends included. Null is
    the word None, as published prompts show it.

    Raises:
        ValueError: if there are fewer than 2 or more than 26, or one is neither text nor a number.
    """
    values = item.get(key, list)
    if not 2 <= len(values) <= 26:
        raise item.error(f"the field {key!r} must hold 2 to 26 options, got {len(values)}")
    for value in values:
        if not (value is None or isinstance(value, (str, int, float))):
            raise item.error(f"the field {key!r} must hold texts, got {value!r:.60}")
    texts = [str(value) for value in values]
    found = [_LETTERED.match(text) for text in texts]
    if all(match and match[1] == choice_letter(i) for i, match in enumerate(found)):
        return [match[2] for match in found if match]
    return texts


def letter_of(item: Item, options: Sequence[str], *, letters_first: bool = False) -> str:
    """The letter of the right option, which the item gives as a letter or as its text; ``letters_first`` says which of them an answer is
    that could be both."""
    answer = str(item.get("answer", (str, int, float))).strip()
    letter = answer.strip("().").upper()
    is_letter = len(letter) == 1 and letter in map(choice_letter, range(len(options)))
    texts = [option.strip() for option in options]
    if texts.count(answer) == 1 and not (is_letter and letters_first):
        return choice_letter(texts.index(answer))
    if is_letter:
        return letter
    raise item.error(f"the answer {answer!r} is none of the options {list(options)!r}, or several of them")


def names_the_right_option(prediction: Prediction, text: str) -> bool:
    """The strict rule: the whole answer is the right letter, the right text, or both (``parse_choice``). Of options with the same text each
    is right if one is."""
    options: list[str] = prediction.meta["official"]["options"]
    found = parse_choice(text, options, letters_first=True)
    if found is None:
        return False
    same = [
        i for i, option in enumerate(options) if i == found or (option.strip() and option.strip() == options[found].strip())
    ]
    return any(choice_letter(i) in prediction.references for i in same)


def first_letter(text: str, letters: str = "ABCD") -> str:
    """The letter rule of Video-MME's tools: drop lead-in phrases, then the first upper-case letter that is an option's.

    Empty if there is none; so "Best option: C" is B, and "Answer: C" is A.
    """
    text = text.strip()
    for phrase in _PHRASES:
        text = text.replace(phrase, "")
    found = re.search(f"[{letters}]", text)
    return found[0] if found else ""


def video_mme_prompt(question: str, options: Sequence[str]) -> str:
    """The prompt of the paper's evaluation (lmms-eval's of Video-MME), which speaks of subtitles although there are none."""
    return "\n".join(
        [
            "Select the best answer to the following multiple-choice question based on the video and the subtitles. Respond with only "
            "the letter (A, B, C, or D) of the correct option.",
            question,
            *(f"{choice_letter(i)}. {option}" for i, option in enumerate(options)),
            "Answer with the option's letter from the given choices directly.",
        ]
    )


def mvbench_prompt(question: str, options: Sequence[str]) -> str:
    """The prompt of MVBench's and MLVU's own tools, without the system sentence that their runners put before it."""
    lines = [f"({choice_letter(i)}) {option}" for i, option in enumerate(options)]
    asked = "\n".join([f"Question: {question}", "Options:", *lines]).rstrip()
    return f"{asked}\nOnly give the best option."
