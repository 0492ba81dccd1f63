"""Official files of a benchmark to a file of samples, with counts and whatever is missing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pave.data.samples import Sample, write_samples
from pave.evaluation.benchmarks import Benchmark
from pave.evaluation.benchmarks.files import MediaFolder
from pave.utils.console import track

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What came of it."""

    benchmark: str
    split: str
    out: str
    n_samples: int
    """Samples written."""
    n_videos: int
    """Videos that they are about."""
    official: dict[str, int]
    """Samples that the split has officially, by release; empty where that is not known."""
    subtypes: dict[str, dict[str, int]]
    """Samples by kind of subtype and subtype."""
    missing: tuple[tuple[str, str], ...]
    """(sample id, video) of the samples whose video is not there."""
    failed: tuple[tuple[str, str], ...]
    """(sample id, why) of the samples whose clip could not be made; they are written, without a video."""
    odd: tuple[tuple[str, str], ...]
    """(sample id, what) of the samples whose official item is odd: they are written, and count, as the official script reads them."""
    dropped: bool
    """True if those were left out of the file."""
    n_secret: int
    """Samples without a public answer."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        lists = {"missing": ("video", self.missing), "failed": ("error", self.failed), "odd": ("what", self.odd)}
        return asdict(self) | {
            key: [{"id": sample, name: text} for sample, text in entries] for key, (name, entries) in lists.items()
        }


def convert(
    benchmark: Benchmark,
    annotations: Sequence[str | os.PathLike[str]],
    media: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    split: str | None = None,
    files: str | os.PathLike[str] | None = None,
    subset: bool = False,
    drop_missing: bool = False,
) -> Conversion:
    """Write the samples of a benchmark's split. Paths of videos and other files are written relative to the folder of ``out`` where
    they lie below it, else absolute.

    Args:
        benchmark: which.
        annotations: its official files, or folders that hold them.
        media: folder with the videos.
        out: the file of samples.
        split: of the annotations; None reads it off the name of the first file.
        files: folder for what has to be made beside the samples (clips of MVBench, lists of cameras of Ego-Exo4D); a clip that is
            there already is kept, if it was made of the same content and times. Default: a folder beside ``out`` that is called after it.
        subset: accept fewer or more samples than the split has officially.
        drop_missing: leave samples out whose video is not there. By default they stay, so that an evaluation lists them and
            counts them as wrong.

    Raises:
        ValueError: if a file is missing or not of the benchmark's format, naming file, item and field; or the number of samples is
            not the official one. Nothing is written then.
    """
    paths = _files(benchmark, annotations)
    split = split or _split_of(benchmark, paths)
    media = os.path.abspath(media)  # paths in the file count from its folder, not from where the command runs
    samples = list(benchmark.convert(paths, MediaFolder(media), split))
    _refuse_repeated(samples, paths)
    official = dict(benchmark.totals.get(split, {}))
    if official and len(samples) not in official.values() and not subset:
        expected = " or ".join(f"{n:,}{f' ({release})' if release else ''}" for release, n in official.items())
        raise ValueError(
            f"{', '.join(map(str, paths))}: {len(samples):,} samples, but {benchmark.title} has {expected} in its split {split}; give "
            "all of its files, or accept a part with --subset"
        )
    missing = [(sample.id, sample.video) for sample in samples if not os.path.exists(sample.video)]
    lost = {name for name, _ in missing} if drop_missing else set()
    kept = [sample for sample in samples if sample.id not in lost]
    if not kept:
        raise ValueError(f"{media}: none of the {len(samples):,} samples has its video there, such as {missing[0][1]}")
    folder = Path(os.path.abspath(Path(out).with_name(f"{Path(out).stem}_files") if files is None else files))
    kept, failed = _prepared(benchmark, kept, folder)
    write_samples(out, kept)
    subtypes: dict[str, Counter[str]] = {}
    for sample in kept:
        for kind, name in sample.meta["subtypes"].items():
            subtypes.setdefault(kind, Counter())[name] += 1
    return Conversion(
        benchmark=benchmark.name,
        split=split,
        out=os.fspath(out),
        n_samples=len(kept),
        n_videos=len({sample.video for sample in kept}),
        official=official,
        subtypes={kind: dict(counts) for kind, counts in subtypes.items()},
        missing=tuple(missing),
        failed=tuple(failed),
        odd=tuple((sample.id, sample.meta["odd"]) for sample in kept if "odd" in sample.meta),
        dropped=drop_missing,
        n_secret=sum(not sample.references for sample in kept),
    )


def _prepared(benchmark: Benchmark, samples: list[Sample], folder: Path) -> tuple[list[Sample], list[tuple[str, str]]]:
    """The samples with what had to be made for them, and (id, why) of those for which it could not."""
    if benchmark.prepare is None:
        return samples, []
    ready, failed = [], []
    for sample in track(samples, f"Preparing {len(samples)} samples"):
        try:
            ready.append(benchmark.prepare(sample, folder))
        except ValueError as error:
            failed.append((sample.id, " ".join(str(error).split())))
            ready.append(replace(sample, video=str(folder / f"{sample.id}-not-made.mp4")))
    return ready, failed


def _files(benchmark: Benchmark, annotations: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The files themselves, and those of every folder."""
    paths: list[Path] = []
    for path in map(Path, annotations):
        if not path.exists():
            raise ValueError(f"{path}: there is no such file of annotations")
        found = sorted(path.glob(benchmark.files)) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"{path}: the folder holds no annotations of {benchmark.title} ({benchmark.files})")
        for file in found:
            if any(file.samefile(other) for other in paths):
                raise ValueError(f"{file}: the file of annotations is given twice; give each once")
        paths += found
    return paths


def _refuse_repeated(samples: Sequence[Sample], paths: Sequence[Path]) -> None:
    """No two samples may have one id; a benchmark whose official files repeat ids tells them apart itself."""
    counts = Counter(sample.id for sample in samples)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise ValueError(
            f"{', '.join(map(str, paths))}: {len(repeated):,} ids come more than once, such as {repeated[0]!r}; keep one item of each id"
        )


def _split_of(benchmark: Benchmark, paths: Sequence[Path]) -> str:
    """The split that the files' names speak of, or the only one there is."""
    known = list(dict.fromkeys((*benchmark.totals, *SPLITS)))
    found = {split for path in paths for split in known if split in path.stem.lower().replace("-", "_").split("_")}
    if not found and benchmark.default_split is not None:
        return benchmark.default_split
    if len(found) != 1:
        raise ValueError(f"{paths[0]}: the file's name does not say which split it is; give --split, one of {', '.join(known)}")
    return found.pop()
