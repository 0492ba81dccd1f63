"""Ego-Exo4D demonstrator proficiency (Grauman et al., CVPR 2024): how well a person does something, in four classes.

Official models give probabilities for the view of the person and for four further cameras. A language model names the class
instead; its submission holds that name, and gives the class all the probability.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from pave.data.samples import Sample
from pave.evaluation.benchmarks.base import Benchmark, Scorer, facts, judged, strictly
from pave.evaluation.benchmarks.files import Item, MediaFolder, is_name, items_of, located, read_json
from pave.evaluation.metrics import exact_match
from pave.evaluation.predictions import Prediction
from pave.utils.files import atomic_write_json

NAME = "ego_exo4d"
CLASSES = ("Novice", "Early Expert", "Intermediate Expert", "Late Expert")
"""In the order of the official class indices."""
VIEWS = ("exo1", "exo2", "exo3", "exo4")
CHANNEL = "views"
"""The side channel that the further cameras are."""
QUESTION = "How proficient is the person in this video at the task? Answer with one of: Novice, Early Expert, Intermediate Expert, Late Expert."


def _convert(annotations: Sequence[Path], media: MediaFolder, split: str) -> Iterator[Sample]:
    for path in annotations:
        for item in items_of(path, read_json(path), key="annotations"):
            yield _sample(item, media, split)


@located
def _sample(item: Item, media: MediaFolder, split: str) -> Sample:
    take, scenario = item.get("take_uid"), item.get("scenario_name")
    if not is_name(take):
        raise item.error(f"the take_uid {take!r} must be the name of a file, without folders")
    paths = Item(f"{item.where}, 'video_paths'", item.get("video_paths", dict))
    views = {name: media.find(*_places(paths.get(name))) for name in VIEWS if paths.value.get(name)}
    known = item.value.get("proficiency_score") is not None
    label = item.get("proficiency_score") if known else None
    if known and label not in CLASSES:
        raise item.error(f"the proficiency_score {label!r} is none of {', '.join(CLASSES)}")
    return Sample(
        id=f"{NAME}-{split}-{take}",
        video=media.find(*_places(paths.get("ego"))),
        question=QUESTION,
        answer=label,
        type=scenario,
        meta=facts(NAME, split, {"scenario": scenario}, take_uid=take, views=views),
    )


def _places(path: str) -> list[str]:
    """The paper used the videos that are 448 pixels high, in a folder beside the full ones."""
    path = path.lstrip("/")
    small = PurePosixPath(path).parent / "downscaled" / "448" / PurePosixPath(path).name
    return [path] if "downscaled" in path else [str(small), path]


def _prepare(sample: Sample, folder: Path) -> Sample:
    """A file that names the further cameras, for a side channel of the kind multiview."""
    official = dict(sample.meta["official"])
    views = official.pop("views")
    meta = {**sample.meta, "official": official}
    if not views:
        return replace(sample, meta=meta, side_channels={CHANNEL: None})
    path = folder / f"{official['take_uid']}.json"
    entries = [
        {"name": name, "video": os.path.relpath(video, folder) if os.path.exists(video) else None}
        for name, video in views.items()
    ]
    atomic_write_json(path, {"views": entries})
    return replace(sample, meta=meta, side_channels={CHANNEL: str(path)})


def _paper(prediction: Prediction) -> bool:
    return (prediction.prediction or "").strip().lower() == prediction.references[0].lower()


def _strict(prediction: Prediction, text: str) -> bool:
    return exact_match(text, prediction.references)


def _submission(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """The class named for each take, and the probabilities that the official script reads: all of it on that class, in every view.

    Raises:
        ValueError: if an answer names no class: the script has no row for that, and reads equal probabilities as the first class, Novice.
    """
    named = [next((i for i, name in enumerate(CLASSES) if exact_match(p.prediction or "", name)), None) for p in predictions]
    lost = [p for p, found in zip(predictions, named, strict=True) if found is None]
    if lost:
        shown = "; ".join(f"{p.id}: {'no answer' if p.prediction is None else repr(p.prediction[:60])}" for p in lost[:20])
        raise ValueError(
            f"{len(lost):,} of {len(predictions):,} answers name none of {', '.join(CLASSES)}, and the format has no place for that (its "
            f"script would read Novice): {shown}{'; ...' if len(lost) > 20 else ''}; answer those takes again, or write a class into the "
            "predictions file"
        )
    ego = [[float(i == found) for i in range(len(CLASSES))] for found in named]
    return {
        "videos": [p.meta["official"]["take_uid"] for p in predictions],
        "predictions": [CLASSES[found] for found in named if found is not None],
        "ego_model_predictions": ego,
        "exo_model_predictions": [[row] * len(VIEWS) for row in ego],
    }


BENCHMARK = Benchmark(
    name=NAME,
    title="Ego-Exo4D demonstrator proficiency",
    convert=_convert,
    prepare=_prepare,
    official={"take_uid": str},
    scorers=(
        Scorer(protocol="paper", version="ego_exo4d-paper-1", measures=judged(_paper)),
        Scorer(protocol="strict", version="ego_exo4d-strict-1", measures=strictly(_strict)),
    ),
    submission=_submission,
)
