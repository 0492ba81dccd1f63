"""Small files in the official formats of the benchmarks, written by hand, and the way from them to scores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from pave.data.samples import read_samples
from pave.evaluation.benchmarks import get_benchmark
from pave.evaluation.benchmarks.conversion import convert
from pave.evaluation.predictions import as_prediction
from pave.evaluation.result import score_predictions


def write_json(path: Path, value) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def touch(folder: Path, *names: str) -> Path:
    """A folder with files of these names; nothing here decodes them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    folder.mkdir(exist_ok=True)
    return folder


def converted(name: str, folder: Path, annotations, media: Path, **options):
    """(conversion, samples read back)."""
    paths = [annotations] if isinstance(annotations, Path) else annotations
    done = convert(get_benchmark(name), paths, media, folder / "samples.jsonl", **{"subset": True, **options})
    return done, read_samples(folder / "samples.jsonl")


def answered(samples, answers):
    """Predictions with these answers, in order; None is a sample that failed."""
    return [
        replace(as_prediction(sample), **({"error": "broken"} if text is None else {"prediction": text}))
        for sample, text in zip(samples, answers, strict=True)
    ]


def verdicts(samples, answers, protocol: str):
    """Per sample what a protocol's first measure gives it."""
    predictions = answered(samples, answers)
    benchmark = get_benchmark(predictions[0].benchmark)
    return [None if v is None else bool(v) for v in benchmark.scorer(protocol).measures(predictions)[0].values]


def result_of(samples, answers):
    """The benchmark's result for these answers."""
    return score_predictions(answered(samples, answers)).benchmark
