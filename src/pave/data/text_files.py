"""Files of timed text: SubRip (.srt), WebVTT (.vtt) and the JSON of speech recognition.

Strict on purpose, and so not left to a library: those that read captions leave out what they do not understand, and text that
is missing or stands at a wrong time would be learnt from without anybody noticing.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from pave.side_channels.text import TextSegment, TimedText
from pave.utils.json_files import parse_json

MAX_BYTES = 32 * 2**20
"""Largest file that is read."""
MAX_SEGMENTS = 200_000
_MAX_LINE = 10_000
_CLOCK = re.compile(r"(?:(\d{1,4}):)?(\d{1,2}):(\d{2})[.,](\d{1,3})")
_TIMES = re.compile(r"\s*(\S+?)\s*-->\s*(\S+)(?:\s+(\S.*))?")
_SRT_SETTINGS = re.compile(r"(?:[A-Za-z]\w*:\S+\s*)*")
_SRT_ARROW = re.compile(r"\d:\d\S{0,20}\s*-->|-->\s*\S{0,20}\d:\d")
_ALMOST_TIMES = re.compile(r"\d:\d\d\S{0,10}\s*(?:-+>|[\u2013\u2014]>|\u2192)\s*\d{1,4}:\d\d")
"""What a line of text would not hold, so that misspelt times are not taken for text."""
_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,200}>|<\d[\d:.]{0,20}>|\{\\[^{}]{0,200}\}")
_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def read_timed_text(path: str | os.PathLike[str], *, encoding: str = "utf-8") -> TimedText:
    """Read captions or a transcript. Tags and entities are taken out of the text, line breaks become spaces.

    Captions that roll up, as YouTube's automatic ones do, say every line twice or three times: they are read as they stand.

    JSON is an object with the list ``segments`` as Whisper writes it, each with start, end and text; such a list alone; or an
    object with the list ``chunks`` of transformers, each with timestamp and text. Other keys are not looked at. An end may be
    null, as it is where the recogniser heard none: such a segment ends where the next one starts, the last one at its own start.

    Args:
        path: ends in .srt, .vtt or .json.
        encoding: of the characters, where no byte order mark says otherwise.

    Raises:
        ValueError: one sentence that names the file and the line or segment, if the file is missing, too large, in another
            encoding, not of its kind, or holds a time that is none or an end before its start.
    """
    name = os.fspath(path)
    kind = os.path.splitext(name)[1].lower()
    if kind not in (".srt", ".vtt", ".json"):
        raise ValueError(f"{name}: timed text is read from .srt, .vtt and .json files")
    if not os.path.isfile(name):
        raise ValueError(f"{name}: there is no such file of timed text")
    try:
        text = _decode(name, encoding)
        segments: list[TextSegment] = []
        for segment in {".srt": _srt, ".vtt": _vtt, ".json": _json}[kind](text):
            if len(segments) == MAX_SEGMENTS:
                raise ValueError(f"it holds more than {MAX_SEGMENTS} segments")
            segments.append(segment)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return TimedText(tuple(segments))


def _decode(name: str, encoding: str) -> str:
    with open(name, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES // 2**20} MiB, which no transcript is")
    marked = next((codec for mark, codec in _MARKS.items() if data.startswith(mark)), encoding)
    try:
        text = data.decode(marked)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {error.start} is not {marked}; say what it is in the encoder's setting encoding, such as cp1252 or latin-1"
        ) from None
    if "\0" in text:
        raise ValueError("it holds zero bytes, so it is no text in this encoding")
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\ufeff", "")


def _plain(text: str) -> str:
    """Without tags, entities and line breaks."""
    return " ".join(html.unescape(_TAG.sub("", text)).split())


@dataclass
class _Cue:
    """A line of times and the lines under it, by their numbers in the file."""

    number: int
    times: str
    lines: list[tuple[int, str]] = field(default_factory=list)

    def drop_last_number(self) -> None:
        """Take out a last line of digits alone: it counts the next cue."""
        if self.lines and self.lines[-1][1].strip().isdecimal():
            del self.lines[-1]


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines and at last an empty one, counted from 1."""
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        if len(line) > _MAX_LINE:
            raise ValueError(f"line {number} is longer than {_MAX_LINE} characters, which no caption is")
        yield number, line


def _times_expected(number: int, line: str) -> ValueError:
    return ValueError(
        f"line {number}: times are expected, such as 00:00:01,000 --> 00:00:02,500, got {line.strip()[:40]!r} (captions are set apart "
        "by empty lines)"
    )


def _seconds(text: str, line: int) -> float:
    found = _CLOCK.fullmatch(text)
    if found is None or int(found[2]) > 59 or int(found[3]) > 59:
        raise ValueError(f"line {line}: {text[:40]!r} is no time")
    return int(found[1] or 0) * 3600 + int(found[2]) * 60 + int(found[3]) + int(found[4].ljust(3, "0")) / 1000


def _segment(cue: _Cue, settings: re.Pattern[str] | None = None) -> TextSegment:
    match = _TIMES.fullmatch(cue.times)
    if match is None or (settings is not None and not settings.fullmatch(match[3] or "")):
        raise _times_expected(cue.number, cue.times)
    start, end = _seconds(match[1], cue.number), _seconds(match[2], cue.number)
    if end < start:
        raise ValueError(f"line {cue.number}: the segment ends at {end:g} s, before it starts at {start:g} s")
    for number, line in cue.lines:
        if _ALMOST_TIMES.search(_TAG.sub("", line)):
            raise _times_expected(number, line)
    return TextSegment(start, end, _plain("\n".join(line for _, line in cue.lines)))


def _srt(text: str) -> Iterator[TextSegment]:
    """A line of times begins a caption, also where no empty line stands before it. The line of digits before it counts the captions,
    if an empty line stands before that or the first caption has such a line too. A line of white space may be a part of a caption."""
    head = _Cue(0, "")
    cue, counted = head, False
    for number, line in _lines(text):
        if not _SRT_ARROW.search(line):
            cue.lines.append((number, line))
            continue
        counted = counted or (cue is head and any(line.strip().isdecimal() for _, line in cue.lines))
        if counted or len(cue.lines) < 2 or not cue.lines[-2][1].strip():
            cue.drop_last_number()
        if cue is not head:
            yield _srt_segment(cue, counted)
        elif stray := [(n, words) for n, words in cue.lines if words.strip()]:
            raise _times_expected(*stray[0])
        cue = _Cue(number, line)
    if cue is not head:
        yield _srt_segment(cue, counted)
    elif stray := [(n, words) for n, words in cue.lines if words.strip()]:
        raise _times_expected(*stray[0])


def _srt_segment(cue: _Cue, counted: bool) -> TextSegment:
    """The caption; words after an empty line, or a further count, belong to another one whose times are missing."""
    before = cue.times
    ended = False
    for number, line in cue.lines:
        if line.strip() and (ended or (counted and not before.strip() and line.strip().isdecimal())):
            raise _times_expected(number, line)
        ended |= not line
        before = line
    return _segment(cue, _SRT_SETTINGS)


def _vtt(text: str) -> Iterator[TextSegment]:
    """As the standard's parser: an empty line ends a caption, one of white space does not, and a line with an arrow begins one
    wherever it stands. Of its own: where the first caption has a number for its name, a line of digits before times is one."""
    if not re.match(r"WEBVTT(?:[ \t\n]|$)", text):
        raise ValueError("it does not begin with WEBVTT")
    cue: _Cue | None = None
    other: list[tuple[int, str]] = [(1, "NOTE")]  # what stands in the block before the times; of the first, the header
    counted: bool | None = None
    for number, line in _lines(text):
        if "X-TIMESTAMP-MAP" in line and cue is None:
            raise ValueError("its header maps times to a broadcast's clock, which is not read")
        if line and "-->" not in line:
            (other if cue is None else cue.lines).append((number, line))
            continue
        if cue is not None:
            if line and counted:
                cue.drop_last_number()
            yield _segment(cue)
            cue = None
        elif not re.match(r"(NOTE|STYLE|REGION)(\s|$)", other[0][1] if other else "NOTE"):
            if not line or len(other) > 1:  # one line before the times is the caption's name
                raise _times_expected(*(other[1] if len(other) > 1 else (number, line)))
            counted = other[0][1].strip().isdecimal() if counted is None else counted
        other = []
        if line:
            counted = bool(counted)
            cue = _Cue(number, line)


def _json(text: str) -> Iterator[TextSegment]:
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ValueError(f"it cannot be read: {error}") from None
    chunks = isinstance(values, dict) and "segments" not in values
    entries = values.get("chunks" if chunks else "segments") if isinstance(values, dict) else values
    if not isinstance(entries, list):
        raise ValueError("a list of segments is expected, alone or under the key 'segments' (or 'chunks')")
    fields = [_json_fields(number, entry, chunks) for number, entry in enumerate(entries)]
    for number, (start, end, words) in enumerate(fields):
        if end is None:  # the recogniser did not hear it end: until the next one, and the last one at its start alone
            following = fields[number + 1][0] if number + 1 < len(fields) else start
            end = max(start, following) if _is_time(start) and _is_time(following) else None
        if not _is_time(start) or not _is_time(end) or end < start or not isinstance(words, str):
            raise ValueError(
                f"segment {number}: text from a start to an end in seconds is expected, got {str(words)[:40]!r} from {start!r} to {end!r}"
            )
        yield TextSegment(float(start), float(end), _plain(words))


def _json_fields(number: int, entry: Any, chunks: bool) -> tuple[Any, Any, Any]:
    """Start, end and text as they stand there."""
    try:
        start, end = entry["timestamp"] if chunks else (entry["start"], entry["end"])
        return start, end, entry["text"]
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"segment {number} needs {'timestamp' if chunks else 'start, end'} and text") from None


def _is_time(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9
