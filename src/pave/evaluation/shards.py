"""One evaluation in several processes: each answers a part of the samples, and the parts are put together and checked."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pave.config import Strict, read_strict
from pave.data.samples import Sample, manifest_hash
from pave.evaluation.predictions import (
    Prediction,
    PredictionFile,
    check_same_sample,
    read_all_predictions,
    read_header,
    read_predictions,
)

PREDICTIONS = "predictions.jsonl"
_PART = re.compile(r"^(.+)-(\d+)-of-(\d+)\.jsonl$")


@dataclass(frozen=True, kw_only=True)
class Shard(Strict):
    """A part of an evaluation.

    Raises:
        ValueError: if ``index`` does not lie between 1 and ``count``.
    """

    index: int
    """From 1."""
    count: int
    """Parts there are."""
    samples: str = ""
    """Hash of all samples in their order; parts of one evaluation have the same."""

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise ValueError(f"a shard is numbered from 1 to {self.count}, got {self.index}/{self.count}")

    @property
    def file_name(self) -> str:
        """Name of its file of predictions."""
        return self.part_of(PREDICTIONS)

    def part_of(self, name: str) -> str:
        """Name of its part of a file of that name."""
        return f"{name.removesuffix('.jsonl')}-{self.index}-of-{self.count}.jsonl"


def parse_shard(text: str) -> tuple[int, int]:
    """``2/4`` as numbers.

    Raises:
        ValueError: if it is not of that form.
    """
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
    if found is None:
        raise ValueError(f"a shard is written as NUMBER/COUNT, such as 2/4, got {text!r}")
    return int(found[1]), int(found[2])


def take_shard(samples: Sequence[Sample], index: int, count: int) -> tuple[Shard, list[Sample]]:
    """A part of the samples: of ``count`` parts of equal size that follow each other in the file the one numbered ``index`` from 1.

    Raises:
        ValueError: if there is no such part, or it would be empty.
    """
    shard = Shard(index=index, count=count, samples=manifest_hash(samples))
    part = list(samples[(index - 1) * len(samples) // count : index * len(samples) // count])
    if not part:
        raise ValueError(f"shard {index}/{count} of {len(samples)} samples is empty; use fewer shards")
    return shard, part


def whole_names(folder: str | os.PathLike[str]) -> list[str]:
    """Names of the .jsonl files that lie in a folder, sorted; a file that is there in parts by the name of the whole."""
    names = [name for name in _names(Path(folder)) if name.endswith(".jsonl")]
    return sorted({f"{match[1]}.jsonl" if (match := _PART.match(name)) else name for name in names})


def merge_shards(folder: str | os.PathLike[str], name: str = PREDICTIONS) -> Path:
    """Put the parts in a folder together to the file that one process would have written.

    Args:
        folder: where the parts are.
        name: of the whole file.

    Returns:
        The file, ``predictions.jsonl`` in the folder. Without parts it has to be there already.

    Raises:
        ValueError: if a part is missing, has not ended or has not its own name, parts were made with other settings, of other samples or
            of a video that was replaced in between, or the whole file is there and of another run.
    """
    where = Path(folder)
    found_parts = [match for match in map(_PART.match, _names(where)) if match and f"{match[1]}.jsonl" == name]
    parts = [(int(match[2]), int(match[3]), where / match[0]) for match in found_parts]
    if not parts:
        if not (where / name).is_file():
            raise ValueError(f"{where}: the folder holds neither {name} nor shards of it")
        return where / name
    counts = sorted({count for _, count, _ in parts})
    if len(counts) > 1:
        raise ValueError(
            f"{where}: there are shards of evaluations in {' and '.join(map(str, counts))} parts; keep those of one"
        )
    found = {number: path for number, _, path in parts}
    absent = [number for number in range(1, counts[0] + 1) if number not in found]
    if absent:
        raise ValueError(
            f"{where}: shard {absent[0]} of {counts[0]} is missing; run pave eval with --shard {absent[0]}/{counts[0]}"
        )
    settings: dict[str, Any] | None = None
    samples, predictions = None, []
    for number in sorted(found):
        path = found[number]
        shard = _shard_of(path, number, counts[0])
        own, part = read_all_predictions(path)
        if settings is not None:
            _refuse_another(path, found[1], (settings, samples), (own, shard.samples))
        settings, samples = own, shard.samples
        predictions += part
    _refuse_two_contents(where, predictions)
    whole = where / name
    if whole.exists():
        if not _is_merge_of(whole, settings, predictions):
            raise ValueError(
                f"{whole} is of another run than the shards beside it, such as {found[1].name}; move the shards or the file to a folder "
                "of their own"
            )
        whole.unlink()  # of an earlier merge
    file = PredictionFile(whole, settings or {})
    file.expect(len(predictions))
    file.append(predictions)
    return whole


def _refuse_two_contents(folder: Path, predictions: Sequence[Prediction]) -> None:
    """Two parts may be about one video, which must have been the same file for both."""
    seen: dict[str, Prediction] = {}
    for prediction in predictions:
        digest = prediction.content.get("video")
        other = seen.setdefault(prediction.video, prediction) if digest else prediction
        if other.content.get("video") != digest:
            raise ValueError(
                f"{folder}: {prediction.video} had other content when sample {prediction.id!r} was answered than for {other.id!r}; run "
                "pave eval again with the same --shard options, which asks again about files that were replaced"
            )


def _is_merge_of(whole: Path, settings: dict[str, Any] | None, predictions: Sequence[Prediction]) -> bool:
    """Whether a file holds answers to the very samples of its parts, made with the same settings."""
    before, answered = read_predictions(whole)
    parts = {p.id: p for p in predictions}
    try:
        for prediction in answered:
            check_same_sample(prediction, parts[prediction.id], whole)
    except (KeyError, ValueError):
        return False
    return before == settings


def _shard_of(path: Path, number: int, count: int) -> Shard:
    """The shard that a part says it is, which must be that of its name."""
    value = read_header(path).get("shard")
    shard = read_strict(Shard, value, f"{path}, line 1, 'shard'")
    if (shard.index, shard.count) != (number, count):
        raise ValueError(
            f"{path}: the file is shard {shard.index} of {shard.count} by its first line; give it back its name, and run pave eval with "
            f"--shard {number}/{count}"
        )
    return shard


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def _refuse_another(path: Path, first: Path, before: tuple[Any, Any], now: tuple[Any, Any]) -> None:
    if before[1] != now[1]:
        raise ValueError(f"{path}: this shard is of other samples than {first}; run it again with the same file of samples")
    for key in dict.fromkeys([*before[0], *now[0]]):
        if before[0].get(key) != now[0].get(key):
            raise ValueError(
                f"{path}: this shard was made with another setting than {first}: {key} is {now[0].get(key)!r}, there it is "
                f"{before[0].get(key)!r}; run it again with the same"
            )
