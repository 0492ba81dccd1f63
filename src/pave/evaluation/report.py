"""One self-contained HTML page about several runs: scores with intervals, examples on their timeline, facts to repeat them.

Plain data in, one file out. The page holds no script, loads nothing, and forbids both by its content security policy; every
text that comes from outside is escaped.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pave.evaluation.metrics import PairedComparison, Score
from pave.evaluation.report_graphics import (
    TimeAxis,
    png_uri,
    row_heat_rgba,
    spectrogram_rgba,
    thumbnail_uri,
    wave_path,
)
from pave.utils.files import atomic_write_text

_MAX_FAILURES = 50
_SECTIONS = ("published", "scorers", "exposures", "unchecked", "costs", "pair")
_LONGEST_TEXT = 1000
_COLORS = 7
_ACCENT = (57, 135, 229)
_FEATURES = (144, 133, 233)


@dataclass(frozen=True, kw_only=True)
class RunTable:
    """The scores of one run."""

    name: str
    """What the run is called in the table."""
    overall: Score
    """Over all samples."""
    by_type: Mapping[str, Score]
    """By question type, in the order to show them."""
    failures: Sequence[tuple[str, str]] = ()
    """(sample id, what went wrong) of the samples without an answer."""
    note: str = ""
    """One line under the name."""


@dataclass(frozen=True, kw_only=True)
class NamedComparison:
    """A paired comparison of two runs on the same samples."""

    first: str
    second: str
    subset: str
    """Which samples: a question type, or all."""
    result: PairedComparison


@dataclass(frozen=True, kw_only=True)
class FrameView:
    """A sampled frame."""

    time: float
    """Seconds on the video's clock."""
    pixels_HWC: NDArray[np.uint8]
    """RGB."""


@dataclass(frozen=True, kw_only=True)
class SoundView:
    """A sound to draw as a wave."""

    samples: NDArray[np.floating]
    """Mono samples in [-1, 1]."""
    sample_rate: float
    """In Hz."""
    start: float = 0.0
    """Seconds of the first sample on the video's clock."""


@dataclass(frozen=True, kw_only=True)
class SideView:
    """A side channel on the timeline: what its steps hold and which of them each frame attended to."""

    name: str
    times_K: NDArray[np.floating]
    """Seconds, centre of each step."""
    features_KC: NDArray[np.floating] | None = None
    """Features of each step, drawn as an image with channel 0 at the bottom (a spectrogram for log-mel tokens)."""
    attention_TK: NDArray[np.floating] | None = None
    """Attention weight of each frame on each step, not negative; a row of zeros where a frame attended to nothing."""


@dataclass(frozen=True, kw_only=True)
class AnswerView:
    """What one run answered."""

    run: str
    text: str
    correct: bool | None = None
    """None where it was not scored."""


@dataclass(frozen=True, kw_only=True)
class ExampleView:
    """One sample to look at."""

    id: str
    question: str
    answers: Sequence[AnswerView]
    truth: str | None = None
    choices: Sequence[str] = ()
    question_type: str = ""
    frames: Sequence[FrameView] = ()
    sound: SoundView | None = None
    sides: Sequence[SideView] = field(default_factory=tuple)
    note: str = ""
    """What is not shown of it, and why."""


def write_report(
    path: str | os.PathLike[str],
    title: str,
    runs: Sequence[RunTable],
    examples: Sequence[ExampleView] = (),
    facts: Mapping[str, Any] | None = None,
    *,
    summary: str = "",
    chance: Mapping[str, float] | None = None,
    comparisons: Sequence[NamedComparison] = (),
    sections: Mapping[str, Any] | None = None,
) -> None:
    """Write the page, in one step.

    Args:
        path: the HTML file.
        title: heading and window title.
        runs: the table, in this order; the first is taken as the reference (drawn in grey).
        examples: samples to show, with whatever of frames, sound and attention there is.
        facts: what is needed to repeat the runs. A text or number is shown as one line, a list as lines of code, a
            dictionary as lines of "key: value".
        summary: a paragraph under the heading.
        chance: accuracy of guessing, by question type ("overall" for all), marked on the bars.
        comparisons: paired tests between runs.
        sections: further ones, made by ``report_sections``: "scorers", "published", "exposures", "costs", and "pair", the names of the
            two runs whose answers to the examples differ.

    Raises:
        ValueError: if the arrays of an example do not fit together; the message names the sample.
    """
    types = list(dict.fromkeys(kind for run in runs for kind in run.by_type))
    page = _template().render(
        title=title,
        summary=summary,
        runs=[{"name": run.name, "note": run.note, "color": i % _COLORS} for i, run in enumerate(runs)],
        groups=[_group("overall", "All questions", runs, chance)] + [_group(kind, kind, runs, chance) for kind in types],
        comparisons=[_comparison(comparison) for comparison in comparisons],
        failures=[
            {"run": run.name, "count": len(run.failures), "shown": list(run.failures)[:_MAX_FAILURES]}
            for run in runs
            if run.failures
        ],
        examples=[_example(example, [run.name for run in runs]) for example in examples],
        facts=[_fact(name, value) for name, value in (facts or {}).items()],
        sections=dict.fromkeys(_SECTIONS) | dict(sections or {}),
    )
    atomic_write_text(path, page)


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    return environment.get_template("report.html.j2")


def _shown(value: Any) -> Any:
    """A text as the page can hold it: what is no character becomes a question mark, and what is endless is cut, which it says."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    if len(value) > _LONGEST_TEXT:
        value = f"{value[:_LONGEST_TEXT]} … ({len(value):,} characters in all)"
    return value.encode("utf-8", "replace").decode()


def _group(kind: str, label: str, runs: Sequence[RunTable], chance: Mapping[str, float] | None) -> dict[str, Any]:
    rows = []
    for number, run in enumerate(runs):
        score = run.overall if kind == "overall" else run.by_type.get(kind)
        if score is not None:
            rows.append({"run": run.name, "color": number % _COLORS, **_score(score)})
    guess = (chance or {}).get(kind)
    return {
        "label": label,
        "rows": rows,
        "chance": None if guess is None else f"{100 * guess:.1f}",
        "samples": ", ".join(dict.fromkeys(row["samples"] for row in rows)),
    }


def _score(score: Score) -> dict[str, Any]:
    low, high = 100 * score.interval.low, 100 * score.interval.high
    samples = f"n = {score.n_expected}"
    if score.n_scored != score.n_expected:
        samples = f"{score.n_scored} of {score.n_expected} answered"
    return {
        "percent": f"{100 * score.accuracy:.1f}",
        "low": f"{low:.2f}",
        "span": f"{max(0.0, high - low):.2f}",
        "range": f"{low:.1f} to {high:.1f}",
        "samples": samples,
    }


def _comparison(comparison: NamedComparison) -> dict[str, str]:
    result = comparison.result
    return {
        "names": f"{comparison.second} − {comparison.first}",
        "subset": comparison.subset,
        "difference": f"{100 * result.difference:+.1f}",
        "range": f"{100 * result.interval.low:+.1f} to {100 * result.interval.high:+.1f}",
        "only": f"{result.only_second} / {result.only_first}",
        "p": "< 0.0001" if result.p_value < 1e-4 else f"{result.p_value:.4f}",
    }


def _fact(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {"name": name, "lines": [f"{key}: {item}" for key, item in value.items()], "code": False}
    if isinstance(value, (list, tuple)):
        return {"name": name, "lines": [str(item) for item in value], "code": True}
    return {"name": name, "lines": str(value).splitlines() or [""], "code": False}


def _example(example: ExampleView, run_names: Sequence[str]) -> dict[str, Any]:
    return {
        "id": example.id,
        "type": example.question_type,
        "question": example.question,
        "choices": list(example.choices),
        "truth": example.truth,
        "answers": [
            {
                "run": answer.run,
                "text": answer.text,
                "correct": answer.correct,
                "color": run_names.index(answer.run) % _COLORS if answer.run in run_names else None,
            }
            for answer in example.answers
        ],
        "timeline": _timeline(example) if example.frames else None,
        "note": example.note,
    }


def _timeline(example: ExampleView) -> dict[str, Any]:
    frame_times = [float(frame.time) for frame in example.frames]
    ends = list(frame_times)
    if len(frame_times) > 1:
        ends.append(frame_times[-1] + (frame_times[-1] - frame_times[-2]) / 2)
    if example.sound is not None:
        ends += [example.sound.start, example.sound.start + len(example.sound.samples) / example.sound.sample_rate]
    for side in example.sides:
        ends += [float(time) for time in side.times_K]
    if not np.isfinite(ends).all():
        raise ValueError(f"report: sample {example.id!r} has a frame or step whose time is not finite")
    axis = TimeAxis(min(0.0, *ends), max(ends))
    T = len(frame_times)
    return {
        "ticks": axis.ticks(),
        "frames": [
            {
                "image": Markup(thumbnail_uri(frame.pixels_HWC)),
                "pixelated": max(frame.pixels_HWC.shape[:2]) <= 96,
                "time": f"{frame.time:.2f}",
                "slot": f"{100 * (number + 0.5) / T:.3f}",
                "x": f"{axis.percent(frame.time):.3f}",
            }
            for number, frame in enumerate(example.frames)
        ],
        "min_width": max(250, 28 * T),
        "wave": _wave(example.sound, axis) if example.sound is not None else None,
        "sides": [_side(example.id, side, axis, T) for side in example.sides],
    }


def _wave(sound: SoundView, axis: TimeAxis) -> dict[str, str]:
    seconds = len(sound.samples) / sound.sample_rate
    left, right = axis.percent(sound.start), axis.percent(sound.start + seconds)
    return {"path": Markup(wave_path(sound.samples)), "x": f"{left:.3f}", "width": f"{right - left:.3f}"}


def _side(sample_id: str, side: SideView, axis: TimeAxis, T: int) -> dict[str, Any]:
    times_K = np.asarray(side.times_K, dtype=np.float64)
    where = f"report: sample {sample_id!r}, side channel {side.name!r}"
    features, attention = None, None
    if side.features_KC is not None:
        if side.features_KC.ndim != 2 or len(side.features_KC) != len(times_K):
            raise ValueError(f"{where}: {len(times_K)} step times but features of shape {side.features_KC.shape}")
        features = Markup(png_uri(spectrogram_rgba(side.features_KC, times_K, axis, _FEATURES)))
    if side.attention_TK is not None:
        weights_TK = np.asarray(side.attention_TK, dtype=np.float64)
        if weights_TK.shape != (T, len(times_K)):
            raise ValueError(f"{where}: attention of shape {weights_TK.shape}, but {T} frames and {len(times_K)} steps")
        if not np.isfinite(weights_TK).all() or (weights_TK < 0).any():
            raise ValueError(f"{where}: attention weights must be finite and not negative")
        attention = Markup(png_uri(row_heat_rgba(weights_TK, times_K, axis, _ACCENT)))
    every = max(1, -(-T // 16))
    return {
        "name": side.name,
        "steps": len(times_K),
        "features": features,
        "attention": attention,
        "height": T * (12 if T <= 16 else 8),
        "label_rows": [number for number in range(T) if number % every == 0],
    }
