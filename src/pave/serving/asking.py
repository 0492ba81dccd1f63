"""From a chat request to what the engine is asked: turns, patches, files."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pave.data.media import FrameSampling
from pave.inference.counterfactuals import Counterfactual, Lender
from pave.inference.request import Request, Sampling
from pave.serving.errors import bad_request
from pave.serving.limits import Limits
from pave.serving.patches import ServedPatch
from pave.serving.schemas import (
    AudioUrlPart,
    ChatRequest,
    FileUrl,
    InputAudioPart,
    SideFiles,
    TextPart,
    VideoPart,
    side_files,
)
from pave.serving.sources import Sources


@dataclass(frozen=True)
class Asked:
    """A chat request, taken apart and within limits. Nothing was read for it yet."""

    chat: ChatRequest
    question: str
    history: tuple[tuple[str, str], ...]
    video: tuple[str, FileUrl] | None
    """How errors name it, and where it is."""
    sound: tuple[str, AudioUrlPart | InputAudioPart] | None
    uses: dict[str, tuple[float, float]]
    """By the name of a patch, how strongly its residual and its LoRA act."""

    @classmethod
    def of(cls, chat: ChatRequest, base: str, limits: Limits) -> Asked:
        """Take a request apart.

        Raises:
            ApiError: 400, naming what cannot be meant or is beyond the limits.
        """
        _check_limits(chat, limits)
        turns, video, sound = _turns(chat)
        return cls(chat, turns[-1][0], tuple((q, a or "") for q, a in turns[:-1]), video, sound, _uses(chat, base))

    def samplings(self, limits: Limits) -> list[Sampling]:
        """How each of the n answers is generated. What has no seed gets one: a batch that fails is tried again, and a stream must go
        on as it began."""
        chat = self.chat
        length = chat.max_completion_tokens or chat.max_tokens or limits.new_tokens
        first = secrets.randbits(63) if chat.seed is None else chat.seed
        return [
            Sampling(
                temperature=chat.temperature,
                top_p=chat.top_p,
                top_k=chat.top_k,
                seed=(first + number) % 2**63,
                max_new_tokens=length,
                stop=chat.stops,
            )
            for number in range(chat.n)
        ]

    def frames(self, limits: Limits) -> FrameSampling | None:
        """Which frames it wants to look at."""
        wanted = self.chat.frames
        if wanted is None:
            return None
        fields: dict[str, Any] = wanted.model_dump(exclude_none=True)
        if wanted.num_frames is None:
            fields["max_frames"] = min(wanted.max_frames or limits.frames, limits.frames)
        try:
            return FrameSampling(**fields)
        except ValueError as error:
            raise bad_request(f"frames: {error}", "frames") from None


def _check_limits(chat: ChatRequest, limits: Limits) -> None:
    if len(chat.messages) > limits.messages:
        raise bad_request(f"messages: {len(chat.messages)} messages, of at most {limits.messages}", "messages")
    length = sum(len(part.text) for message in chat.messages for part in message.content if isinstance(part, TextPart))
    if length > limits.text_characters:
        raise bad_request(f"messages: {length} characters, of at most {limits.text_characters}", "messages")
    if chat.n > limits.choices:
        raise bad_request(f"n: {chat.n} answers, of at most {limits.choices}", "n")
    if chat.n > 1 and not chat.temperature:
        raise bad_request("n: several answers differ only if temperature is above 0; set it, or leave n out", "n")
    if chat.max_tokens is not None and chat.max_completion_tokens is not None:
        raise bad_request("max_tokens: give it or max_completion_tokens, not both", "max_tokens")
    for name in ("max_tokens", "max_completion_tokens"):
        wanted = getattr(chat, name)
        if wanted is not None and wanted > limits.new_tokens:
            raise bad_request(f"{name}: {wanted} tokens, of at most {limits.new_tokens}", name)
    if len(chat.stops) > 4 or not all(0 < len(text) <= 100 for text in chat.stops):
        raise bad_request("stop: a text or up to 4 of them, each of 1 to 100 characters", "stop")
    if chat.stream_options is not None and not chat.stream:
        raise bad_request("stream_options: only where stream is true", "stream_options")
    if chat.frames is not None and (chat.frames.num_frames or 0) > limits.frames:
        raise bad_request(
            f"frames.num_frames: {chat.frames.num_frames} frames, of at most {limits.frames}", "frames.num_frames"
        )


def _turns(chat: ChatRequest) -> tuple[list[tuple[str, str | None]], Any, Any]:
    """Questions with their answers, and the video and sound of the first one, each with what errors call it."""
    turns: list[tuple[str, str | None]] = []
    media: dict[str, tuple[str, Any]] = {}
    for number, message in enumerate(chat.messages):
        where = f"messages[{number}]"
        if message.role != ("user", "assistant")[number % 2]:
            raise bad_request(f"{where}: messages of the user and of the assistant take turns, and the user begins", where)
        for place, part in enumerate(message.content):
            if isinstance(part, TextPart):
                continue
            param = f"{where}.content[{place}].{part.type}"
            kind = "video" if isinstance(part, VideoPart) else "sound"
            if number:
                raise bad_request(f"{param}: a {kind} belongs into the first message", param)
            if kind in media:
                raise bad_request(f"{param}: a conversation is about one {kind}; there are two", param)
            media[kind] = (param, part.video_url if isinstance(part, VideoPart) else part)
        text = "\n".join(part.text for part in message.content if isinstance(part, TextPart))
        if not text.strip():
            raise bad_request(f"{where}: there is no text", where)
        if message.role == "user":
            turns.append((text, None))
        else:
            turns[-1] = (turns[-1][0], text)
    if turns[-1][1] is not None:
        raise bad_request("messages: the last message is the user's, with the question", "messages")
    return turns, media.get("video"), media.get("sound")


def _uses(chat: ChatRequest, base: str) -> dict[str, tuple[float, float]]:
    """Which patches act: that of ``model``, or those of ``patches``."""
    if chat.patches is None:
        return {} if chat.model == base else {chat.model: (1.0, 1.0)}
    if chat.model != base:
        raise bad_request(f"patches: name the base as model ({base}) where patches are listed", "model")
    uses: dict[str, tuple[float, float]] = {}
    for number, use in enumerate(chat.patches):
        if use.name in uses or use.name == base:
            raise bad_request(
                f"patches[{number}].name: each patch is listed once, and the base is none", f"patches[{number}].name"
            )
        uses[use.name] = (use.strength, use.strength if use.lora_strength is None else use.lora_strength)
    return uses


class Reading:
    """Gets the files of one request and hands it to the engine.

    Args:
        asked: what is wanted.
        patches: those of ``asked.uses``, in that order.
        sources: where files come from.
        owner: whose uploads may be read.
        folder: for files that have to be written.
        stack: what has to be let go when the request ends.
    """

    def __init__(
        self, asked: Asked, patches: Sequence[ServedPatch], sources: Sources, owner: str, folder: Path, stack: ExitStack
    ) -> None:
        self._asked = asked
        self._patches = dict(zip(asked.uses, patches, strict=True))
        self._sources = sources
        self._given: Mapping[str, Any] = {"owner": owner, "folder": folder, "stack": stack}
        self._names: dict[str, str] = {str(folder): "the request", **{patch.id: patch.name for patch in patches}}
        """What stands in the engine's sentences, and what the client calls it."""

    def requests(self, limits: Limits, base_frames: FrameSampling | None) -> list[Request]:
        """What the engine is asked, once for each of the n answers.

        Args:
            limits: of the server.
            base_frames: which the base looks at where a request does not say.

        Raises:
            ApiError: if a file may not be read or does not belong to the patches.
        """
        asked = self._asked
        video = self._video()
        sides = self._sides("side_channels", asked.chat.side_channels)
        if asked.sound is not None:
            self._add_sound(*asked.sound, sides)
        sides = {patch: files for patch, files in sides.items() if files}
        change = self._counterfactual()
        base_alone = video is not None and not any(strength for strengths in asked.uses.values() for strength in strengths)
        uses = {self._patches[name].id: strengths for name, strengths in asked.uses.items()}
        try:
            return [
                Request(
                    video,
                    asked.question,
                    patches=uses or None,
                    side_channels=sides,
                    sampling=sampling,
                    frames=asked.frames(limits) or (base_frames if base_alone else None),
                    counterfactual=change,
                    history=asked.history,
                    id="request",
                )
                for sampling in asked.samplings(limits)
            ]
        except ValueError as error:
            raise bad_request(self.plain(error)) from error

    def plain(self, error: BaseException) -> str:
        """An engine's sentence in the client's words: no path of this disk, no id of a patch."""
        message = " ".join(str(error).split()).removeprefix("sample 'request': ")
        for word, name in sorted(self._names.items(), key=lambda item: -len(item[0])):
            message = message.replace(word, name)
        return message

    def _video(self) -> Path | None:
        if self._asked.video is None:
            return None
        param, file = self._asked.video
        return self._file(file.url, "video", param)

    def _file(self, url: str, kind: str, param: str) -> Path:
        path = self._sources.obtain(url, kind, param=param, **self._given)
        self._names[str(path)] = param
        if self._given["folder"] in path.parent.parents:  # an archive was unpacked there
            self._names[str(path.parent)] = param
        return path

    def _counterfactual(self) -> Counterfactual | None:
        wanted = self._asked.chat.counterfactual
        if wanted is None:
            return None
        lender = None
        if wanted.video is not None:
            video = self._file(wanted.video.url, "video", "counterfactual.video")
            lender = Lender(video, self._sides("counterfactual.side_channels", wanted.side_channels))
        try:
            change = Counterfactual(wanted.kind, wanted.value, wanted.channel, wanted.seed, lender)
        except ValueError as error:
            raise bad_request(f"counterfactual: {error}", "counterfactual") from None
        if change.borrows != (lender is not None) or (wanted.side_channels and lender is None):
            raise bad_request(
                "counterfactual.video: the kinds 'swapped' and 'early' borrow the streams of a video, so name it; the others take none",
                "counterfactual.video",
            )
        return change

    def _sides(self, where: str, given: SideFiles) -> dict[str, dict[str, Path | None]]:
        """Files by the id of a patch and channel."""
        sides: dict[str, dict[str, Path | None]] = {patch.id: {} for patch in self._patches.values()}
        for param, name, channel, file in side_files(where, given):
            takers = [
                patch for patch in self._patches.values() if channel in patch.sources and name in (None, patch.name, patch.id)
            ]
            if not takers:
                known = ", ".join(f"{p.name}.{c}" for p in self._patches.values() for c in p.sources) or "none"
                raise bad_request(f"{param}: the patches of this request have no such side channel; they have {known}", param)
            for patch in takers:
                if channel in sides[patch.id]:
                    raise bad_request(f"{param}: this channel is named twice", param)
                sides[patch.id][channel] = None if file is None else self._file(file.url, patch.sources[channel], param)
        return sides

    def _add_sound(self, param: str, part: AudioUrlPart | InputAudioPart, sides: dict[str, dict[str, Path | None]]) -> None:
        """Every channel that hears gets the sound."""
        hearing = [
            (patch.id, channel)
            for patch in self._patches.values()
            for channel, kind in patch.sources.items()
            if kind == "audio"
        ]
        if not hearing:
            raise bad_request(f"{param}: none of the patches of this request hears; name one that does as model", param)
        if isinstance(part, AudioUrlPart):
            path = self._file(part.audio_url.url, "audio", param)
        else:
            path = self._sources.sound(part.input_audio.data, self._given["folder"], param)
            self._names[str(path)] = param
        for patch, channel in hearing:
            if channel in sides[patch]:
                raise bad_request(
                    f"{param}: the channel {channel!r} gets its sound from side_channels; give one of them", param
                )
            sides[patch][channel] = path
