"""ScanQA (Azuma et al., CVPR 2022, github.com/ATR-DBI/ScanQA): open questions on scanned rooms, one or more short answers each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pave.data.samples import Sample
from pave.evaluation.benchmarks.base import Benchmark, Measure, Scorer, facts
from pave.evaluation.benchmarks.captioned import caption_measures, meteor_measure
from pave.evaluation.benchmarks.files import Item, MediaFolder, items_of, located, read_json
from pave.evaluation.benchmarks.scenes import make_video, place_scene
from pave.evaluation.benchmarks.spatial_answers import clean_answer, match_measures
from pave.evaluation.predictions import Prediction

NAME = "scanqa"
_TYPES = (
    ("Where", "Place"),
    ("How many", "Number"),
    ("What color", "Color"),
    ("What is the color", "Color"),
    ("What shape", "Object nature"),
    ("What type", "Object nature"),
    ("What kind", "Object nature"),
    ("What is", "Object"),
)
"""Words in a question and its type; the first that are found count, with their capital letters."""


def question_type(question: str) -> str:
    """The official type of a question."""
    return next((kind for words, kind in _TYPES if words in question), "Other")


def _convert(annotations: Sequence[Path], media: MediaFolder, split: str) -> Iterator[Sample]:
    for path in annotations:
        for item in items_of(path, read_json(path)):
            yield _sample(item, media, split)


@located
def _sample(item: Item, media: MediaFolder, split: str) -> Sample:
    scene, number, question = item.get("scene_id"), item.get("question_id"), item.get("question")
    video, channels = place_scene(media, scene)
    answers = item.get("answers", list) if item.value.get("answers") else []  # the test files have none
    if not all(isinstance(answer, str) and answer.strip() for answer in answers):
        raise item.error(f"the field 'answers' must hold texts, got {answers!r:.60}")
    kind = question_type(question)
    return Sample(
        id=f"{NAME}-{number}",
        video=video,
        question=question,
        answers=tuple(dict.fromkeys(answers)),
        type=kind,
        side_channels=channels,
        meta=facts(NAME, split, {"type": kind}, question_id=number, scene_id=scene, answers=answers),
    )


def _measures(predictions: Sequence[Prediction], strict: bool) -> list[Measure]:
    captions = caption_measures(predictions, clean_answer, clean_answer)
    return [captions[0], *match_measures(predictions, strict=strict), *captions[1:]]


def _meteor(predictions: Sequence[Prediction]) -> Measure:
    return meteor_measure(predictions, clean_answer, clean_answer)


BENCHMARK = Benchmark(
    name=NAME,
    title="ScanQA",
    convert=_convert,
    prepare=make_video,
    official={"scene_id": str, "question_id": str, "answers": list},
    scorers=(
        Scorer(
            protocol="paper",
            version="scanqa-paper-1",
            measures=lambda predictions: _measures(predictions, False),
            meteor=_meteor,
        ),
        Scorer(
            protocol="strict",
            version="scanqa-strict-3",
            measures=lambda predictions: _measures(predictions, True),
            meteor=_meteor,
        ),
    ),
    # val as in an issue of the official repository, all together as in its README (41k); train and tests not found there
    totals={"train": {"": 25563}, "val": {"": 4675}, "test": {"test_w_obj": 4976, "test_wo_obj": 6149}},
    files="ScanQA_*.json",
    submission=lambda predictions: [
        {
            "scene_id": p.meta["official"]["scene_id"],
            "question_id": p.meta["official"]["question_id"],
            "answer_top10": [p.prediction or ""],
        }
        for p in predictions
    ],
)
