"""Music-AVQA (Li et al., CVPR 2022, github.com/GeWu-Lab/MUSIC-AVQA): open questions on videos of music, one-word answers.

Published numbers of language models take an answer as right if it *contains* the truth, both lower-cased, so that "piano" is right
for "no" and "saxophone" for "one"; ``strict`` wants the whole answer.

The files of ``data/json`` hold some question ids twice, with another answer each; the official script counts every row, and so is it here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pave.data.samples import Sample
from pave.evaluation.benchmarks.base import Benchmark, Scorer, facts, judged, strictly
from pave.evaluation.benchmarks.files import Item, MediaFolder, items_of, located, read_json
from pave.evaluation.metrics import exact_match
from pave.evaluation.predictions import Prediction
from pave.utils.json_files import parse_json

NAME = "music_avqa"
_SLOT = re.compile(r"<[^<>]+>")
_REAL, _SYNTHETIC = "MUSIC-AVQA-videos-Real", "MUCIS-AVQA-videos-Synthetic"  # the second is spelt so


def _convert(annotations: Sequence[Path], media: MediaFolder, split: str) -> Iterator[Sample]:
    places: dict[str, list[str]] = {}
    for path in annotations:
        for item in items_of(path, read_json(path)):
            sample = _sample(item, media, split)
            rows = places.setdefault(sample.id, [])
            rows.append(item.where)
            yield sample if len(rows) == 1 else _again(sample, rows)


def _again(sample: Sample, rows: Sequence[str]) -> Sample:
    """A sample whose question id stands in an earlier row too, under an id of its own."""
    number = sample.meta["official"]["question_id"]
    odd = f"the question id {number} of {rows[-1]} is also that of {rows[0]}; every row counts"
    return replace(sample, id=f"{sample.id}-{len(rows)}", meta={**sample.meta, "odd": odd})


@located
def _sample(item: Item, media: MediaFolder, split: str) -> Sample:
    kinds = _strings(item, "type")
    if len(kinds) != 2:
        raise item.error(f"the field 'type' must hold two words, got {kinds!r}")
    number, video = str(item.get("question_id", (int, str))), item.get("video_id")
    modality, kind = kinds
    folder = _REAL if video[0].isdigit() else _SYNTHETIC
    name = f"{modality} {kind}"
    return Sample(
        id=f"{NAME}-{split}-{number}",
        video=media.find(f"{folder}/{video}", video),
        question=_filled(item),
        answer=item.get("anser", other=("answer",)),
        type=name,
        meta=facts(NAME, split, {"modality": modality, "type": name}, question_id=number, video_id=video),
    )


def _strings(item: Item, key: str) -> list[str]:
    """A list of texts that the file holds as JSON inside a string (or, in copies of it, as a list)."""
    value = item.get(key, (str, list))
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError:
            raise item.error(f"the field {key!r} holds {value!r:.60}, which is not a list written as JSON") from None
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise item.error(f"the field {key!r} must hold a list of texts, got {value!r:.60}")
    return value


def _filled(item: Item) -> str:
    """The question with its slots (``<Object>``) filled in their order. Values beyond the slots are not used, as in the official
    reader."""
    question: str = item.get("question_content")
    values = _strings(item, "templ_values")
    slots = _SLOT.findall(question)
    if len(slots) > len(values):
        raise item.error(
            f"the question {question!r} has {len(slots)} slots, but 'templ_values' {len(values)} values {values!r}"
        )
    fill = iter(values)
    return _SLOT.sub(lambda _: next(fill), question)


def _contains(prediction: Prediction) -> bool:
    """The published rule, on lower-cased texts; an empty answer holds no word."""
    return any(truth.lower() in (prediction.prediction or "").lower() for truth in prediction.references)


BENCHMARK = Benchmark(
    name=NAME,
    title="Music-AVQA",
    convert=_convert,
    official={"question_id": str, "video_id": str},
    scorers=(
        Scorer(protocol="paper", version="music_avqa-paper-2", measures=judged(_contains)),
        Scorer(
            protocol="strict",
            version="music_avqa-strict-1",
            measures=strictly(lambda prediction, text: exact_match(text, prediction.references)),
        ),
    ),
    # not found in the official README, which has only the sum with train, 45,867
    totals={"test": {"json": 9185, "json_update": 9129}, "val": {"json": 4595, "json_update": 4568}},
    submission=lambda predictions: [
        {
            "question_id": p.meta["official"]["question_id"],
            "video_id": p.meta["official"]["video_id"],
            "prediction": p.prediction,
        }
        for p in predictions
    ],
)
