"""Is an answer right? Two rules, both strict: no substring hits, no first-letter guesses, nothing for an empty answer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

# fmt: off
_NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)
# fmt: on
_NUMBERS = {word: str(value) for value, word in enumerate(_NUMBER_WORDS)}
_ARTICLES = frozenset({"a", "an", "the"})
_LEAD_IN = re.compile(
    r"^(?:so|therefore|thus)?[\s,]*(?:the\s+)?(?:best|correct|right|final)?\s*(?:answer|option|choice)\s*"
    r"(?:(?:is|would be)\b\s*:?|:)\s*",
    re.IGNORECASE,
)
_LETTER_ALONE = re.compile(r"^\(?([A-Za-z])[).:]?$|^\[([A-Za-z])\]$")
_LETTER_THEN_TEXT = re.compile(r"^(?:\(([A-Z])\)|\[([A-Z])\]|([A-Z])[).:])\s*(.+)$", re.DOTALL)


def normalize_answer(text: str) -> str:
    """The form in which two answers are compared.

    1. Unicode NFKC (full-width letters become ordinary ones), then case folding.
    2. Every word loses the punctuation around it, not inside it: ``"(bell)."`` becomes ``bell``, ``x-ray`` stays. A sign or
       point before a digit stays, so that ``-3`` is not ``3`` and ``.5`` is not ``5``. Words left empty vanish.
    3. The articles a, an and the are dropped, unless nothing else is there. With punctuation after it an ``A`` is a letter
       of a list, as in ``A. bell``, and stays.
    4. The words zero to twenty become digits.
    5. One space between words.
    """
    raw = unicodedata.normalize("NFKC", text).casefold().split()
    bare = [(_bare(word), word) for word in raw]
    words = [word for word, _ in bare if word]
    without_articles = [word for word, whole in bare if word and not (word in _ARTICLES and whole.endswith(word))]
    return " ".join(_NUMBERS.get(word, word) for word in without_articles or words)


def _bare(word: str) -> str:
    """``word`` without the punctuation around it."""
    start, end = 0, len(word)
    while end > start and unicodedata.category(word[end - 1]).startswith("P"):
        end -= 1
    while start < end and unicodedata.category(word[start]).startswith("P"):
        if word[start] in "-." and word[start + 1 : start + 2].isdigit():
            break
        start += 1
    return word[start:end]


def exact_match(prediction: str, accepted: str | Sequence[str]) -> bool:
    """True if the normalised prediction equals one of the normalised accepted answers. An empty prediction is never right.

    Raises:
        ValueError: if there is no accepted answer, or one that is empty after normalisation.
    """
    answers = [accepted] if isinstance(accepted, str) else list(accepted)
    normal = [normalize_answer(answer) for answer in answers]
    if not normal or not all(normal):
        raise ValueError(f"exact_match: every accepted answer must hold a letter or a digit, got {answers!r}")
    return normalize_answer(prediction) in normal


def choice_letter(index: int) -> str:
    """0 is A, 1 is B, ..."""
    return chr(ord("A") + index)


def parse_choice(prediction: str, choices: Sequence[str], *, letters_first: bool = False) -> int | None:
    """Which choice a generated answer names, or None if it names none or is contradictory.

    After an optional lead-in ("The best answer is:", "Option:", ...) the whole rest must be one of

    - the text of a choice (compared by ``normalize_answer``; where two different ones read the same, only a letter tells them apart; of
      equal ones it names the first),
    - its letter: ``B``, ``b``, ``(B)``, ``[B]``, ``B.``, ``B)``, ``B:``,
    - letter and text: ``B. red circle``, ``(B) red circle``, where both must mean the same choice.

    Longer sentences are not searched for letters or texts: "A dog barks" does not name choice A, and an answer that lists
    all the choices names none.

    Args:
        prediction: what was generated.
        choices: their texts.
        letters_first: where choices are letters themselves (``["c", "a", "e"]``), ``A`` and ``(A)`` name the first choice and only a small
            ``a`` alone the text; for prompts that ask for the letter. By default the text comes first.

    Raises:
        ValueError: if there are fewer than 2 or more than 26 choices.
    """
    if not 2 <= len(choices) <= 26:
        raise ValueError(f"multiple choice needs 2 to 26 choices, got {len(choices)}: {list(choices)!r}")
    normal = [normalize_answer(choice) for choice in choices]
    texts = [choice.strip() for choice in choices]
    alone = {
        name for name in normal if name and len({text for text, one in zip(texts, normal, strict=True) if one == name}) == 1
    }
    # single blanks: over a long run of them the pattern of the lead-in takes quadratic time
    text = " ".join(unicodedata.normalize("NFKC", prediction).split())
    for candidate in dict.fromkeys((text, _LEAD_IN.sub("", text, count=1).strip())):
        found = _named_choice(candidate, normal, alone, letters_first)
        if found is not None:
            return found
    return None


def _named_choice(text: str, normal: list[str], alone: set[str], letters_first: bool) -> int | None:
    """The choice that the whole of ``text`` names; ``alone`` are the normalised texts that mean one choice."""
    bare, stem = normalize_answer(text), text.rstrip(" .")
    letter = _index(match, len(normal)) if (match := _LETTER_ALONE.match(stem)) else None
    if letters_first and letter is not None and not (stem.isalpha() and stem.islower()):
        return letter
    index = rest = None
    if both := _LETTER_THEN_TEXT.match(text):
        index, rest = _index(both, len(normal)), normalize_answer(both[both.lastindex or 0])
        if index is not None and rest in normal and rest != normal[index]:
            return None  # letter and text mean two choices
    if bare in alone:
        return normal.index(bare)
    return letter if match else index if index is not None and rest == normal[index] else None


def _index(match: re.Match[str], count: int) -> int | None:
    letter = next(group for group in match.groups() if group)
    index = ord(letter.upper()) - ord("A")
    return index if index < count else None
