"""``pave data``: files of samples from elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pave.cli.shared import JsonOption, Result, Verb, guarded

if TYPE_CHECKING:
    from pave.evaluation.benchmarks.conversion import Conversion

_SHOWN = 20

app = typer.Typer(
    help="""\b
    pave data convert music_avqa --annotations avqa-test.json --media videos --out test.jsonl

    Files of samples from elsewhere.
    """,
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def _group() -> None:
    """Without a callback a group with one verb would be that verb."""


@app.command("convert", cls=Verb, short_help="Official files of a benchmark to samples.")
@guarded
def convert(
    benchmark: str = typer.Argument(..., help="Its name; docs/benchmarks.md lists them."),
    annotations: list[Path] = typer.Option(..., "--annotations", help="An official file or a folder of them; may be repeated."),
    media: Path = typer.Option(..., "--media", help="Folder with the videos; subfolders are searched."),
    out: Path = typer.Option(..., "--out", help="The .jsonl file of samples to write."),
    split: str | None = typer.Option(None, "--split", help="train, val, dev or test. Default: what the file's name says."),
    files: Path | None = typer.Option(
        None, "--files", help="Folder for what has to be made, such as clips. Default: beside --out, called after it."
    ),
    subset: bool = typer.Option(False, "--subset", help="Accept another number of samples than the split officially has."),
    drop_missing: bool = typer.Option(
        False,
        "--drop-missing",
        help="Leave out samples without video (for training). Default: an evaluation counts them as wrong.",
    ),
    json_output: bool = JsonOption,
) -> Result:
    """\b
    pave data convert music_avqa --annotations avqa-test.json --media videos --out test.jsonl

    Write the samples of a benchmark, with the published prompts. What is not there is listed.
    """
    from pave.evaluation.benchmarks import get_benchmark
    from pave.evaluation.benchmarks.conversion import convert

    if out.suffix != ".jsonl":
        raise ValueError(f"--out: {out} must end in .jsonl")
    done = convert(
        get_benchmark(benchmark), annotations, media, out, split=split, files=files, subset=subset, drop_missing=drop_missing
    )
    for sample, video in done.missing[:_SHOWN]:
        print(f"no video for {sample}: {video}", file=sys.stderr)
    if len(done.missing) > _SHOWN:
        print(f"... and {len(done.missing) - _SHOWN} more samples without video; --json lists all", file=sys.stderr)
    for sample, why in done.failed:
        print(f"no clip for {sample}: {why}", file=sys.stderr)
    for sample, what in done.odd:
        print(f"odd: {sample}: {what}", file=sys.stderr)
    return Result(_text(done), done.to_dict())


def _text(done: Conversion) -> str:
    official = " or ".join(f"{n:,}" for n in done.official.values())
    lines = [
        f"wrote {done.out}: {done.n_samples:,} samples about {done.n_videos:,} videos"
        + (f"; the split {done.split} officially has {official}" if official else f"; split {done.split}")
    ]
    if done.missing:
        lines.append(
            f"{len(done.missing):,} sample{' has' if len(done.missing) == 1 else 's have'} no video: "
            + ("left out" if done.dropped else "an evaluation counts them as wrong; --drop-missing leaves them out")
        )
    if done.failed:
        lines.append(f"{len(done.failed):,} clips could not be made; an evaluation counts their samples as wrong")
    if done.odd:
        lines.append(f"{len(done.odd):,} samples are odd, and read as the official script reads them")
    if done.n_secret:
        lines.append(
            f"{done.n_secret:,} samples have no public answer: answer them with pave eval, then pave score --submission"
        )
    for kind, counts in done.subtypes.items():
        lines += ["", f"by {kind}", *(f"  {name}: {count:,}" for name, count in counts.items())]
    return "\n".join(lines)
