"""What clients send: OpenAI's chat completions, as far as a Video LLM can mean them, and what patches need beside. Nothing else is taken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pave.serving.errors import ApiError, bad_request
from pave.utils.json_files import parse_json

_MOST_VALUES = 8192
"""Entries of all lists and objects of a body: pydantic makes an error of each that is wrong."""
_LONGEST_NAME = 80
"""Of a patch or a channel; the id of a patch is its name with 13 characters behind it."""
_MOST_MARKS = 2**16
"""Commas and brackets of a body, those in texts included: more cannot be meant, and each could be an object."""


class Strict(BaseModel):
    """Unknown keys are refused, and nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class FileUrl(Strict):
    """A file: ``data:KIND;base64,...``, the id of an upload, a path under an allowed folder, or a URL of an allowed host."""

    url: str = Field(min_length=1)


class TextPart(Strict):
    type: Literal["text"]
    text: str


class VideoPart(Strict):
    type: Literal["video_url"]
    video_url: FileUrl


class AudioUrlPart(Strict):
    """Sound that is heard instead of the video's own."""

    type: Literal["audio_url"]
    audio_url: FileUrl


class InputAudio(Strict):
    data: str = Field(min_length=1)
    """Base64."""
    format: Literal["wav", "mp3", "flac", "ogg", "m4a"]


class InputAudioPart(Strict):
    """Sound that is heard instead of the video's own."""

    type: Literal["input_audio"]
    input_audio: InputAudio


def _parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


Part = Annotated[TextPart | VideoPart | AudioUrlPart | InputAudioPart, Field(discriminator="type")]


class UserMessage(Strict):
    role: Literal["user"]
    content: Annotated[list[Part], BeforeValidator(_parts), Field(min_length=1, max_length=32)]
    """Text, or parts. A video, and sound, belong into the first message."""


class AssistantMessage(Strict):
    """An earlier answer, as this server or OpenAI's client wrote it."""

    role: Literal["assistant"]
    content: Annotated[list[TextPart], BeforeValidator(_parts), Field(min_length=1, max_length=32)]
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None


Message = Annotated[UserMessage | AssistantMessage, Field(discriminator="role")]


class PatchUse(Strict):
    """A patch that acts on this answer."""

    name: str
    """One of /v1/models."""
    strength: float = Field(1.0, ge=0.0, le=4.0, allow_inf_nan=False)
    """0 is the base, 1 as trained; between them as much less."""
    lora_strength: float | None = Field(None, ge=0.0, le=4.0, allow_inf_nan=False)
    """Of its LoRA, where that is not to be scaled as the rest."""


class Frames(Strict):
    """Which frames of the video are looked at; by default as the patch was trained, else as the base's processor says."""

    num_frames: int | None = Field(None, ge=1)
    fps: float | None = Field(None, gt=0, le=1000)
    max_frames: int | None = Field(None, ge=1)
    start: float | None = Field(None, ge=0)
    end: float | None = Field(None, gt=0)


class StreamOptions(Strict):
    include_usage: bool | None = None


_NULLABLE = ("temperature", "top_p", "top_k", "n", "stream", "side_channels")
"""Keys with a default that is not null."""
SideFiles = dict[str, FileUrl | dict[str, FileUrl | None] | None]


def side_files(where: str, given: SideFiles) -> Iterator[tuple[str, str | None, str, FileUrl | None]]:
    """Of files of side channels: how errors name each, the patch (None where it is not named), the channel and the file.

    Raises:
        ApiError: 400, if a key cannot be the name of a patch or a channel.
    """
    for name, value in given.items():
        _check_name(name, where)
        if isinstance(value, dict):
            for channel, file in value.items():
                _check_name(channel, where)
                yield f"{where}.{name}.{channel}", name, channel, file
        else:
            yield f"{where}.{name}", None, name, value


def _check_name(name: str, where: str) -> None:
    if not name.isidentifier() or len(name) > _LONGEST_NAME:
        raise bad_request(
            f"{where}: {name[:60]!r} can be no name of a patch or channel; such names are letters, digits and underscores",
            where,
        )


class Change(Strict):
    """A change to the side streams before the model sees them: what would the answer be if they were something else?"""

    kind: Literal["removed", "swapped", "shifted", "noised", "thinned", "resampled", "rerated", "early", "gap"]
    value: float | None = Field(None, allow_inf_nan=False)
    """Seconds, a share or a factor, by kind; each has a default."""
    channel: str | None = None
    """The one that changes; null for all."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Of everything random."""
    video: FileUrl | None = None
    """Whose streams ``swapped`` and ``early`` borrow."""
    side_channels: SideFiles = Field(default_factory=dict)
    """Files of that video's side channels, as in the request itself."""


class ChatRequest(Strict):
    """The body of ``POST /v1/chat/completions``, and of ``POST /v1/pave/inspect``."""

    model: str
    """The base, or a patch that acts alone and as trained."""
    messages: list[Message] = Field(min_length=1)
    patches: list[PatchUse] | None = Field(None, max_length=16)
    """Patches with strengths; ``model`` is then the base."""
    side_channels: SideFiles = Field(default_factory=dict)
    """Files of side channels by patch and channel, or by channel alone; null leaves a channel out. What is not named is read from the
    video itself where it can be."""
    counterfactual: Change | None = None
    frames: Frames | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0.0, le=2.0)
    """0, the default here, takes the likeliest token each time."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    top_k: int = Field(0, ge=0)
    """0 draws among all tokens."""
    seed: int | None = Field(None, ge=0, lt=2**63)
    n: int = Field(1, ge=1)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=200)
    """Taken and neither used nor written down."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, content: Any) -> Any:
        """OpenAI's API takes null for what is not said."""
        if not isinstance(content, dict):
            return content
        return {key: value for key, value in content.items() if value is not None or key not in _NULLABLE}

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts of ``stop``."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class LoadPatch(Strict):
    """The body of ``POST /v1/load_patch``."""

    name: str = Field(min_length=1, max_length=64)
    """What clients call it; a patch of that name is replaced for requests that arrive from then on."""
    path: str = Field(min_length=1)
    """Its folder, under one that --allow-path allows."""


class UnloadPatch(Strict):
    """The body of ``POST /v1/unload_patch``."""

    name: str = Field(min_length=1, max_length=64)


def read_body(kind: type[Strict], body: bytes) -> Any:
    """A body of JSON as what it should be.

    Raises:
        ApiError: 400, naming the first key that is wrong; what stands there is not repeated.
    """
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > _MOST_MARKS:
        raise bad_request(f"the body holds more than {_MOST_MARKS} commas and brackets")
    try:
        content = parse_json(body)
    except ValueError as error:
        raise bad_request(f"the body is {error}", code="invalid_json") from None
    _check_values(content)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise _refusal(content, error) from None


def _check_values(content: Any) -> None:
    """Refuse more values than a request can mean, and texts that are no Unicode, before anything is made of them."""
    waiting, count = [content], 0
    while waiting:
        value = waiting.pop()
        if isinstance(value, (list, dict)):
            count += len(value)
            if count > _MOST_VALUES:
                raise bad_request(f"the body holds more than {_MOST_VALUES} values")
            waiting.extend(value)
            if isinstance(value, dict):
                waiting.extend(value.values())
        elif isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise bad_request(
                    "the body is not JSON of Unicode: a text holds half of a surrogate pair", code="invalid_json"
                ) from None


def _refusal(content: Any, error: ValidationError) -> ApiError:
    """About the first thing that is wrong."""
    first = max(error.errors(include_input=False, include_url=False), key=lambda found: len(found["loc"]))
    path, key = _place(content, first["loc"])
    where = ".".join(step[:60] for step in path).replace(".[", "[") or "the body"
    if first["type"] == "extra_forbidden":
        return bad_request(
            f"{where}: unknown key {key[:60]!r}; it would have no effect here, so leave it out", where, "unknown_key"
        )
    if first["type"] == "missing":
        return bad_request(f"{where}: the key {key!r} is missing", where, "missing_key")
    return bad_request(f"{where}: {first['msg'][:200]}", where)


def _place(content: Any, location: tuple[int | str, ...]) -> tuple[list[str], str]:
    """The path of a key in what was sent, without the names of alternatives that pydantic puts between; and its last part."""
    path: list[str] = []
    for step in location:
        if isinstance(step, int) and isinstance(content, list) and step < len(content):
            path.append(f"[{step}]")
            content = content[step]
        elif isinstance(step, str) and isinstance(content, dict) and step in content:
            path.append(step)
            content = content[step]
    last = str(location[-1]) if location else ""
    return path, last
