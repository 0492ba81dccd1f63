"""``pave ask``: one question about one video."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pave.cli.shared import (
    BaseOption,
    DeviceOption,
    DtypeOption,
    EncodersOption,
    JsonOption,
    MismatchOption,
    PatchOption,
    Result,
    check_model_options,
)

if TYPE_CHECKING:
    from pave.evaluation.inference import Answer

logger = logging.getLogger(__name__)


def command(
    video: Path = typer.Argument(..., help="A video file. Its sound is used if the patch hears."),
    question: str = typer.Argument(..., help="What to ask about it."),
    patch: str | None = PatchOption,
    base: str | None = BaseOption,
    side: list[str] | None = typer.Option(
        None,
        "--side",
        metavar="NAME=PATH",
        help="The file of a side channel that the video does not hold; give it once per channel.",
    ),
    compare: bool = typer.Option(False, "--compare", help="Answer with the base alone as well, side by side."),
    choice: list[str] | None = typer.Option(
        None, "--choice", metavar="ANSWER", help="An answer to choose from; give it once per choice, at least twice."
    ),
    frames: int | None = typer.Option(
        None,
        "--frames",
        min=1,
        help="Frames to look at. Default: as the patch was trained, else what the base's processor says.",
    ),
    max_new_tokens: int = typer.Option(64, "--max-new-tokens", min=1, help="Longest answer."),
    device: str = DeviceOption,
    dtype: str = DtypeOption,
    allow_base_mismatch: bool = MismatchOption,
    encoders: list[str] | None = EncodersOption,
    json_output: bool = JsonOption,
) -> Result:
    """\b
    pave ask video.mp4 "What sound is heard?" --patch my-patch --compare

    Answer a question about a video, with a patch or without. Without --base, the small Video LLM inside pave answers: it knows
    the demo's miniature world only.
    """
    if compare and patch is None:
        raise ValueError("--compare shows the base beside a patch; give one with --patch")
    if not video.is_file():
        raise ValueError(f"{video}: there is no such file")
    sides = _sides(side or [])
    if sides and patch is None:
        raise ValueError("--side gives a patch its side channel; name the patch with --patch")
    check_model_options(base, patch, dtype)
    from pave.cli.models import load
    from pave.data.media import FrameSampling

    qa = load(base, patch, device, dtype, FrameSampling(num_frames=frames) if frames else None, allow_base_mismatch, encoders)
    options: dict[str, Any] = {"choices": choice or None, "side_channels": sides, "max_new_tokens": max_new_tokens}
    answers = {"patch" if patch else "base": qa.ask(video, question, **options)}
    if compare:
        answers = {"base": qa.ask(video, question, patch=False, **options), **answers}
    remarks = _remarks(str(video))
    data = {
        "video": str(video),
        "question": question,
        "base": qa.name,
        "patch": patch,
        "side": sides,
        "remarks": remarks,
        "answers": {name: answer.to_dict() for name, answer in answers.items()},
    }
    return Result(_text(answers, compare), data)


def _remarks(video: str) -> list[str]:
    """What is good to know about how the video was read; logged too."""
    from pave.data.media import probe, remarks

    sentences = [message for _, message in remarks(probe(video))]
    for sentence in sentences:
        logger.info("%s: %s", video, sentence)
    return sentences


def _sides(given: list[str]) -> dict[str, str]:
    """The files of ``--side`` by channel."""
    sides: dict[str, str] = {}
    for option in given:
        name, _, path = option.partition("=")
        if not name or not path:
            raise ValueError(f"--side {option!r}: expected NAME=PATH, such as depth=clip.depth.safetensors")
        if name in sides:
            raise ValueError(f"--side {option!r}: the side channel {name!r} is given twice")
        if not Path(path).exists():
            raise ValueError(f"--side {option!r}: there is no file or folder {path}")
        sides[name] = path
    return sides


def _text(answers: dict[str, Answer], compare: bool) -> str:
    last = next(reversed(answers.values()))
    sides = [f"{name}: {side}" for name, side in last.side_channels.items()]
    logger.info(
        "%d frames from %.2f to %.2f s%s",
        len(last.frame_times),
        last.frame_times[0],
        last.frame_times[-1],
        "".join(f"; {side}" for side in sides),
    )
    if not compare:
        return last.text
    return "\n".join(f"{name + ':':<7}{answer.text}" for name, answer in answers.items())
