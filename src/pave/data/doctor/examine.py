"""From files of samples to a report, and to a cleaned file."""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pave.data.doctor.defects import SEVERITIES
from pave.data.doctor.findings import Finding, Report, Split
from pave.data.doctor.setup import Setup
from pave.data.doctor.texts import check_between, check_texts, finding
from pave.data.doctor.worker import inspect_all
from pave.data.samples import BadLine, Sample, scan_samples, write_samples
from pave.utils.console import track
from pave.utils.files import atomic_write_json

_LACKS = ("audio-none", "channel-missing")
"""Notes that are errors about a channel that is required."""


def examine(
    files: Sequence[str | os.PathLike[str]],
    setup: Setup,
    *,
    data_root: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str] | None] | None = None,
    workers: int = 1,
    progress: bool = True,
) -> Report:
    """Look for every kind of defect in files of samples and in the media that they name. Nothing is changed.

    Args:
        files: of samples; several are compared with each other.
        setup: what to look for.
        data_root: the folder that paths in the files start from, or one for each file by its path; None is each file's own.
        workers: processes that read; 0 reads in this one, without a time limit.
        progress: show how far it is.

    Raises:
        ValueError: if a file is not there or given twice, a required channel is not one of the patch's, or an encoder or the base
            cannot be had.
    """
    names = [os.fspath(file) for file in files]
    if not names or len({os.path.realpath(name) for name in names}) < len(names):
        raise ValueError(f"different files of samples are needed, at least one, got {', '.join(names) or 'none'}")
    unknown = [name for name in setup.required if setup.channels and name not in setup.channels]
    if unknown:
        raise ValueError(f"the patch has no channel {unknown[0]!r} that could be required; it has {', '.join(setup.channels)}")
    splits, findings = [], []
    for name in names:
        split, bad = _read(name, data_root[name] if isinstance(data_root, Mapping) else data_root)
        splits.append(split)
        findings += [*bad, *check_texts(split)]
    findings += check_between(splits)
    videos = _by_video(splits)
    jobs = list(videos.values())
    samples = [[splits[s].samples[i] for s, i in places] for places in jobs]
    found = track(inspect_all(setup, samples, workers), "Looking at videos", total=len(jobs), enabled=progress)
    for number, raws in found:
        for raw in raws:
            findings += _placed(raw, jobs[number], splits, setup)
    return Report(tuple(splits), tuple(_in_order(findings, splits)), len(jobs), setup.quick)


def _read(name: str, data_root: str | os.PathLike[str] | None) -> tuple[Split, list[Finding]]:
    lines = list(scan_samples(name, data_root))
    good = [(number, sample) for number, sample in lines if isinstance(sample, Sample)]
    split = Split(name, tuple(sample for _, sample in good), tuple(number for number, _ in good))
    bad = [
        finding(found.code, split, [], str(found).removeprefix(f"{name}, "), line=number)
        for number, found in lines
        if isinstance(found, BadLine)
    ]
    return split, bad


def _by_video(splits: Sequence[Split]) -> dict[str, list[tuple[int, int]]]:
    """Places (split, sample) by video, so that each one is read once."""
    videos: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for s, split in enumerate(splits):
        for i, sample in enumerate(split.samples):
            videos[sample.video].append((s, i))
    return videos


def _placed(raw: dict[str, Any], places: list[tuple[int, int]], splits: Sequence[Split], setup: Setup) -> list[Finding]:
    """A finding of a worker for every file of samples that it concerns."""
    concerned: dict[int, list[Sample]] = defaultdict(list)
    for place in raw["places"]:
        s, i = places[place]
        concerned[s].append(splits[s].samples[i])
    made = [
        finding(raw["code"], splits[s], samples, raw["message"], file=raw["file"], channel=raw["channel"])
        for s, samples in concerned.items()
    ]
    if raw["code"] in _LACKS and raw["channel"] in setup.required:
        made = [dataclasses.replace(one, severity="error") for one in made]
    return made


def _in_order(findings: list[Finding], splits: Sequence[Split]) -> list[Finding]:
    """By severity, then by file and place in it."""
    order = {split.name: number for number, split in enumerate(splits)}
    lines = {(split.name, sample.id): line for split in splits for sample, line in zip(split.samples, split.lines, strict=True)}

    def key(one: Finding) -> tuple[Any, ...]:
        line = one.line if one.line is not None else lines[one.split, one.samples[0]]
        return SEVERITIES.index(one.severity), order[one.split], line, one.code, one.file or "", one.channel or ""

    return sorted(set(findings), key=key)


@dataclass(frozen=True)
class Cleaned:
    """What ``write_clean`` wrote."""

    samples: Path
    left_out: Path
    kept: int
    dropped: int
    """Lines that are not in it."""


def write_clean(report: Report, path: str | os.PathLike[str], *, strict: bool = False) -> Cleaned | None:
    """Write the first file of a report anew without what has a defect, and beside it ``NAME.left_out.json`` with what was left
    out and why. Each appears whole or not at all; no other file is touched.

    Args:
        report: of ``examine``.
        path: the new file of samples, ending in .jsonl.
        strict: leave out samples with warnings too.

    Returns:
        What was written; None, with nothing written, where no sample is left.

    Raises:
        ValueError: if the path ends otherwise or is one of the files that were examined.
    """
    target = Path(path)
    if target.suffix != ".jsonl":
        raise ValueError(f"{target}: the name of a file of samples ends in .jsonl")
    if os.path.realpath(target) in {os.path.realpath(split.name) for split in report.splits}:
        raise ValueError(f"{target}: this is one of the files that are examined, and they are not changed; choose another name")
    split = report.splits[0]
    grave = ("error", "warning") if strict else ("error",)
    reasons: dict[str | int, list[dict[str, Any]]] = defaultdict(list)
    for one in report.findings:
        if one.split == split.name and one.severity in grave:
            for key in one.samples or (one.line or 0,):
                reasons[key].append(
                    {name: value for name, value in one.to_dict().items() if name not in ("split", "samples", "line")}
                )
    kept = [sample for sample in split.samples if sample.id not in reasons]
    if not kept:
        return None
    lines = dict(zip((sample.id for sample in split.samples), split.lines, strict=True))
    left_out: list[dict[str, Any]] = [
        {"id": key if isinstance(key, str) else None, "line": lines[key] if isinstance(key, str) else key, "why": why}
        for key, why in reasons.items()
    ]
    beside = target.with_suffix(".left_out.json")
    content = {"source": split.name, "kept": len(kept), "left_out": sorted(left_out, key=lambda one: one["line"])}
    atomic_write_json(beside, content)
    write_samples(target, [_absolute(sample) for sample in kept])
    return Cleaned(target, beside, len(kept), len(left_out))


def _absolute(sample: Sample) -> Sample:
    channels = {name: path and os.path.abspath(path) for name, path in sample.side_channels.items()}
    return dataclasses.replace(sample, video=os.path.abspath(sample.video), side_channels=channels)
