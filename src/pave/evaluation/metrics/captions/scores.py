"""BLEU, ROUGE-L and CIDEr as the COCO caption evaluation computes them (Chen et al. 2015, arXiv 1504.00325), on tokenised text.

Every function takes ``hypotheses`` (one text per sample) and ``references`` (one or more texts per sample); the words of a text are
what stands between blanks. Values are fractions; papers print them times 100. CIDEr may go above 1 (its maximum is 10).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

Ngram: TypeAlias = tuple[str, ...]

_ORDERS = 4
_SIGMA = 6.0
_BETA = 1.2
_TINY, _SMALL = 1e-15, 1e-9


def bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, float, float, float]:
    """BLEU-1 to BLEU-4 over all samples together (Papineni et al. 2002).

    BLEU-n is the geometric mean of the clipped precisions of 1-grams to n-grams, each
    ``(sum of matches + 1e-15) / (sum of n-grams + 1e-9)``, times ``exp(1 - r / c)`` where the hypotheses are shorter in sum (c) than
    the references (r): of each sample's references the one whose length is closest, the shorter one in a tie.

    Raises:
        ValueError: if the lengths differ, there is no sample, or one has no reference.
    """
    _check(hypotheses, references)
    matched, counted = [0] * _ORDERS, [0] * _ORDERS
    said = wanted = 0
    for hypothesis, accepted in zip(hypotheses, references, strict=True):
        words = hypothesis.split()
        lengths = [len(text.split()) for text in accepted]
        said += len(words)
        wanted += min(lengths, key=lambda length: (abs(length - len(words)), length))
        most: Counter[Ngram] = Counter()
        for text in accepted:
            most |= _ngrams(text)
        for ngram, count in _ngrams(hypothesis).items():
            matched[len(ngram) - 1] += min(count, most[ngram])
        for order in range(_ORDERS):
            counted[order] += max(0, len(words) - order)
    ratio = (said + _TINY) / (wanted + _SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    values, product = [], 1.0
    for order in range(_ORDERS):
        product *= (matched[order] + _TINY) / (counted[order] + _SMALL)
        values.append(penalty * product ** (1 / (order + 1)))
    return values[0], values[1], values[2], values[3]


def rouge_l(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """ROUGE-L of every sample (Lin 2004): with LCS the length of the longest common subsequence of words,
    ``(1 + b^2) P R / (R + b^2 P)``, b = 1.2, where P is the largest LCS / words of the hypothesis over the references and R the largest
    LCS / words of the reference, each on its own. An empty text counts as one empty word.

    Raises:
        ValueError: as ``bleu``.
    """
    _check(hypotheses, references)
    values = []
    for hypothesis, accepted in zip(hypotheses, references, strict=True):
        words = hypothesis.split(" ")
        others = [text.split(" ") for text in accepted]
        common = [_common(words, other) for other in others]
        precision = max(common) / len(words)
        recall = max(length / len(other) for length, other in zip(common, others, strict=True))
        both = precision > 0 and recall > 0
        values.append((1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision) if both else 0.0)
    return values


def cider(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr of every sample, in the form called CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726), as the COCO evaluation has it.

    An n-gram weighs ``count * (log(samples) - log(max(1, samples in whose references it occurs)))``; the references of this call are
    the corpus. Per order n = 1 to 4 and reference, the sum of ``min(hypothesis, reference) * reference`` over the hypothesis' n-grams
    is divided by the norms of both and multiplied by ``exp(-d^2 / (2 * 6^2))`` with d the difference of their numbers of 2-grams. The
    score is the mean over orders and references, times 10. With one sample every weight is 0.

    Raises:
        ValueError: as ``bleu``.
    """
    _check(hypotheses, references)
    counts = [[_ngrams(text) for text in accepted] for accepted in references]
    occurs: Counter[Ngram] = Counter()
    for sample in counts:
        occurs.update({ngram for reference in sample for ngram in reference})
    corpus = math.log(len(counts))

    def weighted(text: Counter[Ngram]) -> dict[Ngram, float]:
        return {ngram: count * (corpus - math.log(max(1, occurs[ngram]))) for ngram, count in text.items()}

    values = []
    for hypothesis, sample in zip(hypotheses, counts, strict=True):
        own = _ngrams(hypothesis)
        total = sum(_similarity(weighted(own), weighted(other), _bigrams(own) - _bigrams(other)) for other in sample)
        values.append(10 * total / len(sample))
    return values


def _similarity(own: dict[Ngram, float], other: dict[Ngram, float], longer: int) -> float:
    """Mean over the orders; ``longer``: by how many 2-grams the hypothesis is longer."""
    dots = [0.0] * _ORDERS
    for ngram, weight in own.items():
        reference = other.get(ngram, 0.0)
        dots[len(ngram) - 1] += min(weight, reference) * reference
    norms = [left * right for left, right in zip(_norms(own), _norms(other), strict=True)]
    cosines = [dot / norm if norm else 0.0 for dot, norm in zip(dots, norms, strict=True)]
    return math.exp(-(longer**2) / (2 * _SIGMA**2)) * sum(cosines) / _ORDERS


def _norms(weights: dict[Ngram, float]) -> list[float]:
    squares = [0.0] * _ORDERS
    for ngram, weight in weights.items():
        squares[len(ngram) - 1] += weight**2
    return [math.sqrt(square) for square in squares]


def _bigrams(counts: Counter[Ngram]) -> int:
    return sum(count for ngram, count in counts.items() if len(ngram) == 2)


def _ngrams(text: str) -> Counter[Ngram]:
    """How often each run of one to four words occurs."""
    words = text.split()
    return Counter(
        tuple(words[start : start + order]) for order in range(1, _ORDERS + 1) for start in range(len(words) - order + 1)
    )


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for column, other in enumerate(second, start=1):
            before, row[column] = row[column], before + 1 if word == other else max(row[column], row[column - 1])
    return row[-1]


def _check(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(hypotheses) != len(references):
        raise ValueError(
            f"caption scores: {len(hypotheses)} hypotheses but references for {len(references)}; give one list for each"
        )
    if not hypotheses:
        raise ValueError("caption scores: there is no caption to score")
    for number, accepted in enumerate(references):
        if isinstance(accepted, str) or not accepted:
            raise ValueError(f"caption scores: sample {number} needs a list of references, got {accepted!r}")
