"""What a benchmark tells this library: how to read its files, how its answers are scored, what its numbers are.

A benchmark is data plus a few functions, put together in one ``Benchmark`` in a file of its own and listed in
``pave.evaluation.benchmarks.BENCHMARKS``. Everything that is needed to score an answer travels in the sample itself, so that
``pave eval`` needs nothing but the samples, and ``pave score`` nothing but a file of predictions:

- ``question`` or ``messages`` hold the published prompt, word for word;
- ``answer`` and ``answers`` what counts as right (for multiple choice the letter, which is also what a patch learns to say);
- ``meta`` the facts of the benchmark, made by ``facts``; ``source``, the video that a clip is a part of, where samples are about clips; and
  ``odd``, what is strange about an official item that is read as the official script reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pave.data.samples import Sample
from pave.evaluation.benchmarks.files import MediaFolder
from pave.evaluation.predictions import Prediction

Protocol: TypeAlias = Literal["paper", "strict"]
PROTOCOLS: tuple[Protocol, ...] = ("paper", "strict")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number of a scorer, with what each sample contributes to it. Values are fractions; tables show them times 100."""

    name: str
    """accuracy, refined EM, CIDEr, ..."""
    values: tuple[float | None, ...] = ()
    """Per prediction, in their order; the number is their mean. None is left out of the mean: only a ``paper`` scorer may do
    that, where the published code does. Empty where the number is not a mean over samples (BLEU)."""
    total: float | None = None
    """The number itself, where it is not a mean over samples. It has no interval and no rows for subtypes."""
    yes_or_no: bool = True
    """Every value is 0 or 1."""


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A rule that turns predictions into measures. A change of the rule changes the version."""

    protocol: Protocol
    """paper: what published numbers used, holes included. strict: holes closed, and a sample without an answer is wrong."""
    version: str
    """Such as ``music_avqa-paper-1``; recorded with every result."""
    measures: Callable[[Sequence[Prediction]], list[Measure]]
    """Of samples whose answer is known. The first measure is the benchmark's own."""
    meteor: Callable[[Sequence[Prediction]], Measure] | None = None
    """METEOR, where the benchmark's papers give it. It is made on request only, because it needs Java."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Everything this library knows of one benchmark."""

    name: str
    """As on the command line: ``music_avqa``."""
    title: str
    """As its authors write it."""
    convert: Callable[[Sequence[Path], MediaFolder, str], Iterator[Sample]]
    """(annotation files, media, split) to samples, in the files' order. A ValueError names file, item and field."""
    scorers: tuple[Scorer, ...]
    """One for each protocol."""
    totals: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Official number of samples, by split and by release of the annotations ("" where there is only one)."""
    default_split: str | None = None
    """The split of annotations whose file names do not say it."""
    files: str = "*.json"
    """Which files of a folder of annotations are meant."""
    prepare: Callable[[Sample, Path], Sample] | None = None
    """Makes what a sample needs beside the official files (a clip, a list of cameras) below a folder, where its video is there. A
    ValueError leaves the sample without a video; it is reported."""
    official: Mapping[str, type | tuple[type, ...]] = field(default_factory=dict)
    """Which facts of a sample's ``meta["official"]`` scorers and submission read, and their types; a list is one of texts."""
    mean_over: str | None = None
    """The subtype over whose rows the official total is an unweighted mean; None is the mean over samples."""
    submission: Callable[[Sequence[Prediction]], Any] | None = None
    """Predictions to the JSON value that the benchmark's own tools or server read; None where there is no such format."""

    def scorer(self, protocol: Protocol) -> Scorer:
        """The scorer of a protocol."""
        return next(scorer for scorer in self.scorers if scorer.protocol == protocol)


def facts(benchmark: str, split: str, subtypes: Mapping[str, str], **official: Any) -> dict[str, Any]:
    """The ``meta`` of a benchmark's sample.

    Args:
        benchmark: its name.
        split: train, val, test, ...
        subtypes: what its tables have rows for, by kind: ``{"modality": "Audio", "type": "Audio Counting"}``.
        official: ids and whatever else its scorers and its submission need.
    """
    return {"benchmark": benchmark, "split": split, "subtypes": dict(subtypes), "official": official}


def judged(
    judge: Callable[[Prediction], bool | None], name: str = "accuracy"
) -> Callable[[Sequence[Prediction]], list[Measure]]:
    """The measures of a rule that finds each answer right or wrong, or (None) leaves the sample out."""

    def measures(predictions: Sequence[Prediction]) -> list[Measure]:
        found = [judge(prediction) for prediction in predictions]
        return [Measure(name=name, values=tuple(None if right is None else float(right) for right in found))]

    return measures


def strictly(judge: Callable[[Prediction, str], bool]) -> Callable[[Sequence[Prediction]], list[Measure]]:
    """The accuracy of a rule on (prediction, its text); a sample that failed or said nothing is wrong."""

    def checked(prediction: Prediction) -> bool:
        text = prediction.prediction
        return text is not None and bool(text.strip()) and judge(prediction, text)

    return judged(checked)
