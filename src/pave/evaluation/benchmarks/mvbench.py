"""MVBench (Li et al., CVPR 2024, github.com/OpenGVLab/Ask-Anything): 20 tasks of 200 questions with options.

The published rule compares the first word of the answer with "(a)": it is right if either contains the other. An empty answer,
which the published runner turns into "(", is therefore right, and so is any text that begins with the word "a" where the first option is; the text of another option without
its letter is wrong.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pave.data.samples import Sample
from pave.evaluation.benchmarks.base import Benchmark, Scorer, facts, judged, strictly
from pave.evaluation.benchmarks.choices import letter_of, mvbench_prompt, names_the_right_option, options_of
from pave.evaluation.benchmarks.clips import cut
from pave.evaluation.benchmarks.files import Item, MediaFolder, items_of, located, read_json
from pave.evaluation.predictions import Prediction

NAME = "mvbench"
_FRAMES, FRAME_RATE = "episodic_reasoning", 3
_LONGEST = 1e7  # seconds
_FOLDERS = {
    "action_sequence": "star/Charades_v1_480",
    "action_prediction": "star/Charades_v1_480",
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "moving_direction": "clevrer/video_validation",
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "action_count": "perception/videos",
    "moving_count": "clevrer/video_validation",
    "moving_attribute": "clevrer/video_validation",
    "state_change": "perception/videos",
    "fine_grained_pose": "nturgbd",
    "character_order": "perception/videos",
    "egocentric_navigation": "vlnqa",
    _FRAMES: "tvqa/frames_fps3_hq",
    "counterfactual_inference": "clevrer/video_validation",
}
"""By task (the name of its file), where the official archives have its videos."""


def _convert(annotations: Sequence[Path], media: MediaFolder, split: str) -> Iterator[Sample]:
    for path in annotations:
        if path.stem not in _FOLDERS:
            raise ValueError(f"{path}: no task of MVBench is called {path.stem!r}; keep the official names of its 20 files")
        for number, item in enumerate(items_of(path, read_json(path))):
            yield _sample(item, path.stem, number, media, split)


@located
def _sample(item: Item, task: str, number: int, media: MediaFolder, split: str) -> Sample:
    video = item.get("video")
    where = f"{_FOLDERS[task]}/{video}"
    options = options_of(item, "candidates")
    bounds = {key: item.get(key, (int, float)) for key in ("start", "end") if key in item.value}
    if len(bounds) == 1 or (bounds and not 0 <= bounds["start"] < bounds["end"] < _LONGEST):
        raise item.error(f"the clip must start before it ends, got {bounds!s:.80}")
    return Sample(
        id=f"{NAME}-{task}-{number}",
        video=str(media.place(where)) if task == _FRAMES else media.find(where, video),
        question=mvbench_prompt(item.get("question"), options),
        answer=letter_of(item, options),
        type=task,
        meta={
            **facts(
                NAME,
                split,
                {"task": task},
                video=video,
                options=options,
                clip={key: float(value) for key, value in bounds.items()},
            ),
            "source": where,
        },
    )


def _prepare(sample: Sample, folder: Path) -> Sample:
    """A file of the clip's own, where the question is about a part of a video or about a folder of frames."""
    clip = sample.meta["official"]["clip"]
    if not os.path.exists(sample.video) or not (clip or sample.type == _FRAMES):
        return sample
    return cut(sample, folder, clip.get("start"), clip.get("end"), frame_rate=FRAME_RATE)


def _paper(prediction: Prediction) -> bool | None:
    """A sample that failed is left out. Answers go through what the published runner does to them: the first line, behind "("."""
    if prediction.prediction is None:
        return None
    line = prediction.prediction.strip().split("\n")[0]
    line = line if line.startswith("(") else f"({line}"
    said = line.lower().split(" ")[0]
    gold = f"({prediction.references[0].lower()})"
    return said.replace(".", "") in gold or gold in said


BENCHMARK = Benchmark(
    name=NAME,
    title="MVBench",
    convert=_convert,
    prepare=_prepare,
    official={"options": list},
    scorers=(
        Scorer(protocol="paper", version="mvbench-paper-2", measures=judged(_paper)),
        Scorer(protocol="strict", version="mvbench-strict-3", measures=strictly(names_the_right_option)),
    ),
    # 20 tasks as in the official README, 200 each not found there
    totals={"test": {"": 4000}},
    default_split="test",
)
