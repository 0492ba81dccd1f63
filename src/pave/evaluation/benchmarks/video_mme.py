"""Video-MME (Fu et al., CVPR 2025, github.com/MME-Benchmarks/Video-MME): 900 videos, 2,700 questions with four options.

The published rule takes the first upper-case letter from A to D after removing some phrases, so that "Best option: C" is B and
"Answer: C" is A (``pave.evaluation.benchmarks.choices.first_letter``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pave.data.samples import Sample
from pave.evaluation.benchmarks.base import Benchmark, Scorer, facts, judged, strictly
from pave.evaluation.benchmarks.choices import first_letter, letter_of, names_the_right_option, options_of, video_mme_prompt
from pave.evaluation.benchmarks.files import Item, MediaFolder, items_of, located, read_json
from pave.evaluation.predictions import Prediction

NAME = "video_mme"
_OF_VIDEO = ("video_id", "duration", "domain", "sub_category")


def _convert(annotations: Sequence[Path], media: MediaFolder, split: str) -> Iterator[Sample]:
    for path in annotations:
        for item in items_of(path, read_json(path)):
            for question in _questions(item):
                yield _sample(question, media, split)


def _questions(item: Item) -> Iterator[Item]:
    """A row of the data set is one question; an entry of a results file is a video with its questions."""
    if "questions" not in item.value:
        yield item
        return
    video = {key: value for key, value in item.value.items() if key != "questions"}
    for number, question in enumerate(item.get("questions", list)):
        place = Item(f"{item.where}, question {number + 1}", question)
        yield Item(place.where, {**video, **place.value})


@located
def _sample(item: Item, media: MediaFolder, split: str) -> Sample:
    number = item.get("question_id")
    of_video = {key: item.get(key) for key in _OF_VIDEO}
    names = [item.get("videoID")] if "videoID" in item.value else []
    options, task = options_of(item, "options"), item.get("task_type")
    if len(options) != 4:
        raise item.error(f"there must be 4 options, got {len(options)}")
    subtypes = {key: of_video[key] for key in ("duration", "domain", "sub_category")} | {"task": task}
    return Sample(
        id=f"{NAME}-{number}",
        video=media.find(*names, of_video["video_id"]),
        question=video_mme_prompt(item.get("question"), options),
        answer=letter_of(item, options, letters_first=True),
        type=of_video["duration"],
        meta=facts(
            NAME,
            split,
            subtypes,
            question_id=number,
            **of_video,
            task_type=task,
            question=item.get("question"),
            options=options,
        ),
    )


def _paper(prediction: Prediction) -> bool | None:
    """A video that is marked as missing is skipped."""
    text = prediction.prediction
    return None if text is None else first_letter(text) in prediction.references


def _submission(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """The results file that eval_your_results.py reads: a video with its questions, marked where none was answered."""
    videos: dict[str, dict[str, Any]] = {}
    for p in predictions:
        official: Mapping[str, Any] = p.meta["official"]
        head = {key: official[key] for key in _OF_VIDEO}
        video = videos.setdefault(official["video_id"], {**head, "missing": True, "questions": []})
        video["missing"] = video["missing"] and p.prediction is None
        video["questions"].append(
            {
                "question_id": official["question_id"],
                "task_type": official["task_type"],
                "question": official["question"],
                "options": [f"{letter}. {option}" for letter, option in zip("ABCD", official["options"], strict=True)],
                "answer": p.references[0],
                "response": p.prediction or "",
            }
        )
    return list(videos.values())


BENCHMARK = Benchmark(
    name=NAME,
    title="Video-MME",
    convert=_convert,
    official={**dict.fromkeys((*_OF_VIDEO, "question_id", "task_type", "question"), str), "options": list},
    scorers=(
        Scorer(protocol="paper", version="video_mme-paper-1", measures=judged(_paper)),
        Scorer(protocol="strict", version="video_mme-strict-3", measures=strictly(names_the_right_option)),
    ),
    # as in the official README
    totals={"test": {"": 2700}},
    default_split="test",
    submission=_submission,
)
