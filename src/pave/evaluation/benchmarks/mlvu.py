"""MLVU (Zhou et al., CVPR 2025, github.com/JUNJIE99/MLVU): long videos, seven tasks with options in the dev set.

M-Avg, the published number, is the unweighted mean of the tasks' accuracies. The two tasks that ask for free text are judged by
a language model and are not covered.

Eight items of the dev set are odd: the right text stands twice among the options, or not at all, or nothing is asked. They count, as the
official script reads them: the last option that equals the answer is right; where none does, no letter is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pave.data.samples import Sample
from pave.evaluation.benchmarks.base import Benchmark, Scorer, facts, judged, strictly
from pave.evaluation.benchmarks.choices import letter_of, mvbench_prompt, names_the_right_option, options_of
from pave.evaluation.benchmarks.files import Item, MediaFolder, items_of, located, read_json
from pave.evaluation.metrics import choice_letter, parse_choice
from pave.evaluation.predictions import Prediction

NAME = "mlvu"
NO_OPTION = "@"
"""What the official script takes for the right letter where no option is the answer; so none is right."""
_INLINE = re.compile(r"^\(?[A-F][.)]\s*\S.*$")


def _convert(annotations: Sequence[Path], media: MediaFolder, split: str) -> Iterator[Sample]:
    for path in annotations:
        for number, item in enumerate(items_of(path, read_json(path))):
            yield _sample(item, path.stem, number, media, split)


@located
def _sample(item: Item, file: str, place: int, media: MediaFolder, split: str) -> Sample:
    task = item.get("question_type", other=("task_type",))
    video = item.get("video", other=("video_name",))
    question, options = _question(item)
    letter, odd = _letter(item, question, options)
    number = str(item.get("question_id", (str, int))) if "question_id" in item.value else f"{file}-{place}"
    return Sample(
        id=f"{NAME}-{split}-{number}",
        video=media.find(f"{file}/{video}", f"{task}/{video}", video),
        question=mvbench_prompt(question, options),
        answer=letter,
        type=task,
        meta={
            **facts(NAME, split, {"task": task}, question_id=number, question_type=task, video=video, options=options),
            **({"odd": odd} if odd else {}),
        },
    )


def _letter(item: Item, question: str, options: Sequence[str]) -> tuple[str | None, str]:
    """The right letter, and what is odd about the item. None for the test set. The official files give the text of the right option,
    lmms-eval's copy its letter."""
    if item.value.get("answer") is None:
        return None, ""
    if "candidates" not in item.value:
        return letter_of(item, options, letters_first=True), ""
    answer = str(item.get("answer", (str, int, float)))
    places = [place for place, option in enumerate(options) if option == answer]
    asks = "" if question.strip() else "nothing is asked; "
    if len(places) > 1:
        letters = ", ".join(map(choice_letter, places))
        return choice_letter(places[-1]), f"{asks}the answer {answer!r} is that of {letters}; the last counts as right"
    if not places and not _names_one(item, options):
        return NO_OPTION, f"{asks}the answer {answer!r} is none of the options {list(options)!r}; no letter counts as right"
    return letter_of(item, options), asks.removesuffix("; ")


def _names_one(item: Item, options: Sequence[str]) -> bool:
    """Whether the answer is a letter, or an option but for blanks around it."""
    try:
        letter_of(item, options)
    except ValueError:
        return False
    return True


def _question(item: Item) -> tuple[str, list[str]]:
    """Question and options; rows of lmms-eval's copy have the options as lines of the question. Where there are options beside it, the
    question may be empty."""
    empty = "candidates" in item.value and isinstance(item.value.get("question"), str)
    question: str = item.value["question"] if empty else item.get("question")
    if "candidates" in item.value:
        return question, options_of(item, "candidates")
    lines = [line.strip() for line in question.splitlines()]
    options = [line for line in lines if _INLINE.match(line)]
    if len(options) < 2:
        raise item.error(
            "there are no 'candidates', and the question has no options as lines of its own; leave the files of the tasks out that "
            "ask for free text, which a language model judges"
        )
    rest = [line for line in lines if line and line not in options]
    return "\n".join(rest), options_of(Item(item.where, {"candidates": options}), "candidates")


def _paper(prediction: Prediction) -> bool:
    """The one character before the first ")", else the whole answer, equal to the right letter, case and all."""
    text = prediction.prediction or ""
    end = text.find(")")
    said = text if end < 0 else text[max(0, end - 1) : end]
    return said in prediction.references


def _submission(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """What the server for the test set reads: a letter for every question, empty where the answer names no option."""
    entries = []
    for p in predictions:
        official = p.meta["official"]
        found = None if p.prediction is None else parse_choice(p.prediction, official["options"], letters_first=True)
        entries.append(
            {
                "question_id": official["question_id"],
                "question_type": official["question_type"],
                "option": "" if found is None else choice_letter(found),
            }
        )
    return entries


BENCHMARK = Benchmark(
    name=NAME,
    title="MLVU",
    convert=_convert,
    official={"question_id": str, "question_type": str, "options": list},
    scorers=(
        Scorer(protocol="paper", version="mlvu-paper-1", measures=judged(_paper)),
        Scorer(protocol="strict", version="mlvu-strict-3", measures=strictly(names_the_right_option)),
    ),
    # as in the official files
    totals={"dev": {"": 2175}},
    default_split="dev",
    files="[1-7]_*.json",
    mean_over="task",
    submission=_submission,
)
