"""The one format of samples: JSON lines, one question or conversation about one video each.

::

    {"id": "kitchen-1", "video": "clips/kitchen.mp4", "question": "What is heard?", "answer": "a kettle"}
    {"id": "kitchen-2", "video": "clips/kitchen.mp4", "type": "order", "question": "Which is first?\\nA. tap\\nB. bell",
     "answer": "bell", "choices": ["tap", "bell"], "side_channels": {"audio": "sound/kitchen.wav", "depth": null}}
    {"id": "kitchen-3", "video": "clips/kitchen.mp4", "messages": [{"role": "user", "content": "What is heard?"},
     {"role": "assistant", "content": "a kettle"}, {"role": "user", "content": "And after it?"}]}

=============== ======================================================================================================
id              text, unique in its file
video           path of the video; like every path, absolute or relative to the file's own folder (or to a data root)
question        what the model is asked, word for word; options that it should see are part of it
answer          optional: the answer to learn or to be judged by; with choices, the text of the right one
messages        instead of question and answer: turns of "user" and "assistant" in alternation, beginning with "user"; a
                conversation that ends with "user" has no last answer
choices         optional: the answers a judge chooses between, at least 2, about the last question
answers         optional: every answer that counts as right; the first one is learnt where "answer" is not given
type            optional: kind of question; tables have a row for each
side_channels   optional: by channel, the path of its file, or null for a channel that is missing. A channel that is not
                named comes from the video itself where it can (sound); null keeps it from doing so
meta            optional: an object with anything else
=============== ======================================================================================================

Nothing else is allowed: a misspelt field is an error. So are control characters, repeated keys and NaN. Blank lines are
skipped. Whether the files exist is not checked here.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from pave.utils.errors import CodedError
from pave.utils.files import atomic_path
from pave.utils.json_files import parse_json

MAX_LINE_BYTES = 16 * 2**20
"""Longest line of a sample file."""
_ROLES = ("user", "assistant")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_LINE_BREAK = re.compile(r"[\t\n\r]")


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: str
    """user or assistant."""
    content: str
    """Text."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question or conversation about one video. The fields are those of the file, explained at the top of this module.

    Lists may be given for tuples, and dictionaries for messages.

    Raises:
        ValueError: naming the field, what was found and what belongs there.
    """

    id: str
    video: str
    question: str | None = None
    answer: str | None = None
    messages: tuple[Message, ...] = ()
    choices: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    type: str = ""
    side_channels: Mapping[str, str | None] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_text("id", self.id, one_line=True)
        _check_path("video", self.video)
        self._set("messages", _as_messages(self.messages))
        self._set("choices", _as_texts("choices", self.choices))
        self._set("answers", _as_texts("answers", self.answers))
        self._check_conversation()
        self._check_choices()
        if self.type:
            _check_text("type", self.type, one_line=True)
        elif self.type != "":
            _wrong("type", self.type, "text")
        _check_object("side_channels", self.side_channels)
        for name, path in self.side_channels.items():
            if not name.isidentifier():
                raise ValueError(f"field 'side_channels': {name!r} is no name of a channel (letters, digits and underscores)")
            if path is not None:
                _check_path(f"side_channels.{name}", path)
        _check_object("meta", self.meta)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_conversation(self) -> None:
        if (self.question is None) == (not self.messages):
            raise ValueError(
                "a sample needs either 'question' or 'messages', " + ("not both" if self.messages else "and has none")
            )
        if self.question is not None:
            _check_text("question", self.question)
        if self.answer is not None:
            if self.messages:
                raise ValueError("field 'answer': with 'messages' the answers are messages of the role 'assistant'")
            _check_text("answer", self.answer)

    def _check_choices(self) -> None:
        if not self.choices:
            return
        if len(self.choices) < 2 or len(set(self.choices)) < len(self.choices):
            raise ValueError(f"field 'choices': there must be at least 2, all different, got {list(self.choices)}")
        for answer in (self.turns[-1][1], *self.answers):
            if answer is not None and answer not in self.choices:
                near = difflib.get_close_matches(answer, self.choices, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f": {', '.join(map(repr, self.choices))}"
                raise ValueError(f"field 'answer': {answer!r} is not one of the choices{hint}")

    @property
    def turns(self) -> tuple[tuple[str, str | None], ...]:
        """(question, answer) pairs in order; the last answer may be None."""
        if self.question is not None:
            return ((self.question, self.answer if self.answer is not None else next(iter(self.answers), None)),)
        texts = [message.content for message in self.messages]
        return tuple(zip(texts[0::2], [*texts[1::2], None] if len(texts) % 2 else texts[1::2], strict=True))

    @property
    def references(self) -> tuple[str, ...]:
        """Every answer to the last question that counts as right; empty where none is known."""
        last = self.turns[-1][1]
        return tuple(dict.fromkeys([*([] if last is None else [last]), *self.answers]))

    def to_dict(self) -> dict[str, Any]:
        """The object of its line, without the fields that are not used."""
        values = dataclasses.asdict(self)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v or name == "video"}


_FIELDS = [f.name for f in dataclasses.fields(Sample)]


def question_with_choices(question: str, choices: Iterable[str]) -> str:
    """A question with its choices under it, a line each, behind the letters A, B, C, ..."""
    return "\n".join([question, *(f"{chr(ord('A') + i)}. {choice}" for i, choice in enumerate(choices))])


def read_samples(path: str | os.PathLike[str], data_root: str | os.PathLike[str] | None = None) -> list[Sample]:
    """Read a file of samples. Relative paths in it become paths from here.

    Args:
        path: of the JSON lines file.
        data_root: the folder that relative paths in the file start from; None is the file's own folder.

    Raises:
        ValueError: naming the file, the line and the field, and the nearest known field where one is misspelt.
    """
    samples = []
    for _, found in scan_samples(path, data_root):
        if isinstance(found, BadLine):
            raise found
        samples.append(found)
    return samples


class BadLine(CodedError):
    """A line that is no sample. The message is one sentence that names the file, the line and the field."""

    code = "sample-invalid"


def scan_samples(
    path: str | os.PathLike[str], data_root: str | os.PathLike[str] | None = None
) -> Iterator[tuple[int, Sample | BadLine]]:
    """Every line that is not blank with its number (from 1): its sample, or what is wrong with it. Arguments as for
    ``read_samples``.

    Raises:
        ValueError: if there is no such file.
    """
    name = os.fspath(path)
    root = os.path.dirname(name) if data_root is None else os.fspath(data_root)
    if not os.path.isfile(name):
        raise ValueError(f"{name}: there is no such file of samples")
    lines: dict[str, int] = {}
    with open(name, "rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            try:
                if len(line) > MAX_LINE_BYTES:
                    while line and not line.endswith(b"\n"):
                        line = file.readline(MAX_LINE_BYTES)
                    raise ValueError(f"the line is longer than {MAX_LINE_BYTES / 2**20:g} MiB; samples are one object a line")
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if not text.strip():
                    continue
                sample = _parse(text, root)
                if sample.id in lines:
                    raise CodedError(f"field 'id': {sample.id!r} is also the id of line {lines[sample.id]}", "id-repeated")
            except UnicodeDecodeError as error:
                yield number, BadLine(f"{name}, line {number}: byte {error.start} of the line is not UTF-8")
            except RecursionError:
                yield number, BadLine(f"{name}, line {number}: not JSON that can be read: it is nested too deeply")
            except ValueError as error:
                yield number, BadLine(f"{name}, line {number}: {error}", getattr(error, "code", None))
            else:
                lines[sample.id] = number
                yield number, sample


def write_samples(path: str | os.PathLike[str], samples: Iterable[Sample]) -> None:
    """Write a file of samples; it appears whole or not at all. Absolute paths below the file's folder are written relative to
    it, so that the folder can be moved; other paths are written as they are.

    Raises:
        ValueError: if two samples have one id, or ``meta`` holds something that is not JSON.
    """
    folder = os.path.dirname(os.path.abspath(path))
    ids: set[str] = set()
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for sample in samples:
            if sample.id in ids:
                raise ValueError(f"write_samples: two samples have the id {sample.id!r}")
            ids.add(sample.id)
            record = _with_paths(sample.to_dict(), lambda p: _below(p, folder))
            file.write(_to_json(record, sample.id) + "\n")


def manifest_hash(samples: Iterable[Sample]) -> str:
    """SHA-256 over the samples in their order: ``sha256:...``. Paths count from the folder that all of them share, so the
    hash does not change when the data is moved as a whole. The content of the media files is not part of it."""
    samples = list(samples)
    paths = [os.path.abspath(path) for s in samples for path in (s.video, *s.side_channels.values()) if path is not None]
    folder = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    digest = hashlib.sha256()
    for sample in samples:
        record = _with_paths(sample.to_dict(), lambda p: os.path.relpath(p, folder).replace(os.sep, "/"))
        digest.update((_to_json(record, sample.id, sort_keys=True) + "\n").encode())
    return f"sha256:{digest.hexdigest()}"


def _parse(text: str, root: str) -> Sample:
    record = parse_json(text.strip())
    if not isinstance(record, dict):
        raise ValueError(f"a sample is an object in braces, one a line, got {_kind(record)}")
    for name in record:
        if name not in _FIELDS:
            near = difflib.get_close_matches(name, _FIELDS, n=1)
            hint = (
                f"did you mean {near[0]!r}?" if near else f"known fields: {', '.join(_FIELDS)}; anything else belongs in 'meta'"
            )
            raise ValueError(f"unknown field {name!r}; {hint}")
    for name in ("id", "video"):
        if name not in record:
            raise ValueError(f"field {name!r} is missing")
    required = {"id", "video"}
    sample = Sample(**{name: value for name, value in record.items() if value is not None or name in required})
    if sample.meta:
        _to_json(sample.to_dict(), sample.id)  # what is read can be written
    return dataclasses.replace(
        sample,
        video=os.path.join(root, sample.video),
        side_channels={name: path if path is None else os.path.join(root, path) for name, path in sample.side_channels.items()},
    )


def _with_paths(record: dict[str, Any], change: Any) -> dict[str, Any]:
    record["video"] = change(record["video"])
    if "side_channels" in record:
        record["side_channels"] = {k: None if p is None else change(p) for k, p in record["side_channels"].items()}
    return record


def _below(path: str, folder: str) -> str:
    """The path relative to the folder if it lies in it."""
    if not os.path.isabs(path):
        return path
    relative = os.path.relpath(path, folder)
    return path if relative.split(os.sep)[0] == os.pardir else relative.replace(os.sep, "/")


def _to_json(record: dict[str, Any], name: str, sort_keys: bool = False) -> str:
    try:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False, sort_keys=sort_keys)
        text.encode()  # half a surrogate pair is text in Python, but not in a file
    except (TypeError, ValueError) as error:
        raise ValueError(f"sample {name!r}, field 'meta': {error}") from None
    return text


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", tuple: "a list", str: "text", bool: "true or false", int: "a number"}
    return names.get(type(value), "null" if value is None else "a number" if isinstance(value, float) else type(value).__name__)


def _wrong(name: str, value: Any, wanted: str) -> NoReturn:
    raise ValueError(f"field {name!r}: {wanted} is needed, got {_kind(value)} ({value!r:.60})")


def _check_text(name: str, value: Any, one_line: bool = False) -> None:
    if not isinstance(value, str):
        _wrong(name, value, "text")
    if not value.strip():
        raise CodedError(f"field {name!r} is empty", "text-empty")
    found = _CONTROL.search(value) or (_LINE_BREAK.search(value) if one_line else None)
    if found:
        raise ValueError(f"field {name!r} holds the control character {found.group()!r} at position {found.start()}; remove it")


def _check_path(name: str, value: Any) -> None:
    _check_text(name, value, one_line=True)
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", value):
        raise ValueError(f"field {name!r}: {value!r:.80} is an address; download the file and name its path")


def _check_object(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        _wrong(name, value, "an object")
    for key in value:
        if not isinstance(key, str):
            _wrong(name, key, "text as key")


def _as_texts(name: str, values: Any) -> tuple[str, ...]:
    if not isinstance(values, (list, tuple)):
        _wrong(name, values, "a list")
    for position, value in enumerate(values):
        _check_text(f"{name}[{position}]", value)
    return tuple(values)


def _as_messages(values: Any) -> tuple[Message, ...]:
    if not isinstance(values, (list, tuple)):
        _wrong("messages", values, "a list")
    messages = []
    for position, value in enumerate(values):
        where = f"messages[{position}]"
        if not isinstance(value, Message):
            _check_object(where, value)
            if set(value) != {"role", "content"}:
                raise ValueError(
                    f"field {where!r}: it needs 'role' and 'content' and nothing else, got {', '.join(map(repr, value))}"
                )
            value = Message(role=value["role"], content=value["content"])
        expected = _ROLES[position % 2]
        if value.role != expected:
            raise ValueError(
                f"field '{where}.role': {expected!r} is next (user and assistant take turns), got {value.role!r:.60}"
            )
        _check_text(f"{where}.content", value.content)
        messages.append(value)
    return tuple(messages)
