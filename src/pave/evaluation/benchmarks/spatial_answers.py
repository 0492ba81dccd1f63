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
_WRITTEN = {"none": "zero", "23": "twenty-three", **{str(value): word for value, word in enumerate(_NUMBERS)}}
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
    contained in every reference: the hole that strict scorers close."""
    said = "".join(clean_answer(prediction).split())
    wanted = ["".join(clean_answer(text).split()) for text in references]
    return exact(prediction, references) or any(said in text or text in said for text in wanted)


def match_measures(predictions: Sequence[Prediction], *, strict: bool) -> list[Measure]:
    """EM and refined EM. ``strict``: nothing is right of which the clean-up leaves nothing, and a reference of which it leaves nothing
    (every answer contains it) does not count; in both, a sample that failed is wrong."""

    def values(rule: Callable[[str, Sequence[str]], bool]) -> tuple[float, ...]:
        return tuple(float(_said(p, strict) and rule(p.prediction or "", _wanted(p, strict))) for p in predictions)

    return [Measure(name="EM", values=values(exact)), Measure(name="refined EM", values=values(refined))]


def _wanted(prediction: Prediction, strict: bool) -> list[str]:
    """The references to compare with."""
    return [text for text in references_of(prediction) if not strict or clean_answer(text).strip()]


def _said(prediction: Prediction, strict: bool) -> bool:
    """Whether there is an answer to judge."""
    text = prediction.prediction
    return text is not None and (not strict or bool(clean_answer(text).strip()))
