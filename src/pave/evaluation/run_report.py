"""The report on evaluations: from folders of ``pave eval --out`` to one page."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pave.config import SideChannelConfig
from pave.data.media import FrameSampling
from pave.data.samples import Sample, read_samples
from pave.data.store.plan import identify
from pave.evaluation.benchmarks import PROTOCOLS, get_benchmark
from pave.evaluation.benchmarks.scoring import benchmark_of, compare_benchmark
from pave.evaluation.contents import SampleContents, other_content
from pave.evaluation.costs import RunCost, costs_in
from pave.evaluation.examples import example_view, text_view, unpatched_view, without_weights
from pave.evaluation.exposure import Exposure, read_changes
from pave.evaluation.inference import VideoQA
from pave.evaluation.predictions import Prediction, check_same_sample
from pave.evaluation.report import ExampleView, NamedComparison, write_report
from pave.evaluation.report_sections import costs_section, exposures_section, published_section, scorers_section
from pave.evaluation.result import EvalResult, compare_results, paired_predictions, rescore, verdicts
from pave.evaluation.runner import model_facts
from pave.evaluation.shards import PREDICTIONS, merge_shards
from pave.patching import read_record
from pave.side_channels import build_encoder
from pave.utils.content import ContentHashes
from pave.utils.json_files import read_json

SCORES = "scores.json"
"""What ``pave eval`` writes beside the predictions."""


@dataclass(frozen=True, kw_only=True)
class ReportRun:
    """A run to report on."""

    name: str
    folder: Path
    result: EvalResult
    exposure: Exposure | None
    cost: RunCost | None

    @property
    def right(self) -> dict[str, bool]:
        """Which answers are right, by sample id."""
        predictions = self.result.predictions
        return {p.id: right for p, right in zip(predictions, verdicts(predictions, benchmark_of(predictions)), strict=True)}


def read_runs(
    texts: Sequence[str],
    *,
    samples: str | os.PathLike[str] | None = None,
    data_root: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> list[ReportRun]:
    """Read folders of ``pave eval --out``, scored again from their predictions.

    Args:
        texts: ``FOLDER`` or ``NAME=FOLDER``; without a name it is the folder's.
        samples: the file of samples, for runs that did not end.
        data_root: folder that paths in ``samples`` start from.
        seed: of the bootstrap of scores that are not right or wrong.

    Raises:
        ValueError: if a folder holds no run, a name comes twice, or the runs do not have the same samples.
    """
    named: dict[str, Path] = {}
    for text in texts:
        name, folder = _named(text)
        if name in named:
            raise ValueError(f"two runs are called {name!r}: {named[name]} and {folder}; name them, as in NAME=FOLDER")
        named[name] = folder
    runs: list[ReportRun] = []
    for name, folder in named.items():
        if not folder.is_dir():
            raise ValueError(f"{folder}: there is no such folder; a run is a folder that pave eval --out wrote")
        result = rescore(merge_shards(folder), samples=samples, data_root=data_root, seed=seed)
        exposure = read_changes(folder, result, samples=samples, data_root=data_root, seed=seed)
        runs.append(ReportRun(name=name, folder=folder, result=result, exposure=exposure, cost=costs_in(folder, PREDICTIONS)))
        _check_same_samples(runs[0], runs[-1])
    return runs


def write_run_report(
    path: str | os.PathLike[str],
    runs: Sequence[ReportRun],
    *,
    samples: Sequence[Sample] | None = None,
    qa: VideoQA | None = None,
    examples: int = 6,
    title: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the page.

    Args:
        path: the HTML file.
        runs: the first is the one that others are compared with; samples are shown where it and the last differ.
        samples: that were answered, to find their files; default those that a run's ``scores.json`` names, else the videos of the
            predictions.
        qa: a patched model, to show where it looks; without it frames and what is heard are shown alone.
        examples: most samples to show.
        title: of the page.
        seed: of the bootstrap of scores that are not right or wrong.

    Returns:
        What is on the page, for JSON.

    Raises:
        ValueError: if the patch of ``qa`` is not that of any of the runs.
    """
    first, last = runs[0], runs[-1]
    if qa is not None:
        _check_patch(qa, runs)
    comparisons = _comparisons(runs, seed)
    benchmark = benchmark_of(first.result.predictions)
    tables = {run.name: run.result.benchmark for run in runs if run.result.benchmark is not None}
    exposures = {run.name: run.exposure for run in runs if run.exposure is not None}
    shown = [_view(one, runs, _samples_of(runs, samples), qa) for one in differing(first, last, examples)]
    write_report(
        path,
        title or (f"{get_benchmark(benchmark.name).title}: " if benchmark else "") + ", ".join(run.name for run in runs),
        [run.result.table(run.name, str(run.folder)) for run in runs],
        shown,
        {run.name: _facts(run) for run in runs},
        summary=" ".join(f"{name}: {s}" for name, exposure in exposures.items() for s in exposure.sentences),
        chance=_chance(first.result.predictions),
        comparisons=comparisons,
        sections={
            "published": published_section(tables),
            "scorers": scorers_section(tables),
            "exposures": exposures_section(exposures, [run.name for run in runs]),
            "unchecked": unchecked_runs(runs),
            "costs": costs_section({run.name: run.cost for run in runs}),
            "pair": (first.name, last.name) if len(runs) > 1 else None,
        },
    )
    return {
        "report": os.fspath(path),
        "runs": {
            run.name: {
                "folder": str(run.folder),
                **run.result.to_dict(),
                **({} if run.exposure is None else {"counterfactuals": run.exposure.to_dict()}),
                "cost": None if run.cost is None else run.cost.to_dict(),
            }
            for run in runs
        },
        "examples": [view.id for view in shown],
        "not_shown": {view.id: view.note for view in shown if view.note},
    }


def _check_patch(qa: VideoQA, runs: Sequence[ReportRun]) -> None:
    """Refuse to show where another patch looks beside the answers of these."""
    own = model_facts(qa)["patch_weights"]
    known = {run.name: run.result.settings.get("patch_weights") for run in runs}
    if own not in known.values():
        those = ", ".join(f"{name!r} {weights or 'none'}" for name, weights in known.items())
        raise ValueError(
            f"the patch that is to be shown has the weights {own}, but no run was answered by it (the weights of their patches: {those}); "
            "give --patch one that answered, as it was then"
        )


def unchecked_runs(runs: Sequence[ReportRun]) -> list[str]:
    """Names of the runs of a patch without counterfactuals: whether it uses its side channel is not known."""
    return [run.name for run in runs if run.exposure is None and run.result.settings.get("patch_weights") is not None]


def differing(first: ReportRun, last: ReportRun, count: int) -> list[str]:
    """Ids of samples that one of two runs alone has right: two that the last has for one that the first has, each by question type
    in turn. Of one run, samples that are wrong."""
    right, other = first.right, last.right
    kinds = {p.id: p.type for p in first.result.predictions}
    won = _in_turn([i for i in kinds if other[i] and not right[i]], kinds)
    lost = _in_turn([i for i in kinds if right[i] and not other[i]], kinds)
    if first is last:
        return _in_turn([i for i in kinds if not right[i]], kinds)[:count]
    share = min(len(lost), max(count // 3, count - len(won)))
    return won[: count - share] + lost[:share]


def _in_turn(ids: Sequence[str], kinds: Mapping[str, str]) -> list[str]:
    """One of each question type, then the second of each, ..."""
    seen: dict[str, int] = {}
    places = []
    for number, one in enumerate(ids):
        seen[kinds[one]] = seen.get(kinds[one], 0) + 1
        places.append((seen[kinds[one]], number, one))
    return [one for _, _, one in sorted(places)]


def _named(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not equals or Path(text).is_dir():
        return Path(text).resolve().name, Path(text)
    if not name or not folder:
        raise ValueError(f"a run is written as FOLDER or NAME=FOLDER, got {text!r}")
    return name, Path(folder)


def _check_same_samples(first: ReportRun, other: ReportRun) -> None:
    try:
        for one, two in paired_predictions(first.result, other.result):
            check_same_sample(one, _without_files(two, one), other.folder / PREDICTIONS)
    except ValueError as error:
        raise ValueError(f"the runs {first.name!r} and {other.name!r} cannot stand in one report: {error}") from None


def _without_files(prediction: Prediction, other: Prediction) -> Prediction:
    """Paths may be written otherwise in another run, and a run without the side channel may lack its files."""
    return replace(prediction, video=other.video, context=other.context)


def _comparisons(runs: Sequence[ReportRun], seed: int) -> list[NamedComparison]:
    """Every run against the first; of a benchmark by the first measure of its strict scorer."""
    found = []
    benchmark = benchmark_of(runs[0].result.predictions)
    for run in runs[1:]:
        pairs = compare_results(runs[0].result, run.result, seed=seed)
        if benchmark is not None and run.result.benchmark is not None and run.result.benchmark.tables:
            both = paired_predictions(runs[0].result, run.result)
            measures = compare_benchmark(benchmark, both, protocols=PROTOCOLS[1:], seed=seed).values()
            pairs = next(iter(next(iter(measures)).values()), pairs)
        found += [
            NamedComparison(first=runs[0].name, second=run.name, subset=kind, result=pair) for kind, pair in pairs.items()
        ]
    return found


def _chance(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Accuracy of guessing, of the types whose samples all have choices."""
    groups: dict[str, list[Prediction]] = {"overall": list(predictions)}
    for prediction in predictions:
        groups.setdefault(prediction.type, []).append(prediction)
    return {
        kind: sum(1 / len(p.choices) for p in members) / len(members)
        for kind, members in groups.items()
        if members and all(p.choices for p in members)
    }


def _facts(run: ReportRun) -> dict[str, Any]:
    kept = {key: value for key, value in run.result.settings.items() if value is not None}
    return {key: json.dumps(value) if isinstance(value, (dict, list)) else value for key, value in kept.items()}


def _samples_of(runs: Sequence[ReportRun], given: Sequence[Sample] | None) -> dict[str, Sample]:
    """Samples by id: those that are given, else those of the file that a run's scores name, where that is still there."""
    if given is not None:
        return {sample.id: sample for sample in given}
    for run in reversed(runs):
        try:
            named = read_json(run.folder / SCORES)["samples"]
            return {sample.id: sample for sample in read_samples(named)}
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return {}


def _view(one: str, runs: Sequence[ReportRun], samples: Mapping[str, Sample], qa: VideoQA | None) -> ExampleView:
    answers = {run.name: next(p for p in run.result.predictions if p.id == one) for run in runs}
    right = {run.name: run.right[one] for run in runs}
    last = runs[-1]
    asked = answers[last.name]
    sample = samples.get(one)
    if sample is None or sample.turns[-1][0] != asked.question:
        sample = Sample(id=one, video=asked.video, question=asked.question)
    role = other_content(asked.content, SampleContents().of(sample))
    if role is not None:
        note = f"Frames and side channels are not shown: the {role} of {sample.video} has other content than when it was asked about."
        return replace(text_view(answers, right), note=note)
    try:
        if qa is not None:
            view = example_view(qa, sample, answers, right)
        else:
            view = unpatched_view(sample, _sampling(last), _channels(last), answers, right)
    except ValueError as error:
        return replace(text_view(answers, right), note=f"Frames and side channels are not shown: {error}")
    if sample.id not in samples and asked.context:
        return replace(view, note="Side channels from files of their own are not shown: the file of samples is not at hand.")
    return view


def _sampling(run: ReportRun) -> FrameSampling:
    return FrameSampling.from_dict(run.result.settings.get("frames") or {}, where=f"{run.folder}: the setting 'frames'")


def _channels(run: ReportRun) -> Mapping[str, SideChannelConfig]:
    """The side channels of the run's patch, where that is a folder that is still there, with the encoders that were used then. Those
    with weights are not looked at, as no model is loaded."""
    patch, used = run.result.settings.get("patch"), run.result.settings.get("encoders")
    if not isinstance(patch, str) or not Path(patch).is_dir() or not isinstance(used, Mapping):
        return {}
    channels = {n: c for n, c in read_record(patch).patch.side_channels.items() if without_weights(c.encoder)}
    names = {name: identify(build_encoder(channel.encoder), ContentHashes()).id for name, channel in channels.items()}
    return {name: channel for name, channel in channels.items() if used.get(name) == names[name]}
