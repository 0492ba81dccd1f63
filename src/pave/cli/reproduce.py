"""``pave reproduce``: the evidence for the method, made again on the playground."""

from __future__ import annotations

from pathlib import Path

import typer

from pave.cli.shared import MOST_PROCESSES, JsonOption, Result


def command(
    sections: list[str] | None = typer.Argument(
        None,
        help="Of channels, time, parts, multi, robustness, cost, bases, views, own; those on the page already, of the same size, stay. Default: all, or what --size says.",
    ),
    out: Path = typer.Option(Path("runs/evidence"), "--out", help="Folder for data, runs and the page; what is there is used."),
    size: str = typer.Option(
        "full",
        "--size",
        help="full: three seeds, some hours. one-seed: one, without parts and bases unless named, half an hour. short: minutes, shows only that everything runs.",
    ),
    processes: int = typer.Option(
        2, "--processes", min=1, max=MOST_PROCESSES, help="Runs made side by side, each with one thread."
    ),
    variants: list[str] | None = typer.Option(
        None,
        "--variant",
        help='A row of your own, "NAME: KEY=VALUE KEY=VALUE": the demo\'s audio patch with changed keys of a recipe, under patch. and training. '
        "May be given several times. Without sections only these rows are made.",
    ),
    json_output: bool = JsonOption,
) -> Result:
    """\b
    pave reproduce channels time --size one-seed
    pave reproduce --variant "one layer: patch.side_channels.audio.fusion.num_layers=1"

    Train and test patches on the miniature worlds inside pave, and write evidence.md into the folder --out, with its figures
    in a folder beside it. What a run left behind is not made again, so an interrupted reproduction goes on where it stopped.
    """
    from pave.cli.models import hide_loading_bars
    from pave.evidence.document import reproduce

    hide_loading_bars()
    page = reproduce(out, sections or [], size, processes, variants or [])
    return Result(page.read_text(encoding="utf-8"), {"page": str(page)})
