"""Files of timed text: SubRip (.srt), WebVTT (.vtt) and the JSON of speech recognition.

Strict on purpose, and so not left to a library: those that read captions leave out what they do not understand, and text that
is missing or stands at a wrong time would be learnt from without anybody noticing.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterator
from typing import Any

from pave.side_channels.text import TextSegment, TimedText
from pave.utils.json_files import parse_json

MAX_BYTES = 32 * 2**20
"""Largest file that is read."""
MAX_SEGMENTS = 200_000
_MAX_LINE = 10_000
_SRT_TIMES = re.compile(r"\s*(\S+)\s*-->\s*(\S+)(?:\s+[XY]\d:.*)?\s*")
_VTT_TIMES = re.compile(r"\s*(\S+)\s+-->\s+(\S+)(?:\s+\S.*)?")
_SRT_CLOCK = re.compile(r"(\d{1,4}):(\d{2}):(\d{2})[,.](\d{1,3})")
_VTT_CLOCK = re.compile(r"(?:(\d{2,4}):)?(\d{2}):(\d{2})\.(\d{3})")
_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,200}>|<\d[\d:.]{0,20}>|\{\\[^{}]{0,200}\}")
_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def read_timed_text(path: str | os.PathLike[str], *, encoding: str = "utf-8") -> TimedText:
    """Read captions or a transcript. Tags and entities are taken out of the text, line breaks become spaces.

    JSON is an object with the list ``segments`` as Whisper writes it, each with start, end and text; such a list alone; or an
    object with the list ``chunks`` of transformers, each with timestamp and text. Other keys are not looked at.

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
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _plain(text: str) -> str:
    """Without tags, entities and line breaks."""
    return " ".join(html.unescape(_TAG.sub("", text)).split())


def _blocks(text: str) -> Iterator[tuple[int, list[str]]]:
    """Runs of lines between blank ones, each with the number of its first line."""
    block: list[str] = []
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        if len(line) > _MAX_LINE:
            raise ValueError(f"line {number} is longer than {_MAX_LINE} characters, which no caption is")
        if line.strip():
            block.append(line)
        elif block:
            yield number - len(block), block
            block = []


def _seconds(text: str, pattern: re.Pattern[str], line: int) -> float:
    found = pattern.fullmatch(text)
    if found is None or int(found[2]) > 59 or int(found[3]) > 59:
        raise ValueError(f"line {line}: {text[:40]!r} is no time")
    return int(found[1] or 0) * 3600 + int(found[2]) * 60 + int(found[3]) + int(found[4].ljust(3, "0")) / 1000


def _segment(match: re.Match[str], clock: re.Pattern[str], line: int, text: str) -> TextSegment:
    start, end = (_seconds(part, clock, line) for part in match.groups())
    if end < start:
        raise ValueError(f"line {line}: the segment ends at {end:g} s, before it starts at {start:g} s")
    return TextSegment(start, end, _plain(text))


def _srt(text: str) -> Iterator[TextSegment]:
    for first, block in _blocks(text):
        skip = 1 if block[0].strip().isdecimal() and len(block) > 1 else 0
        match = _SRT_TIMES.fullmatch(block[skip])
        if match is None:
            raise ValueError(
                f"line {first + skip}: times are expected, such as 00:00:01,000 --> 00:00:02,500, got {block[skip].strip()[:40]!r}"
            )
        yield _segment(match, _SRT_CLOCK, first + skip, "\n".join(block[skip + 1 :]))


def _vtt(text: str) -> Iterator[TextSegment]:
    if not re.match(r"WEBVTT(?:[ \t\n]|$)", text):
        raise ValueError("it does not begin with WEBVTT")
    blocks = _blocks(text)
    _, header = next(blocks)
    if any(line.startswith("X-TIMESTAMP-MAP") for line in header) or any("-->" in line for line in header):
        raise ValueError("its header maps times to a broadcast's clock, or is not followed by a blank line; neither is read")
    for first, block in blocks:
        if re.match(r"(NOTE|STYLE|REGION)(\s|$)", block[0]) and "-->" not in block[0]:
            continue
        skip = 0 if "-->" in block[0] else 1
        match = _VTT_TIMES.fullmatch(block[skip]) if skip < len(block) else None
        if match is None:
            raise ValueError(f"line {first + skip}: times are expected, such as 00:01.000 --> 00:02.500")
        yield _segment(match, _VTT_CLOCK, first + skip, "\n".join(block[skip + 1 :]))


def _json(text: str) -> Iterator[TextSegment]:
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ValueError(f"it cannot be read: {error}") from None
    chunks = isinstance(values, dict) and "segments" not in values
    entries = values.get("chunks" if chunks else "segments") if isinstance(values, dict) else values
    if not isinstance(entries, list):
        raise ValueError("a list of segments is expected, alone or under the key 'segments' (or 'chunks')")
    for number, entry in enumerate(entries):
        yield _json_segment(number, entry, chunks)


def _json_segment(number: int, entry: Any, chunks: bool) -> TextSegment:
    try:
        start, end = entry["timestamp"] if chunks else (entry["start"], entry["end"])
        text = entry["text"]
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"segment {number} needs {'timestamp' if chunks else 'start, end'} and text") from None
    numbers = all(isinstance(t, (int, float)) and not isinstance(t, bool) and abs(t) < 1e9 for t in (start, end))
    if not numbers or end < start or not isinstance(text, str):
        raise ValueError(
            f"segment {number}: text from a start to an end in seconds is expected, got {str(text)[:40]!r} from {start!r} to {end!r}"
        )
    return TextSegment(float(start), float(end), _plain(text))
