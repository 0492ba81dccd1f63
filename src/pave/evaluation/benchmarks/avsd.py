"""AVSD, audio-visual scene-aware dialogue (Alamri et al., CVPR 2019; DSTC7, 8 and 10): questions about Charades videos in the course
of a dialogue.

The protocol is that of the paper's numbers: the last turn is answered with the true answers to the earlier ones before it, without
caption and summary, and compared with **one** reference. Scores against six references (DSTC7 and 8) are not comparable.

What is done to an answer before differs between two published rules. The paper's own evaluation takes it as it is; the baseline of DSTC7
removes ``<eos>``, commas and periods from it, and not from the reference. Both are measures of ``paper``, the second under names of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pave.data.samples import Message, Sample
from pave.evaluation.benchmarks.base import Benchmark, Measure, Scorer, facts
from pave.evaluation.benchmarks.captioned import caption_measures, meteor_measure, tokenised
from pave.evaluation.benchmarks.files import Item, MediaFolder, items_of, located, read_json
from pave.evaluation.predictions import Prediction

NAME = "avsd"
UNDISCLOSED = "__UNDISCLOSED__"
"""What stands for an answer that is kept back."""
TURNS = 5
"""Questions of one training sample."""
_FOLDER = "Charades_v1_480"


def _convert(annotations: Sequence[Path], media: MediaFolder, split: str) -> Iterator[Sample]:
    for path in annotations:
        for item, video, turns in _dialogues(path):
            if split == "train":
                parts = [turns[start : start + TURNS] for start in range(0, len(turns), TURNS)]
                for number, part in enumerate(parts):
                    yield _sample(item, media, split, video, part, f"-{number}")
            else:
                yield _sample(item, media, split, video, turns)


def _dialogues(path: Path) -> Iterator[tuple[Item, str, list[tuple[str, str]]]]:
    """(place, video, turns) of every dialogue, in any of the three forms that releases have: ``dialogs`` with small or with
    capital letters, or an object with the videos as keys."""
    content = read_json(path)
    keys = content if isinstance(content, Mapping) else {}
    top = next((key for key in ("dialogs", "Dialogs") if key in keys), None)
    if top is not None:
        for item in items_of(path, content, key=top):
            turns = item.get("dialog", list, other=("Dialog",))
            yield item, item.get("image_id", other=("Image_id",)), _turns(item, turns)
    elif keys:
        for video, value in keys.items():
            item = Item(f"{path}, {video!r}", value)
            yield item, video, _turns(item, item.get("data", list))
    else:
        raise ValueError(f"{path}: dialogues are needed: an object with 'dialogs', or one with a key for each video")


def _turns(item: Item, turns: Sequence[Any]) -> list[tuple[str, str]]:
    """Questions and answers; only the last answer may be kept back."""
    if not turns:
        raise item.error("the dialogue has no turn")
    found = []
    for number, value in enumerate(turns, start=1):
        turn = Item(f"{item.where}, turn {number}", value)
        question = turn.get("question", other=("Question",)).strip()
        answer = turn.get("answer", other=("Answer",)).strip()
        if answer == UNDISCLOSED and number < len(turns):
            raise turn.error("the answer is kept back, and this is not the last turn")
        found.append((question, answer))
    return found


@located
def _sample(item: Item, media: MediaFolder, split: str, video: str, turns: Sequence[tuple[str, str]], part: str = "") -> Sample:
    messages = []
    for question, answer in turns:
        messages.append(Message(role="user", content=question))
        if answer != UNDISCLOSED:
            messages.append(Message(role="assistant", content=answer))
        elif split == "train":
            raise item.error("the last answer is kept back, so this is nothing to train on")
    return Sample(
        id=f"{NAME}-{split}-{video}{part}",
        video=media.find(f"{_FOLDER}/{video}", video),
        messages=tuple(messages),
        meta=facts(NAME, split, {}, image_id=video),
    )


def _dstc7_clean(text: str) -> str:
    """What the baseline of DSTC7 takes from an answer, and not from the reference."""
    return text.replace("<eos>", "").replace(",", "").replace(".", "")


def _as_it_is(text: str) -> str:
    return text


def _paper(predictions: Sequence[Prediction]) -> list[Measure]:
    dstc7 = caption_measures(predictions, _dstc7_clean, _as_it_is)
    return [
        *caption_measures(predictions, _as_it_is, _as_it_is),
        *(replace(measure, name=f"{measure.name} as DSTC7") for measure in dstc7),
    ]


def _strict(predictions: Sequence[Prediction]) -> list[Measure]:
    """Both sides are treated alike, as in the paper's own evaluation. And whether the answer is the reference, word for word."""
    said, wanted = tokenised(predictions, _as_it_is, _as_it_is)
    same = tuple(float(bool(text) and text in texts) for text, texts in zip(said, wanted, strict=True))
    return [*caption_measures(predictions, _as_it_is, _as_it_is), Measure(name="EM", values=same)]


BENCHMARK = Benchmark(
    name=NAME,
    title="AVSD",
    convert=_convert,
    official={"image_id": str},
    scorers=(
        Scorer(
            protocol="paper",
            version="avsd-paper-2",
            measures=_paper,
            meteor=lambda predictions: meteor_measure(predictions, _as_it_is, _as_it_is),
        ),
        Scorer(
            protocol="strict",
            version="avsd-strict-1",
            measures=_strict,
            meteor=lambda predictions: meteor_measure(predictions, _as_it_is, _as_it_is),
        ),
    ),
    # as in the README of DSTC10; for "test" it counts the test of DSTC10
    totals={"train": {"": 2 * 7659}, "valid": {"": 1787}, "test": {"": 1710}},
    submission=lambda predictions: [
        {"image_id": p.meta["official"]["image_id"], "caption": p.prediction or ""} for p in predictions
    ],
)
