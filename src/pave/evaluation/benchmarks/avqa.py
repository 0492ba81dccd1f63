"""AVQA (Yang et al., ACM Multimedia 2022, github.com/AlyssaYoung/AVQA): four options, videos of VGGSound.

Published numbers of this line of work take the first upper-case letter and leave out samples whose video is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pave.data.samples import Sample
from pave.evaluation.benchmarks.base import Benchmark, Scorer, facts, judged, strictly
from pave.evaluation.benchmarks.choices import first_letter, names_the_right_option, options_of, video_mme_prompt
from pave.evaluation.benchmarks.files import Item, MediaFolder, items_of, located, read_json
from pave.evaluation.metrics import choice_letter
from pave.evaluation.predictions import Prediction

NAME = "avqa"


def _convert(annotations: Sequence[Path], media: MediaFolder, split: str) -> Iterator[Sample]:
    for path in annotations:
        for item in items_of(path, read_json(path)):
            yield _sample(item, media, split)


@located
def _sample(item: Item, media: MediaFolder, split: str) -> Sample:
    number, video = item.get("id", (int, str)), str(item.get("video_name"))
    options = options_of(item, "multi_choice")
    answer = item.get("answer", int)
    if not 0 <= answer < len(options):
        raise item.error(f"the answer {answer} is not the position of one of {len(options)} options")
    if item.value["multi_choice"][answer] is None:
        raise item.error(f"the right option, number {answer}, is null")
    kind, relation = item.get("question_type"), item.get("question_relation")
    return Sample(
        id=f"{NAME}-{split}-{number}",
        video=media.find(video),
        question=video_mme_prompt(item.get("question_text"), options),
        answer=choice_letter(answer),
        type=kind,
        meta=facts(NAME, split, {"relation": relation, "type": kind}, id=number, video_name=video, options=options),
    )


def _paper(prediction: Prediction) -> bool | None:
    if prediction.prediction is None:
        return None
    return first_letter(prediction.prediction) in prediction.references


BENCHMARK = Benchmark(
    name=NAME,
    title="AVQA",
    convert=_convert,
    official={"id": (int, str), "options": list},
    scorers=(
        Scorer(protocol="paper", version="avqa-paper-1", measures=judged(_paper)),
        Scorer(protocol="strict", version="avqa-strict-3", measures=strictly(names_the_right_option)),
    ),
    # not found in the official repository; together the published 57,335
    totals={"train": {"": 40_425}, "val": {"": 16_910}},
    submission=lambda predictions: [{"id": p.meta["official"]["id"], "prediction": p.prediction} for p in predictions],
)
