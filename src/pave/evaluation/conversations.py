"""Conversations as other training programs keep them, to samples: ms-swift, LLaMA-Factory, LLaVA.

A row is a conversation with lists of media and placeholders for them in the texts. Nothing of it is lost in silence: what a sample
cannot hold (several videos, pictures, system and tool messages, turns that are not learnt) makes the row unfit, and unfit rows are an error
unless the caller leaves them out; fields that mean nothing here go into ``meta``; a placeholder that stood elsewhere than before the
first question is told, because there the video stands in every prompt of this library.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pave.data.samples import Message, Sample, write_samples
from pave.evaluation.benchmarks.files import Item, items_of, read_json

_MEDIA = re.compile(r"<(video|audio|image)>")
_AT_START = re.compile(r"(?:<(?:video|audio|image)>\n?)+")
_ELSEWHERE = re.compile(r"\n?<(?:video|audio|image)>")


@dataclass(frozen=True, kw_only=True)
class ConversationFormat:
    """Where a program keeps what."""

    name: str
    """As on the command line."""
    turns: str
    role: str
    text: str
    user: str
    assistant: str
    videos: str
    """Key of the video, or of a list of videos."""
    audios: str
    video_tag: str = "video"
    """The placeholder that stands for the video."""


FORMATS = {
    found.name: found
    for found in (
        ConversationFormat(
            name="ms_swift",
            turns="messages",
            role="role",
            text="content",
            user="user",
            assistant="assistant",
            videos="videos",
            audios="audios",
        ),
        ConversationFormat(
            name="llama_factory",
            turns="conversations",
            role="from",
            text="value",
            user="human",
            assistant="gpt",
            videos="videos",
            audios="audios",
        ),
        ConversationFormat(
            name="llava",
            turns="conversations",
            role="from",
            text="value",
            user="human",
            assistant="gpt",
            videos="video",
            audios="audio",
            video_tag="image",
        ),
    )
}
_CHANGE_TRAINING = ("images", "image", "system", "tools", "objects", "rejected_response", "rejected_messages", "label")
"""Keys of a row that change what is learnt, or from what, and that a sample has no place for."""


@dataclass(frozen=True, kw_only=True)
class ConvertedConversations:
    """What came of it."""

    format: str
    out: str
    n_rows: int
    n_samples: int
    n_videos: int
    missing: tuple[tuple[str, str], ...]
    """(sample id, file) of videos and sounds that are not there."""
    dropped: bool
    """True if samples whose video is not there were left out of the file."""
    unfit: tuple[tuple[str, str], ...]
    """(row, why) of the rows that were left out because a sample cannot hold them."""
    moved: tuple[str, ...]
    """Ids of samples in which a placeholder stood elsewhere than before the first question."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        lists = {"missing": ("id", "file", self.missing), "unfit": ("row", "why", self.unfit)}
        return asdict(self) | {key: [{a: x, b: y} for x, y in found] for key, (a, b, found) in lists.items()}


def convert_conversations(
    form: ConversationFormat,
    annotations: Sequence[str | os.PathLike[str]],
    media: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    channel: str = "audio",
    drop_missing: bool = False,
    skip_unfit: bool = False,
) -> ConvertedConversations:
    """Write a file of samples from conversations.

    Args:
        form: of the files.
        annotations: JSON, JSON lines or Parquet, in order.
        media: the folder that relative paths of media start from.
        out: the file of samples.
        channel: the side channel that a row's sound file belongs to.
        drop_missing: leave samples out whose video is not there.
        skip_unfit: leave rows out that a sample cannot hold.

    Raises:
        ValueError: if a file is missing or not of the format; if a row is unfit, naming the first and how many there are; or if no
            sample is left. Nothing is written then.
    """
    found: list[tuple[Sample, bool]] = []
    unfit: list[tuple[str, str]] = []
    names: Counter[str] = Counter()
    folder = os.path.abspath(media)
    n_rows = 0
    for path in annotations:
        for number, item in enumerate(items_of(path, read_json(path)), start=1):
            n_rows += 1
            try:
                found.append(_sample(form, item, _name(item, Path(path), number, names), folder, channel))
            except ValueError as error:
                unfit.append((item.where, str(error).removeprefix(f"{item.where}: ")))
    if unfit and not skip_unfit:
        where, why = unfit[0]
        raise ValueError(
            f"{where}: {why}; {len(unfit):,} of {n_rows:,} rows cannot become samples. Change them, or leave them out with --skip-unfit, "
            "which lists them"
        )
    missing = [
        (s.id, p) for s, _ in found for p in (s.video, *s.side_channels.values()) if p is not None and not os.path.exists(p)
    ]
    kept = [one for one in found if not drop_missing or os.path.exists(one[0].video)]
    if not kept:
        reason = missing[0][1] + " is not there" if missing else "every row is unfit"
        raise ValueError(f"{', '.join(map(str, annotations))}: no sample is left; {reason}")
    write_samples(out, [sample for sample, _ in kept])
    return ConvertedConversations(
        format=form.name,
        out=os.fspath(out),
        n_rows=n_rows,
        n_samples=len(kept),
        n_videos=len({sample.video for sample, _ in kept}),
        missing=tuple(missing),
        dropped=drop_missing,
        unfit=tuple(unfit),
        moved=tuple(sample.id for sample, moved in kept if moved),
    )


def _name(item: Item, path: Path, number: int, names: Counter[str]) -> str:
    """The row's id, else the file's name and the row's number; where a row before has it, with the next number behind it that is free."""
    given = item.value.get("id")
    own = isinstance(given, (str, int)) and not isinstance(given, bool) and str(given).strip()
    name = free = str(given) if own else f"{path.stem}-{number:06d}"
    count = max(names[name], 1)
    while free in names:
        count += 1
        free = f"{name}#{count}"
    names[name] = count
    names.setdefault(free, 1)
    return free


def _sample(form: ConversationFormat, item: Item, name: str, media: str, channel: str) -> tuple[Sample, bool]:
    """The sample of a row, and whether a placeholder was moved."""
    row = dict(item.value)
    texts, inside = _texts(form, item)
    videos = [*_paths(item, row.pop(form.videos, None), form.videos), *inside["video"]]
    audios = [*_paths(item, row.pop(form.audios, None), form.audios), *inside["audio"]]
    if len(videos) != 1:
        raise item.error(f"a sample is about one video, and the row has {len(videos) or 'none'} under {form.videos!r}")
    if len(audios) > 1:
        raise item.error(f"the row has {len(audios)} sounds under {form.audios!r}, and a side channel is one file")
    for key in _CHANGE_TRAINING:
        if row.get(key) not in (None, [], "", {}):
            raise item.error(f"the field {key!r} changes what is learnt, and a sample has no place for it")
    messages, moved = _without_tags(form, item, texts, len(audios))
    further = {key: value for key, value in row.items() if key not in (form.turns, "id") and value not in (None, [], "", {})}
    if "id" in row and str(row["id"]) != name:
        further["id"] = row["id"]
    conversation: dict[str, Any] = {"messages": messages}
    if len(messages) == 2:
        conversation = {"question": messages[0].content, "answer": messages[1].content}
    sample = Sample(
        id=name,
        video=os.path.join(media, videos[0]),
        side_channels={channel: os.path.join(media, audios[0])} if audios else {},
        meta={"row": further} if further else {},
        **conversation,
    )
    return sample, moved


def _texts(form: ConversationFormat, item: Item) -> tuple[list[tuple[str, str]], dict[str, list[str]]]:
    """(role, text) of every turn, "user" and "assistant" in alternation, and media that are named inside the turns."""
    turns = item.get(form.turns, list)
    roles = {form.user: "user", form.assistant: "assistant"}
    media: dict[str, list[str]] = {"video": [], "audio": []}
    texts: list[tuple[str, str]] = []
    for number, turn in enumerate(turns):
        message = Item(f"{item.where}, turn {number + 1}", turn)
        role = message.get(form.role)
        if role not in roles:
            raise item.error(
                f"turn {number + 1} is of the role {role!r}; a sample has turns of {form.user!r} and {form.assistant!r} only"
            )
        if roles[role] != ("user", "assistant")[number % 2]:
            raise item.error(f"turn {number + 1} is of the role {role!r}; turns alternate, beginning with {form.user!r}")
        if role == form.assistant and (turn.get("loss", True) in (False, 0) or turn.get("weight", 1) == 0):
            raise item.error(f"turn {number + 1} is not to be learnt, but every answer of a sample is")
        content = turn.get(form.text)
        texts.append((roles[role], content if isinstance(content, str) else _of_parts(message, content, media)))
    if len(texts) < 2 or len(texts) % 2:
        raise item.error(
            f"the conversation has {len(texts)} turns; a question and its answer are needed at least, and an answer at the end"
        )
    return texts, media


def _of_parts(message: Item, content: Any, media: dict[str, list[str]]) -> str:
    """The text of a turn that is a list of parts; its media are added, with their placeholders where they stood."""
    if not isinstance(content, list):
        raise message.error(f"the text is {content!r:.60}, neither text nor a list of parts")
    text = ""
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            text += part["text"]
        elif kind in media and isinstance(part.get(kind), str):
            media[str(kind)].append(part[kind])
            text += f"<{kind}>"
        else:
            raise message.error(f"a part of the kind {kind!r} has no place in a sample")
    return text


def _paths(item: Item, value: Any, key: str) -> list[str]:
    values = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(path, str) for path in values):
        raise item.error(f"the field {key!r} holds {value!r:.60}; a path or a list of paths is needed")
    return list(values)


def _without_tags(
    form: ConversationFormat, item: Item, texts: Sequence[tuple[str, str]], sounds: int
) -> tuple[list[Message], bool]:
    """The turns without placeholders, and whether one stood elsewhere than before the first question."""
    counts = Counter(kind for _, text in texts for kind in _MEDIA.findall(text))
    for kind, allowed in ((form.video_tag, 1), ("audio", sounds)):
        if counts.pop(kind, 0) > allowed:
            raise item.error(f"the texts have more placeholders <{kind}> than the row has files for them")
    if counts:
        raise item.error(f"the texts have a placeholder <{next(iter(counts))}>, and the row has no file for it")
    messages, moved = [], False
    for number, (role, text) in enumerate(texts):
        start = _AT_START.match(text) if number == 0 else None
        rest = text[start.end() :] if start else text
        moved = moved or bool(_MEDIA.search(rest))
        messages.append(Message(role=role, content=_ELSEWHERE.sub("", rest)))
    return messages, moved
