"""``pave report``: one page about several evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pave.cli.shared import BaseOption, DeviceOption, DtypeOption, EncodersOption, JsonOption, MismatchOption, Result

if TYPE_CHECKING:
    from pave.evaluation.inference import VideoQA
    from pave.evaluation.run_report import ReportRun


def command(
    runs: list[str] = typer.Argument(
        ...,
        metavar="RUN...",
        help="Folders of pave eval --out, each FOLDER or NAME=FOLDER. The first is compared with the others.",
    ),
    out: Path = typer.Option(Path("report.html"), "--out", help="The page to write."),
    samples: Path | None = typer.Option(
        None, "--samples", help="The .jsonl file that was answered. Default: the one that the runs name."
    ),
    root: Path | None = typer.Option(
        None, "--root", help="Folder that paths in --samples start from. Default: the file's own."
    ),
    patch: str | None = typer.Option(
        None, "--patch", help="Show where this patch looks in the examples: a folder or a hub id. It loads the model."
    ),
    base: str | None = BaseOption,
    examples: int = typer.Option(6, "--examples", min=0, help="Samples to show on which the first run and the last differ."),
    title: str | None = typer.Option(None, "--title", help="Heading of the page."),
    seed: int = typer.Option(0, "--seed", min=0, help="Of the bootstrap behind intervals of scores such as CIDEr."),
    device: str = DeviceOption,
    dtype: str = DtypeOption,
    allow_base_mismatch: bool = MismatchOption,
    encoders: list[str] | None = EncodersOption,
    json_output: bool = JsonOption,
) -> Result:
    """\b
    pave report base=runs/base lora=runs/video-only patch=runs/patch --out report.html

    Write one self-contained HTML page about evaluations of the same samples: scores beside published numbers, both scorers,
    paired comparisons, counterfactuals, samples on which the first run and the last differ, failures and cost. No model is
    loaded, unless --patch asks to see where the patch looks.
    """
    from pave.data.samples import read_samples
    from pave.evaluation.run_report import read_runs, unchecked_runs, write_run_report

    if base is not None and patch is None:
        raise ValueError("--base: the model is loaded to see where a patch looks; name the patch with --patch")
    read = read_runs(runs, samples=samples, data_root=root, seed=seed)
    given = None if samples is None else read_samples(samples, data_root=root)
    qa = None if patch is None else _load(read[-1], base, patch, device, dtype, allow_base_mismatch, encoders)
    data = write_run_report(out, read, samples=given, qa=qa, examples=examples, title=title, seed=seed)
    lines = [f"{run.name}: {sentence}" for run in read if run.exposure is not None for sentence in run.exposure.sentences]
    lines += [
        f"{name}: the run has no counterfactuals, so whether the patch uses its side channel is not known (pave eval --counterfactuals)"
        for name in unchecked_runs(read)
    ]
    lines += [f"sample {sample}: {note}" for sample, note in data["not_shown"].items()]
    return Result("\n".join([*lines, f"report: {out}"]), data)


def _load(
    run: ReportRun, base: str | None, patch: str, device: str, dtype: str, allow_base_mismatch: bool, encoders: list[str] | None
) -> VideoQA:
    """The patch on its base, by default that of the run, with the run's frames."""
    from pave.cli.models import load
    from pave.data.media import FrameSampling

    settings = run.result.settings
    frames = FrameSampling.from_dict(settings.get("frames") or {}, where=f"{run.folder}: the setting 'frames'")
    return load(base or settings.get("base"), patch, device, dtype, frames, allow_base_mismatch, encoders)
