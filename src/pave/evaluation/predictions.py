"""What a run answered, on disk: one JSON line per sample, with everything needed to score it again without a model.

The first line describes the run, every other one is a ``Prediction``. While a run goes on its lines are appended batch by
batch, so that a killed run goes on where it stopped; at the end the file is rewritten in the order of the samples, so that
two equal runs leave equal files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pave.config import Strict, read_strict
from pave.evaluation.metrics import exact_match, parse_choice
from pave.utils.files import atomic_write_text

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Prediction(Strict):
    """One sample and what a model answered."""

    id: str
    """Of the sample."""
    type: str = "all"
    """Question type."""
    video: str
    """What the sample is about; samples of one video form a cluster."""
    question: str
    """As asked."""
    references: tuple[str, ...]
    """Every answer that counts as right."""
    choices: tuple[str, ...] = ()
    """Where there are any; each reference is one of them."""
    context: str = ""
    """Hash of what else the answer depends on: earlier turns and files of side channels; empty without any."""
    prediction: str | None = None
    """What was generated; null where the sample failed."""
    error: str | None = None
    """Why it failed."""

    @property
    def correct(self) -> bool:
        """By exact match, or by choice where there are choices. A failed sample is wrong.

        Raises:
            ValueError: if there is no reference, one is empty or not among the choices, or there is one choice only.
        """
        answer = self.prediction or ""
        try:
            right = self._names_a_right_choice(answer) if self.choices else exact_match(answer, self.references)
        except ValueError as error:
            raise ValueError(f"sample {self.id!r}: {error}") from None
        return right and self.prediction is not None

    def _names_a_right_choice(self, answer: str) -> bool:
        unknown = [reference for reference in self.references if reference not in self.choices]
        if unknown or not self.references:
            raise ValueError(f"its answers {list(self.references)!r} must be among its choices {list(self.choices)!r}")
        found = parse_choice(answer, self.choices)
        return found is not None and self.choices[found] in self.references


class PredictionFile:
    """A predictions file that a run appends to.

    Args:
        path: the file.
        settings: what decides the answers (base, patch, sampling, prompt, ...); JSON values. An existing file is gone on with
            only if it was made with the same.

    Raises:
        ValueError: if an existing file was made with other settings, naming the first that differs, or is no such file.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.settings: dict[str, Any] = json.loads(json.dumps(dict(settings)))
        self.done: dict[str, Prediction] = {}
        if self.path.exists():
            before, predictions = read_predictions(self.path)
            _refuse_other_settings(self.path, before, self.settings)
            self.done = {p.id: p for p in predictions}
        self._rewrite(self.done.values())  # also drops a line that a killed run left half-written

    def append(self, predictions: Sequence[Prediction]) -> None:
        """Add the predictions of one batch; they are on the disk when this returns."""
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write("".join(_line(p.to_dict()) for p in predictions))
            file.flush()
            os.fsync(file.fileno())
        self.done |= {p.id: p for p in predictions}

    def finish(self, ids: Sequence[str]) -> list[Prediction]:
        """Rewrite the file in the order of ``ids`` and return the predictions in it."""
        ordered = [self.done[i] for i in ids]
        self._rewrite(ordered)
        return ordered

    def _rewrite(self, predictions: Iterable[Prediction]) -> None:
        header = {"pave_predictions": FORMAT_VERSION, "settings": self.settings}
        atomic_write_text(self.path, "".join([_line(header), *(_line(p.to_dict()) for p in predictions)]))


def read_predictions(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[Prediction]]:
    """The settings and predictions of a file. A last line that a killed run left half-written is left out.

    Raises:
        ValueError: naming the file and line that cannot be read.
    """
    lines = Path(path).read_bytes().split(b"\n")
    values: list[Any] = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last line end is incomplete
        try:
            values.append(json.loads(line.decode()))
        except (ValueError, RecursionError):
            raise ValueError(f"{os.fspath(path)}, line {number}: not valid JSON") from None
    header = values[0] if values and isinstance(values[0], dict) else {}
    if header.get("pave_predictions") != FORMAT_VERSION or not isinstance(header.get("settings"), dict):
        raise ValueError(f"{os.fspath(path)}: not a predictions file of this library (its first line does not say so)")
    predictions = [
        read_strict(Prediction, value, f"{os.fspath(path)}, line {number}") for number, value in enumerate(values[1:], start=2)
    ]
    return header["settings"], predictions


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def _refuse_other_settings(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for key in dict.fromkeys([*now, *before]):
        if before.get(key) != now.get(key):
            raise ValueError(
                f"{path} holds predictions of another run: {key} was {before.get(key)!r}, now it is {now.get(key)!r}; "
                "choose another output folder, or remove the file to start over"
            )


def check_same_sample(before: Prediction, now: Prediction, path: Path) -> None:
    """Refuse to mix answers to a sample that has been changed since.

    Raises:
        ValueError: naming the file, the sample and the field.
    """
    old, new = asdict(before), asdict(now)
    for key in ("type", "video", "question", "references", "choices", "context"):
        if old[key] != new[key]:
            raise ValueError(
                f"{path}: sample {now.id!r} has changed since it was answered ({key} was {old[key]!r}, now it is {new[key]!r}); "
                "choose another output folder, or remove the file to start over"
            )
