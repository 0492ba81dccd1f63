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
    Result,
    check_model_options,
)

if TYPE_CHECKING:
    from pave.inference import Answer

logger = logging.getLogger(__name__)


def command(
    video: Path = typer.Argument(
        ..., help="A video file, or pave:whistle, one inside pave. Its sound is used if the patch hears."
    ),
    question: str = typer.Argument(..., help="What to ask about it."),
    patch: list[str] | None = typer.Option(
        None,
        "--patch",
        metavar="[NAME=]PATCH",
        help="A patch: a folder or a hub id. Several may be given, each with a name of its own, and act together.",
    ),
    strength: list[str] | None = typer.Option(
        None,
        "--strength",
        metavar="[NAME=]NUMBER",
        help="How strongly a patch acts: 0 as the base, 1 (the default) as trained. May be repeated.",
    ),
    base: str | None = BaseOption,
    side: list[str] | None = typer.Option(
        None,
        "--side",
        metavar="[PATCH.]NAME=PATH",
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

    Answer a question about a video, with patches or without. Without --base the one that the patch was trained on is taken. Without a
    patch either, the small Video LLM inside pave answers, and beside it the patch inside pave that hears: they know the demo's
    miniature world only.

    pave ask pave:whistle "what sound is heard ?"
    """
    from pave.utils.embedded import AUDIO_PATCH, embedded_path

    if base is None and not patch:
        patch, compare = [AUDIO_PATCH], True
    video = Path(embedded_path(str(video)))
    if compare and not patch:
        raise ValueError("--compare shows the base beside a patch; give one with --patch")
    if not video.is_file():
        raise ValueError(f"{video}: there is no such file")
    sides = _sides(side or [])
    if sides and not patch:
        raise ValueError("--side gives a patch its side channel; name the patch with --patch")
    patches = _patches(patch or [])
    strengths = _strengths(strength or [], patches)
    check_model_options(base, patches, dtype)
    from pave.cli.models import load
    from pave.data.media import FrameSampling

    qa = load(base, patches, device, dtype, FrameSampling(num_frames=frames) if frames else None, allow_base_mismatch, encoders)
    if strengths:
        names = qa.model.patch_names
        given = {name or names[0]: value for name, value in strengths.items()}
        qa.model.select_patches({name: given.get(name, 1.0) for name in names})
    options: dict[str, Any] = {"choices": choice or None, "side_channels": sides, "max_new_tokens": max_new_tokens}
    answers = {"patch" if patch else "base": qa.ask(video, question, **options)}
    if compare:
        answers = {"base": qa.ask(video, question, patches=None, **options), **answers}
    remarks = _remarks(str(video))
    data = {
        "video": str(video),
        "question": question,
        "base": qa.name,
        "patch": patches.get("") or patches or None,
        "strength": strengths,
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


def _patches(given: list[str]) -> dict[str, str]:
    """The patches of ``--patch`` by name; "" for a single one without."""
    patches: dict[str, str] = {}
    for option in given:
        name, named, path = option.partition("=")
        if not named or not name.isidentifier() or Path(option).is_dir():
            name, path = "", option
        if name in patches or (len(given) > 1 and not name):
            raise ValueError(f"--patch {option!r}: several patches need names of their own; give each as NAME=PATCH")
        patches[name] = path
    return patches


def _strengths(given: list[str], patches: dict[str, str]) -> dict[str, float]:
    """The strengths of ``--strength`` by patch; "" for the only one."""
    strengths: dict[str, float] = {}
    for option in given:
        name, named, text = option.rpartition("=")
        if name and "" in patches:
            raise ValueError(
                f"--strength {option!r}: the only patch has no name; leave {name}= out, or name it with --patch {name}={patches['']}"
            )
        key = "" if "" in patches else name or (next(iter(patches)) if len(patches) == 1 else name)
        if not patches or (key not in patches):
            known = ", ".join(patches) or "none"
            raise ValueError(f"--strength {option!r}: expected NAME=NUMBER with a name that --patch gives ({known})")
        if key in strengths:
            raise ValueError(f"--strength {option!r}: the strength of this patch is given twice")
        try:
            strengths[key] = float(text)
        except ValueError:
            raise ValueError(f"--strength {option!r}: {text!r} is no number") from None
    return strengths


def _sides(given: list[str]) -> dict[str, Any]:
    """The files of ``--side`` by channel, or by patch and channel."""
    sides: dict[str, Any] = {}
    for option in given:
        name, _, path = option.partition("=")
        if not name or not path:
            raise ValueError(f"--side {option!r}: expected NAME=PATH, such as depth=clip.depth.safetensors")
        patch, dot, channel = name.partition(".")
        own = sides.setdefault(patch, {}) if dot else sides
        if not isinstance(own, dict) or (not dot and isinstance(sides.get(name), dict)):
            raise ValueError(
                f"--side {option!r}: {patch!r} is given as a channel and as a patch; name every channel PATCH.NAME"
            )
        if (channel if dot else name) in own:
            raise ValueError(f"--side {option!r}: the side channel {name!r} is given twice")
        if not Path(path).exists():
            raise ValueError(f"--side {option!r}: there is no file or folder {path}")
        own[channel if dot else name] = path
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
