"""SQA3D (Ma et al., ICLR 2023, github.com/SilongYong/SQA3D): questions to somebody at a described place in a scanned room."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pave.data.samples import Sample
from pave.evaluation.benchmarks.base import Benchmark, Scorer, facts
from pave.evaluation.benchmarks.files import Item, MediaFolder, items_of, located, read_json
from pave.evaluation.benchmarks.scenes import make_video, place_scene
from pave.evaluation.benchmarks.spatial_answers import match_measures

NAME = "sqa3d"
TYPES = ("What", "Is", "How", "Can", "Which")
"""Official types: the first word, with a capital letter; everything else ("What's", "which") is Others."""


def question_type(question: str) -> str:
    """The official type of a question."""
    first = question.split(" ")[0]
    return first if first in TYPES else "Others"


def _convert(annotations: Sequence[Path], media: MediaFolder, split: str) -> Iterator[Sample]:
    """From two files: the questions, and the annotations with their answers."""
    contents = {path: read_json(path) for path in annotations}
    questions = {path: content for path, content in contents.items() if _has(content, "questions")}
    answers = {path: content for path, content in contents.items() if _has(content, "annotations")}
    if not questions or not answers or len(questions) + len(answers) < len(contents):
        raise ValueError(
            f"{', '.join(map(str, contents))}: SQA3D needs two files of a split: v1_balanced_questions_*.json, with 'questions', and "
            "v1_balanced_sqa_annotations_*.json, with 'annotations'"
        )
    by_question: dict[int | str, Item] = {}
    for path, content in answers.items():
        for item in items_of(path, content, key="annotations"):
            number = item.get("question_id", (int, str))
            if number in by_question:
                raise item.error(f"the question_id {number!r} is also that of {by_question[number].where}")
            by_question[number] = item
    for path, content in questions.items():
        for item in items_of(path, content, key="questions"):
            number = item.get("question_id", (int, str))
            if number not in by_question:
                raise item.error(f"no annotation has the question_id {number!r}; both files must be of one split")
            yield _sample(item, by_question[number], media, split)


def _has(content: Any, key: str) -> bool:
    return isinstance(content, Mapping) and key in content


@located
def _sample(item: Item, annotation: Item, media: MediaFolder, split: str) -> Sample:
    number, scene, question = str(item.get("question_id", (int, str))), item.get("scene_id"), item.get("question")
    if annotation.get("scene_id") != scene:
        raise annotation.error(f"the scene is {annotation.get('scene_id')!r}, that of the question {scene!r}")
    answers = annotation.get("answers", list)
    if not answers:
        raise annotation.error("there is no answer")
    texts = [Item(f"{annotation.where}, answer {place}", value).get("answer") for place, value in enumerate(answers, start=1)]
    video, channels = place_scene(media, scene)
    kind = question_type(question)
    return Sample(
        id=f"{NAME}-{split}-{number}",
        video=video,
        question=f"{item.get('situation')} {question}",
        answers=tuple(dict.fromkeys(texts)),
        type=kind,
        side_channels=channels,
        meta=facts(NAME, split, {"type": kind}, question_id=number, scene_id=scene),
    )


BENCHMARK = Benchmark(
    name=NAME,
    title="SQA3D",
    convert=_convert,
    prepare=make_video,
    scorers=(
        Scorer(
            protocol="paper", version="sqa3d-paper-1", measures=lambda predictions: match_measures(predictions, strict=False)
        ),
        Scorer(
            protocol="strict", version="sqa3d-strict-3", measures=lambda predictions: match_measures(predictions, strict=True)
        ),
    ),
    # all together as in the official README (33.4k); the splits not found there
    totals={"train": {"": 26623}, "val": {"": 3261}, "test": {"": 3519}},
    files="v1_balanced_*.json",
)
