"""What is asked and what is answered, as data."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from pave.data.answers import parse_choice
from pave.data.media import FrameSampling
from pave.data.samples import Sample, check_path, check_text, question_with_choices
from pave.inference.counterfactuals import Counterfactual
from pave.patching.rows import Selection, read_selection

SidePath = str | Path | None
"""The file or folder of a side channel; None leaves the channel out."""
SidePaths = Mapping[str, SidePath | Mapping[str, SidePath]]
"""By channel, or by patch and channel."""


class Default(enum.Enum):
    """The type of ``DEFAULT``."""

    DEFAULT = "what the model says"


DEFAULT = Default.DEFAULT
"""For ``patches``: those that are selected on the model, else all of them."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an answer is generated.

    Raises:
        ValueError: naming the field that is out of range.
    """

    temperature: float = 0.0
    """0 takes the likeliest token each time; above 0 tokens are drawn, the more evenly the higher it is."""
    top_p: float = 1.0
    """Draws among the fewest likeliest tokens that have this probability together; 1: among all."""
    top_k: int = 0
    """Draws among so many of the likeliest tokens; 0: among all."""
    seed: int | None = None
    """Of the draws, which depend on nothing else: not on the batch. None: another one each time."""
    max_new_tokens: int = 64
    """Most tokens of the answer."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these texts."""

    def __post_init__(self) -> None:
        for name, low, high in (("temperature", 0.0, 1e3), ("top_p", 0.0, 1.0)):
            value = getattr(self, name)
            if not _is_number(value) or not low <= value <= high or (name == "top_p" and value == 0):
                wanted = "above 0 and at most 1" if name == "top_p" else f"from {low:g} to {high:g}"
                raise ValueError(f"{name} must be a number {wanted}, got {value!r}")
        for name, least in (("top_k", 0), ("max_new_tokens", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if self.seed is not None and (not isinstance(self.seed, int) or not 0 <= self.seed < 2**63):
            raise ValueError(f"seed must be a whole number from 0 to 2**63 - 1, or None, got {self.seed!r}")
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError(f"stop must be a tuple of texts that are not empty, got {self.stop!r}")
        object.__setattr__(self, "stop", tuple(self.stop))


SAMPLING_FIELDS = frozenset(field.name for field in fields(Sampling))
"""What a request says of its generation."""


@dataclass(frozen=True)
class Request:
    """One question about one video.

    Raises:
        ValueError: naming the field, what was found and what belongs there. What only the model can say (whether it has such a patch or
            channel) and what only the files can say is found out by ``Engine.read``.
    """

    video: str | Path | None
    """The file; None for a question about text alone, where the base takes one."""
    question: str
    """What to ask."""
    _: KW_ONLY
    choices: tuple[str, ...] = ()
    """Listed under the question, each behind its letter."""
    patches: Selection | Default = DEFAULT
    """Which patches act: a name, names with strengths (0 the base, 1 as trained; a pair for residual and LoRA apart), or None for the base."""
    side_channels: SidePaths = field(default_factory=dict)
    """Files of side channels, by channel or by patch and channel; None leaves a channel out. One that is not named is read from the video
    where it can be (sound)."""
    sampling: Sampling = field(default_factory=Sampling)
    """How the answer is generated."""
    frames: FrameSampling | None = None
    """Which frames to look at. None: as the engine was told, else as the patches were trained, else as the processor says, else 32."""
    counterfactual: Counterfactual | None = None
    """A change to the side streams first."""
    history: tuple[tuple[str, str], ...] = ()
    """Earlier turns of the conversation: (question, answer)."""
    id: str = ""
    """Names the request in errors; default, the name of the video's file."""

    def __post_init__(self) -> None:
        if self.video is not None:
            check_path("video", str(self.video))
        check_text("question", self.question)
        object.__setattr__(self, "choices", _texts("choices", self.choices))
        if self.choices:
            parse_choice("", self.choices)  # raises for a wrong number of them
        object.__setattr__(self, "history", _turns(self.history))
        _check_patches(self.patches)
        _check_side_channels(self.side_channels)
        for name, kind in (("sampling", Sampling), ("frames", FrameSampling), ("counterfactual", Counterfactual)):
            value = getattr(self, name)
            if not isinstance(value, kind) and (name == "sampling" or value is not None):
                raise ValueError(f"field {name!r}: a {kind.__name__} is needed, got {value!r}")
        if self.counterfactual is not None and self.counterfactual.borrows and self.counterfactual.lender is None:
            raise ValueError(
                f"counterfactual {str(self.counterfactual)!r} borrows the stream of another video: say which, with lender="
            )

        given = [name for name in ("side_channels", "frames", "counterfactual") if getattr(self, name)]
        if self.video is None and given:
            raise ValueError(f"field {given[0]!r}: there is no video that it could be of; give video, or leave it out")

    @property
    def name(self) -> str:
        """What errors call it."""
        return self.id or ("the question" if self.video is None else Path(self.video).name)

    @property
    def turns(self) -> tuple[tuple[str, str | None], ...]:
        """(question, answer) of the whole conversation, with the choices under the last question; the last answer is None."""
        asked = question_with_choices(self.question, self.choices) if self.choices else self.question
        return (*self.history, (asked, None))

    @classmethod
    def of_sample(cls, sample: Sample, *, lender: Sample | None = None, **fields: Any) -> Request:
        """The last question of a sample, as it stands there; its answer is not shown to the model.

        Args:
            sample: what is asked.
            lender: whose streams a counterfactual borrows.
            fields: others of the request.
        """
        change: Counterfactual | None = fields.pop("counterfactual", None)
        history = tuple((question, answer or "") for question, answer in sample.turns[:-1])
        return cls(
            sample.video,
            sample.turns[-1][0],
            history=history,
            side_channels=dict(sample.side_channels),
            counterfactual=None if change is None else change.on(sample, lender),
            id=sample.id,
            **fields,
        )


@dataclass(frozen=True)
class SideSummary:
    """What a side channel gave for one video."""

    steps: int
    """Side steps; 0 where the video lacks the channel."""
    start: float | None = None
    """Seconds of the first step."""
    end: float | None = None
    """Seconds of the last step."""
    acting: float | None = None
    """The share of the steps that can act at all (``pave.data.acting``); None where there is no step."""
    why: tuple[str, ...] = ()
    """What keeps the rest from it, in words."""

    def __str__(self) -> str:
        if not self.steps:
            return "not there"
        share = "" if self.acting is None or self.acting == 1 else f", of which {100 * self.acting:.2g} % can act"
        return f"{self.steps} steps from {self.start:.2f} to {self.end:.2f} s{share}"


FinishReason = Literal["stop", "length", "cancelled"]
"""The answer was complete (or met a text of ``stop``), reached ``max_new_tokens``, or was not wanted any more."""


@dataclass(frozen=True)
class Answer:
    """An answer and what it is based on."""

    text: str
    """As generated, without special tokens and without white space around it."""
    frame_times: tuple[float, ...]
    """Seconds of the frames that were looked at."""
    side_channels: dict[str, SideSummary] = field(default_factory=dict)
    """By channel (PATCH.CHANNEL where several patches have one of that name); empty where the base answered alone."""
    seconds: float = 0.0
    """Time it took: reading its files, and the batch that it was generated in."""
    choice: str | None = None
    """The choice that the text names; None without choices, or if it names none."""
    finish_reason: FinishReason = "stop"
    """Why it ends where it ends."""
    prompt_tokens: int = 0
    """Of the prompt, the video's included."""
    new_tokens: int = 0
    """Generated, the one that ends the answer included."""
    cached: bool = False
    """Whether the encoded video was there from an earlier request."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _texts(name: str, values: Any) -> tuple[str, ...]:
    if isinstance(values, str) or not isinstance(values, (list, tuple)):
        raise ValueError(f"field {name!r}: a tuple of texts is needed, got {values!r:.60}")
    for number, value in enumerate(values):
        check_text(f"{name}[{number}]", value)
    return tuple(values)


def _turns(values: Any) -> tuple[tuple[str, str], ...]:
    if isinstance(values, str) or not isinstance(values, (list, tuple)):
        raise ValueError(f"field 'history': a tuple of (question, answer) is needed, got {values!r:.60}")
    turns = []
    for number, turn in enumerate(values):
        if not isinstance(turn, (list, tuple)) or len(turn) != 2:
            raise ValueError(f"field 'history[{number}]': (question, answer) is needed, got {turn!r:.60}")
        question, answer = turn
        check_text(f"history[{number}], the question", question)
        check_text(f"history[{number}], the answer", answer)
        turns.append((question, answer))
    return tuple(turns)


def _check_patches(patches: Selection | Default) -> None:
    if isinstance(patches, Default):
        return
    if not isinstance(patches, (str, Mapping, type(None))) or (
        isinstance(patches, Mapping) and not all(map(_is_name, patches))
    ):
        raise ValueError(
            f"field 'patches': a name, a mapping from names to strengths, None for the base or DEFAULT is needed, got {patches!r:.60}"
        )
    read_selection(patches, [patches] if isinstance(patches, str) else list(patches or ()))


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


def _check_side_channels(given: Any, where: str = "side_channels", nested: bool = True) -> None:
    if not isinstance(given, Mapping):
        raise ValueError(f"field {where!r}: a mapping from channels to paths is needed, got {given!r:.60}")
    for name, path in given.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"field {where!r}: {name!r} is no name of a channel (letters, digits and underscores)")
        if isinstance(path, Mapping) and nested:
            _check_side_channels(path, f"{where}.{name}", nested=False)
        elif isinstance(path, (str, Path)):
            check_path(f"{where}.{name}", str(path))
        elif path is not None:
            raise ValueError(f"field '{where}.{name}': a path or None is needed, got {path!r:.60}")
