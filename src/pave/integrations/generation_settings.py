"""``generation_kwargs`` of evaluation harnesses as arguments of ``generate``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_NUMBERS = {
    "max_new_tokens": int,
    "num_beams": int,
    "top_k": int,
    "temperature": float,
    "top_p": float,
    "repetition_penalty": float,
}
_OF_IMAGES = "image_aspect_ratio"
"""Says how images are padded; has no meaning for a video."""


@dataclass(frozen=True)
class Settings:
    """How answers are generated."""

    max_new_tokens: int = 64
    """Most tokens of an answer."""
    num_beams: int = 1
    """1: no beam search."""
    sampling: tuple[tuple[str, float], ...] = ()
    """temperature, top_p and top_k; empty: greedy."""
    repetition_penalty: float | None = None
    """None: none."""
    until: tuple[str, ...] = ()
    """An answer ends before the first of these."""

    def to_generate(self) -> dict[str, Any]:
        """Arguments of ``VideoQA.answer_samples``."""
        found: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "num_beams": self.num_beams}
        if self.sampling:
            found |= {"do_sample": True, **dict(self.sampling)}
        if self.repetition_penalty is not None:
            found["repetition_penalty"] = self.repetition_penalty
        return found

    def cut(self, text: str) -> str:
        """``text`` up to the first stop, without white space around it."""
        ends = [place for stop in self.until if (place := text.find(stop)) >= 0]
        return text[: min(ends)].strip() if ends else text


def read_settings(given: Mapping[str, Any], task: str) -> Settings:
    """Settings from the ``generation_kwargs`` of a task.

    Sampling is on where ``do_sample`` says so, or where only a temperature above 0 is given; a temperature of 0 is greedy decoding.

    Raises:
        ValueError: if a setting is not known or has a value that it cannot have.
    """
    unknown = sorted(set(given) - {*_NUMBERS, "do_sample", "until", _OF_IMAGES})
    if unknown:
        raise ValueError(
            f"{task}: generation_kwargs has {unknown[0]!r}, which the model pave does not know; it knows {', '.join(_NUMBERS)}, "
            "do_sample and until"
        )
    numbers = {name: _number(task, name, given[name]) for name in _NUMBERS if given.get(name) is not None}
    sampled = given.get("do_sample")
    if sampled not in (None, True, False):
        raise ValueError(f"{task}: generation_kwargs, do_sample must be true or false, got {sampled!r}")
    temperature = numbers.get("temperature", 1.0 if sampled else 0.0)
    sampling = {}
    if temperature > 0 and sampled is not False:
        sampling = {"temperature": temperature} | {name: numbers[name] for name in ("top_p", "top_k") if numbers.get(name)}
    counts = {name: int(numbers[name]) for name in ("max_new_tokens", "num_beams") if name in numbers}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{task}: generation_kwargs, {name} must be at least 1, got {value}")
    until = given.get("until") or []
    stops = [until] if isinstance(until, str) else until
    if not isinstance(stops, (list, tuple)) or not all(isinstance(stop, str) for stop in stops):
        raise ValueError(f"{task}: generation_kwargs, until must be a text or a list of texts, got {until!r}")
    return Settings(
        **counts,
        sampling=tuple(sampling.items()),
        repetition_penalty=numbers.get("repetition_penalty"),
        until=tuple(stop for stop in stops if stop),
    )


def _number(task: str, name: str, value: Any) -> float:
    kind = _NUMBERS[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or kind(value) != value:
        wanted = "a whole number" if kind is int else "a number"
        raise ValueError(f"{task}: generation_kwargs, {name} must be {wanted} of at least 0, got {value!r}")
    return kind(value)
