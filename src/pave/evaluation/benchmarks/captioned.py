"""The measures of benchmarks whose answers are sentences: caption scores on what a benchmark's own clean-up leaves of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pave.evaluation.benchmarks.base import Measure
from pave.evaluation.metrics.captions import bleu, caption_tokens, cider, meteor, rouge_l
from pave.evaluation.predictions import Prediction

Cleaner = Callable[[str], str]


def references_of(prediction: Prediction) -> list[str]:
    """Every reference, repeated ones included: caption scores count each."""
    return list(prediction.meta["official"].get("answers") or prediction.references)


def caption_measures(predictions: Sequence[Prediction], clean: Cleaner, clean_reference: Cleaner) -> list[Measure]:
    """CIDEr, BLEU-1 to BLEU-4 and ROUGE-L of cleaned, tokenised texts; a sample that failed said nothing. The references of
    these predictions are the corpus of CIDEr.

    Args:
        predictions: all of a split.
        clean: what is done to an answer before it is tokenised.
        clean_reference: the same for a reference.
    """
    hypotheses, references = tokenised(predictions, clean, clean_reference)
    ratios = bleu(hypotheses, references)
    measures = [Measure(name="CIDEr", values=tuple(cider(hypotheses, references)), yes_or_no=False)]
    measures += [Measure(name=f"BLEU-{order}", total=value, yes_or_no=False) for order, value in enumerate(ratios, start=1)]
    measures.append(Measure(name="ROUGE-L", values=tuple(rouge_l(hypotheses, references)), yes_or_no=False))
    return measures


def meteor_measure(predictions: Sequence[Prediction], clean: Cleaner, clean_reference: Cleaner) -> Measure:
    """METEOR of the same texts."""
    return Measure(name="METEOR", total=meteor(*tokenised(predictions, clean, clean_reference))[0], yes_or_no=False)


def tokenised(predictions: Sequence[Prediction], clean: Cleaner, clean_reference: Cleaner) -> tuple[list[str], list[list[str]]]:
    """Answers and references as the caption scores take them."""
    hypotheses = caption_tokens(clean(p.prediction or "") for p in predictions)
    references = [caption_tokens(clean_reference(text) for text in references_of(p)) for p in predictions]
    return hypotheses, references
