"""How language models are scored on ScanQA and SQA3D: answers are cleaned, then compared whole (EM) or by containment (refined EM).

The clean-up is the one that published numbers since LEO (Huang et al., ICML 2024) use, in its order: of the signs only comma,
apostrophe, hyphen and colon stay; known misspellings of the annotators are repaired; numbers are written out; articles before a word
are dropped. Accented letters and curly apostrophes are already gone when their repair would come, so that it is left out here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from pave.evaluation.benchmarks.base import Measure
from pave.evaluation.benchmarks.captioned import references_of
from pave.evaluation.predictions import Prediction

_REPAIRS = {
    "letf": "left", "let": "left", "tehre": "there", "rigth": "right", "rght": "right", "behine": "behind", "tv": "TV", "chai": "chair",
    "wasing": "washing", "waslked": "walked", "oclock": "o'clock",
}  # fmt: skip
# fmt: off
_NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen",
    "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)
# fmt: on
_ALTERNATIVES = frozenset(
    [
        "yes",
        "no",
        "left",
        "right",
        "black",
        "white",
        "gray",
        "grey",
        "brown",
        "red",
        "green",
        "blue",
        "yellow",
        "orange",
        "purple",
        "pink",
        "beige",
        "tan",
        "silver",
    ]
).union(_NUMBERS)
"""Short answers of which a question has one; who names a second one has not answered."""
_WRITTEN = {"none": "zero", "23": "twenty-three", **{str(value): word for value, word in enumerate(_NUMBERS)}}
_FUNCTION_WORDS = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "to",
        "in",
        "on",
        "at",
        "by",
        "from",
        "with",
        "for",
        "as",
        "and",
        "or",
        "is",
        "are",
        "was",
        "were",
        "be",
        "it",
        "its",
        "this",
        "that",
        "these",
        "those",
        "there",
        "i",
        "you",
        "he",
        "she",
        "they",
    ]
)
"""Words that answer nothing on their own."""
_DROPPED = re.compile(r"[^a-zA-Z0-9,'\s:-]+")
_GLUED_DIGIT = re.compile(r"\b([a-zA-Z]+)[0-9]\b")
_SPLIT_OCLOCK = re.compile(r"\bo' +clock\b")


def clean_answer(text: str) -> str:
    """The form in which answers are compared. Blanks that dropped signs leave at the end stay, as in the published one."""
    text = re.sub(" {2,}", " ", text.lower().strip(" "))
    text = _DROPPED.sub("", text)
    text = _replace_words(text, _REPAIRS)
    text = _SPLIT_OCLOCK.sub("o'clock", text)
    text = _replace_words(text, _WRITTEN)
    text = _GLUED_DIGIT.sub(r"\1", text)
    for article in ("a", "an", "the"):
        text = re.sub(rf"\b{article}\b ([a-zA-Z]+)", r"\1", text)
    return re.sub(r"\bbackwards\b", "backward", text)


def _replace_words(text: str, table: dict[str, str]) -> str:
    return re.sub(r"\b(?:" + "|".join(sorted(table, key=len, reverse=True)) + r")\b", lambda match: table[match[0]], text)


def exact(prediction: str, references: Sequence[str]) -> bool:
    """EM: the cleaned prediction is one of the cleaned references."""
    return clean_answer(prediction) in map(clean_answer, references)


def refined(prediction: str, references: Sequence[str]) -> bool:
    """Refined EM: without white space, the cleaned prediction contains a cleaned reference or is contained in one. An empty one is
    contained in every reference and "e" in most: the hole that strict scorers close."""
    said = "".join(clean_answer(prediction).split())
    wanted = ["".join(clean_answer(text).split()) for text in references]
    return exact(prediction, references) or any(said in text or text in said for text in wanted)


def strictly_refined(prediction: str, references: Sequence[str]) -> bool:
    """Refined EM in whole words: the cleaned prediction equals a cleaned reference but for white space, or does so with words of it that
    stand together; or the other way round.

    What is contained must answer something by itself, and be at least half of what contains it, function words aside; and a prediction
    that says more than the reference may not name a second answer ("yes no", "brown two"). So no letter is right for a word, no "of" for
    a place, and no list of answers for one of them.
    """
    return exact(prediction, references) or any(_nearly(clean_answer(prediction), clean_answer(text)) for text in references)


def _nearly(said: str, wanted: str) -> bool:
    """``strictly_refined`` of a cleaned prediction and one cleaned reference."""
    if "".join(said.split()) == "".join(wanted.split()):
        return True
    mine, theirs = _words(said), _words(wanted)
    if _content(theirs) <= 2 * _told(theirs, "".join(mine)):
        return True
    second = not _ALTERNATIVES.isdisjoint(theirs) and not _ALTERNATIVES.isdisjoint(set(mine).difference(theirs))
    return _content(mine) <= 2 * _told(mine, "".join(theirs)) and not second


def _words(text: str) -> list[str]:
    """Words without the signs around them."""
    return [word for word in (raw.strip(",:-'") for raw in text.split()) if word]


def _content(words: Sequence[str]) -> int:
    """How many of the words answer something; at least 1."""
    return max(1, sum(word not in _FUNCTION_WORDS for word in words))


def _told(words: Sequence[str], text: str) -> int:
    """How many words that answer something are in the words that stand together and, without white space, read ``text``; 0 if none do."""
    runs = (words[start:end] for start in range(len(words)) for end in range(start + 1, len(words) + 1))
    return max((sum(word not in _FUNCTION_WORDS for word in run) for run in runs if "".join(run) == text), default=0)


def match_measures(predictions: Sequence[Prediction], *, strict: bool) -> list[Measure]:
    """EM and refined EM. ``strict``: refined EM in whole words, nothing is right of which the clean-up leaves nothing, and a reference of
    which it leaves nothing (every answer contains it) does not count; in both, a sample that failed is wrong."""

    def values(rule: Callable[[str, Sequence[str]], bool]) -> tuple[float, ...]:
        return tuple(float(_said(p, strict) and rule(p.prediction or "", _wanted(p, strict))) for p in predictions)

    return [
        Measure(name="EM", values=values(exact)),
        Measure(name="refined EM", values=values(strictly_refined if strict else refined)),
    ]


def _wanted(prediction: Prediction, strict: bool) -> list[str]:
    """The references to compare with."""
    return [text for text in references_of(prediction) if not strict or clean_answer(text).strip()]


def _said(prediction: Prediction, strict: bool) -> bool:
    """Whether there is an answer to judge."""
    text = prediction.prediction
    return text is not None and (not strict or bool(clean_answer(text).strip()))
