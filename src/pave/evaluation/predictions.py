"""What a run answered, on disk: one JSON line per sample, with everything needed to score it again without a model.

The first line describes the run, every other one is a ``Prediction``. While a run goes on its lines are appended batch by
batch, so that a killed run goes on where it stopped; at the end the file is rewritten in the order of the samples, so that
two equal runs leave equal files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pave.config import Strict, read_strict
from pave.data.samples import Sample
from pave.evaluation.metrics import exact_match, parse_choice
from pave.utils.files import atomic_write_text, naming_disk
from pave.utils.json_files import parse_json
from pave.utils.reading import read_lines

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Prediction(Strict):
    """One sample and what a model answered."""

    id: str
    """Of the sample."""
    type: str = "all"
    """Question type."""
    video: str
    """What the sample is about."""
    question: str
    """As asked."""
    references: tuple[str, ...]
    """Every answer that counts as right; none where a benchmark keeps its answers to itself."""
    choices: tuple[str, ...] = ()
    """Where there are any; each reference is one of them."""
    context: str = ""
    """Hash of what else the answer depends on: earlier turns and paths of side channels; empty without any."""
    earlier: str = ""
    """Hash of the earlier turns alone, which are the same wherever the files lie; empty without any."""
    content: dict[str, str] = field(default_factory=dict)
    """What was in the sample's files when it was asked about, by role (``pave.evaluation.contents``); empty where that was not noted."""
    meta: dict[str, Any] = field(default_factory=dict)
    """The sample's meta where it is one of a benchmark, for the benchmark's scorers; else empty."""
    prediction: str | None = None
    """What was generated; null where the sample failed."""
    error: str | None = None
    """Why it failed."""

    @property
    def benchmark(self) -> str | None:
        """The name of the benchmark that the sample is of."""
        name = self.meta.get("benchmark")
        return name if isinstance(name, str) else None

    @property
    def cluster(self) -> str:
        """What dependent samples share: the video, or that which the clip was cut from (``source`` in ``meta``)."""
        return source_of(self.meta, self.video)

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


def source_of(meta: Mapping[str, Any], video: str) -> str:
    """What a sample's video is a part of, by its meta where it is one of a benchmark; else the video."""
    source = meta.get("source") if "benchmark" in meta else None
    return source if isinstance(source, str) and source else video


def as_prediction(sample: Sample) -> Prediction:
    """What is known of a sample before it is answered.

    Raises:
        ValueError: if it has no answer to compare with. Samples of a benchmark may have none: some keep it to themselves.
    """
    meta = dict(sample.meta) if "benchmark" in sample.meta else {}
    if not sample.references and not meta:
        raise ValueError(f"sample {sample.id!r}: it has no answer, so it cannot be scored; use pave ask, or add the answer")
    return Prediction(
        id=sample.id,
        type=sample.type or "all",
        video=str(sample.video),
        question=sample.turns[-1][0],
        references=sample.references,
        choices=sample.choices,
        context=_context(sample),
        earlier=_digest(sample.turns[:-1]) if len(sample.turns) > 1 else "",
        meta=meta,
    )


def _context(sample: Sample) -> str:
    """What decides an answer besides the video and the last question, in short."""
    earlier, own = sample.turns[:-1], dict(sorted(sample.side_channels.items()))
    return _digest([earlier, own]) if earlier or own else ""


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


class PredictionFile:
    """A predictions file that a run appends to.

    Args:
        path: the file.
        settings: what decides the answers (base, patch, sampling, prompt, ...); JSON values. An existing file is gone on with
            only if it was made with the same.
        shard: which part of an evaluation the run is (``pave.evaluation.shards``).

    Raises:
        ValueError: if an existing file was made with other settings, naming the first that differs, or is no such file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        settings: Mapping[str, Any],
        shard: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.shard = shard
        self.expected: int | None = None
        self.settings: dict[str, Any] = json.loads(json.dumps(dict(settings)))
        self.done: dict[str, Prediction] = {}
        if self.path.exists():
            before, predictions = read_predictions(self.path)
            header = read_header(self.path)
            self.expected = header.get("expected")
            _refuse_other_settings(
                self.path, {**before, "shard": header.get("shard")}, {**self.settings, "shard": shard and dict(shard)}
            )
            self.done = {p.id: p for p in predictions}
        self._rewrite(self.done.values())  # also drops a line that a killed run left half-written

    def expect(self, count: int) -> None:
        """Say how many samples the run will answer, for whoever reads the file of a run that did not end."""
        if self.expected != count:
            self.expected = count
            self._rewrite(self.done.values())

    def append(self, predictions: Sequence[Prediction]) -> None:
        """Add the predictions of one batch; they are on the disk when this returns."""
        with naming_disk(self.path), self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write("".join(_line(p.to_dict()) for p in predictions))
            file.flush()
            os.fsync(file.fileno())
        self.done |= {p.id: p for p in predictions}

    def finish(self, ids: Sequence[str]) -> list[Prediction]:
        """Rewrite the file in the order of ``ids`` and return the predictions in it."""
        ordered = [self.done[i] for i in ids]
        self.expected = len(ordered)
        self._rewrite(ordered)
        return ordered

    def _rewrite(self, predictions: Iterable[Prediction]) -> None:
        header = {"pave_predictions": FORMAT_VERSION, "settings": self.settings, "expected": self.expected}
        if self.shard is not None:
            header["shard"] = dict(self.shard)
        atomic_write_text(self.path, "".join([_line(header), *(_line(p.to_dict()) for p in predictions)]))


def read_predictions(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[Prediction]]:
    """The settings and predictions of a file. A last line that a killed run left half-written is left out.

    Raises:
        ValueError: naming the file and line that cannot be read.
    """
    header, values = _read_lines(path)
    predictions = [
        read_strict(Prediction, value, f"{os.fspath(path)}, line {number}") for number, value in enumerate(values, start=2)
    ]
    return header["settings"], predictions


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The first line of a predictions file: its settings, how many samples its run expected (null where it did not say), and which
    shard it is if it is one.

    Raises:
        ValueError: naming the file and line that cannot be read.
    """
    return _read_lines(path)[0]


def read_all_predictions(
    path: str | os.PathLike[str], samples: Sequence[Sample] | None = None
) -> tuple[dict[str, Any], list[Prediction]]:
    """The settings of a file and a prediction for every sample that its run was asked for.

    Args:
        path: of the file.
        samples: that the run was asked for; those without a line count as failed. Without them the file has to be complete.

    Raises:
        ValueError: if the run has not ended, holds more samples than it was asked for or two of one id, or has answers to samples that
            are not in ``samples`` or were changed since.
    """
    settings, predictions = read_predictions(path)
    found: dict[str, Prediction] = {}
    for prediction in predictions:
        if prediction.id in found:  # it may have been tried again
            check_same_sample(found[prediction.id], prediction, Path(path))
        found[prediction.id] = prediction
    if samples is None:
        _check_count(path, len(found), read_header(path).get("expected"))
        return settings, list(found.values())
    wanted = [as_prediction(sample) for sample in samples]
    foreign = sorted(set(found).difference(want.id for want in wanted))
    if foreign:
        raise ValueError(
            f"{os.fspath(path)} holds answers to {len(foreign)} samples that are not in the file of samples, such as {foreign[0]!r}"
        )
    for want in wanted:
        if want.id in found:  # its paths may be written from another folder by now
            before = found[want.id]
            check_same_sample(before, replace(want, video=before.video, context=before.context), Path(path))
    return settings, [found.get(want.id, replace(want, error="the run has no answer to it")) for want in wanted]


def _check_count(path: str | os.PathLike[str], count: int, expected: Any) -> None:
    """Whether a file holds as many samples as its run was asked for."""
    if not isinstance(expected, int) or count < expected:
        wanted = f"{count:,} of {expected:,}" if isinstance(expected, int) else f"{count:,} of an unknown number of"
        raise ValueError(
            f"{os.fspath(path)}: the run has answered {wanted} samples; let it end (give pave eval the same command again), or give its "
            "samples, so that the others count as wrong (--samples)"
        )
    if count > expected:
        raise ValueError(
            f"{os.fspath(path)}: the file holds {count:,} samples, but its run was asked for {expected:,}; run pave eval again into "
            "another folder"
        )


def _read_lines(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[Any]]:
    """The header and the other lines of a file."""
    values: list[Any] = []
    for number, line in read_lines(path):
        try:
            values.append(parse_json(line))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}, line {number}: {error}") from None
    header = values[0] if values and isinstance(values[0], dict) else {}
    if header.get("pave_predictions") != FORMAT_VERSION or not isinstance(header.get("settings"), dict):
        raise ValueError(f"{os.fspath(path)}: not a predictions file of this library (its first line does not say so)")
    return header, values[1:]


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
    for key in ("type", "video", "question", "references", "choices", "context", "earlier", "meta"):
        if old[key] != new[key]:
            raise ValueError(
                f"{path}: sample {now.id!r} has changed since it was answered ({key} was {old[key]!r}, now it is {new[key]!r}); "
                "choose another output folder, or remove the file to start over"
            )
