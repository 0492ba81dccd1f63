"""What can be seen without opening media: answers, repeated questions, and what two files of samples have in common."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence

from pave.data.doctor.defects import DEFECTS
from pave.data.doctor.findings import Finding, Split
from pave.data.samples import Sample


def finding(
    code: str,
    split: Split,
    samples: Sequence[Sample],
    message: str,
    *,
    line: int | None = None,
    file: str | None = None,
    channel: str | None = None,
) -> Finding:
    """A finding with the severity of its kind."""
    ids = tuple(sample.id for sample in samples)
    return Finding(code, DEFECTS[code].severity, split.name, ids, line, file, channel, message)


def check_texts(split: Split) -> Iterator[Finding]:
    """Missing answers and repeated questions of one file."""
    asked: dict[tuple[object, ...], Sample] = {}
    for sample in split.samples:
        if not sample.references and all(answer is None for _, answer in sample.turns):
            yield finding("answer-missing", split, [sample], "it has no answer")
        files = tuple(sorted((name, path and _same(path)) for name, path in sample.side_channels.items()))
        first = asked.setdefault((_same(sample.video), files, _questions(sample)), sample)
        if first is sample:
            continue
        if _answers(first) == _answers(sample):
            message = f"sample {first.id!r} asks the same on the same files"
            yield finding("question-repeated", split, [sample], message, file=sample.video)
        else:
            message = f"sample {first.id!r} asks the same on the same files and has the answer {_last(first)!r}, not {_last(sample)!r}"
            yield finding("answer-conflict", split, [sample], message, file=sample.video)


def check_between(splits: Sequence[Split]) -> Iterator[Finding]:
    """Questions and media that a file shares with a later one. The finding is about the earlier file, which is what is learnt
    from where the first one is; media are the same if their content is."""
    content = _contents(splits)
    for number, split in enumerate(splits):
        for other in splits[number + 1 :]:
            yield from _shared_questions(split, other, content)
            yield from _shared_media(split, other, content)


def _shared_questions(split: Split, other: Split, content: dict[str, str]) -> Iterator[Finding]:
    asked = {(content[_same(sample.video)], _questions(sample)): sample for sample in reversed(other.samples)}
    for sample in split.samples:
        twin = asked.get((content[_same(sample.video)], _questions(sample)))
        if twin is not None:
            message = f"sample {twin.id!r} of {other.name} asks the same on the same video"
            yield finding("split-question", split, [sample], message, file=sample.video)


def _shared_media(split: Split, other: Split, content: dict[str, str]) -> Iterator[Finding]:
    theirs = {content[_same(path)]: path for sample in reversed(other.samples) for path in _media(sample)}
    users: dict[str, list[Sample]] = defaultdict(list)
    for sample in split.samples:
        for path in dict.fromkeys(_media(sample)):
            if content[_same(path)] in theirs:
                users[path].append(sample)
    for path, samples in users.items():
        twin = theirs[content[_same(path)]]
        message = f"it is also in {other.name}" + ("" if _same(twin) == _same(path) else f", as {twin}")
        yield finding("split-media", split, samples, message, file=path)


def _contents(splits: Sequence[Split]) -> dict[str, str]:
    """What stands for the content of each file: its SHA-256 where a file of another split has its size, else its path."""
    sizes: dict[int, set[int]] = defaultdict(set)
    paths: dict[str, int | None] = {}
    for number, split in enumerate(splits):
        for path in {_same(path) for sample in split.samples for path in _media(sample)}:
            size = paths.setdefault(path, os.path.getsize(path) if os.path.isfile(path) else None)
            if size:
                sizes[size].add(number)
    return {path: _digest(path) if size and len(sizes[size]) > 1 else path for path, size in paths.items()}


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError:  # whoever reads it says so
        return path
    return f"sha256:{digest.hexdigest()}"


def _media(sample: Sample) -> list[str]:
    return [sample.video, *(path for path in sample.side_channels.values() if path is not None)]


def _same(path: str) -> str:
    return os.path.realpath(path)


def _questions(sample: Sample) -> tuple[str, ...]:
    """But for capitals and white space."""
    return tuple(" ".join(question.split()).casefold() for question, _ in sample.turns)


def _answers(sample: Sample) -> tuple[object, ...]:
    return (*(answer and answer.strip() for _, answer in sample.turns), *sorted(sample.references))


def _last(sample: Sample) -> str | None:
    return sample.turns[-1][1]
