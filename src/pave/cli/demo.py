"""``pave demo``: the whole story on the embedded playground."""

from __future__ import annotations

from pathlib import Path

import typer

from pave.cli.shared import JsonOption, Result


def command(
    out: Path = typer.Option(Path("runs/demo"), "--out", help="Folder for the data, the patch and the report."),
    short: bool = typer.Option(False, "--short", help="A few steps only: shows that everything runs, not that it learns."),
    seed: int = typer.Option(0, "--seed", min=0, help="Of the world, the fresh weights and the order of training."),
    json_output: bool = JsonOption,
) -> Result | None:
    """\b
    pave demo --out runs/demo

    Render a small world of moving, sounding objects, train an audio patch for the embedded Video LLM and compare it with the
    base and with LoRA on video alone. Takes about six minutes on two cores and writes a report to open in a browser.
    """
    from pave.cli.models import hide_loading_bars
    from pave.demo import run_demo

    hide_loading_bars()
    result = run_demo(out=out, short=short, seed=seed)
    return Result(text=str(result), data=result.to_dict())
