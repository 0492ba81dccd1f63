"""METEOR 1.5 (Denkowski and Lavie 2014). The only exact one is its authors' Java program with its table of English paraphrases:
this runs it through the package ``pycocoevalcap``, which brings both (100 MB). No Python package repeats it exactly."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Sequence
from typing import Any

from pave.utils.optional import require

_PURPOSE = "METEOR"


def check_meteor() -> None:
    """Say at once what METEOR lacks, before any work.

    Raises:
        MissingExtraError: if the extra ``captions`` is not installed.
        ValueError: if there is no Java.
    """
    require("pycocoevalcap", extra="captions", purpose=_PURPOSE)
    if shutil.which("java") is None:
        raise ValueError(
            "METEOR runs its authors' Java program, and there is no 'java' on the PATH; install a Java runtime (version 8 or later), or "
            "leave METEOR out: the other caption scores need none"
        )


def meteor(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """METEOR over all samples, and of each sample. Over all it is made of the sums of their statistics, not of their scores.

    Args:
        hypotheses: tokenised, one per sample.
        references: tokenised, one or more per sample.

    Raises:
        MissingExtraError, ValueError: as ``check_meteor``.
    """
    check_meteor()
    module: Any = importlib.import_module("pycocoevalcap.meteor.meteor")
    program = module.Meteor()
    said = {number: [text] for number, text in enumerate(hypotheses)}
    accepted = {number: list(texts) for number, texts in enumerate(references)}
    score, single = program.compute_score(accepted, said)
    return float(score), [float(value) for value in single]
