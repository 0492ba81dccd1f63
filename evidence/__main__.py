"""``python -m evidence``: the evidence for the method, made again on the playground."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from pave.cli.shared import JsonOption, Result, debug_mode, guarded


def command(
    sections: list[str] | None = typer.Argument(
        None,
        help="Any of channels, time, parts, multi, robustness, cost, bases, views, own; those on the page already, of "
        "the same size, stay. Default: all, or what --size says.",
    ),
    out: Path = typer.Option(
        Path("runs/evidence"), "--out", help="Folder for data, runs and the page; what is there is used."
    ),
    size: str = typer.Option(
        "full",
        "--size",
        help="full: three seeds, some hours. one-seed: one, without parts and bases unless named, half an hour. short: "
        "minutes, shows only that everything runs.",
    ),
    processes: int = typer.Option(2, "--processes", min=1, help="Runs made side by side, each with one thread."),
    variants: list[str] | None = typer.Option(
        None,
        "--variant",
        help='A row of your own, "NAME: KEY=VALUE KEY=VALUE": the demo\'s audio patch with changed keys of a recipe, '
        "under patch. and training. May be given several times. Without sections only these rows are made.",
    ),
    json_output: bool = JsonOption,
) -> Result:
    """\b
    python -m evidence channels time --size one-seed
    python -m evidence --variant "one layer: patch.side_channels.audio.fusion.num_layers=1"

    Train and test patches on the miniature worlds inside pave, and write evidence.md into the folder --out, with its
    figures in a folder beside it. What a run left behind is not made again, so an interrupted reproduction goes on
    where it stopped. Runs at the root of the repository.
    """
    from evidence.page import reproduce
    from pave.cli.models import hide_loading_bars

    hide_loading_bars()
    page = reproduce(out, sections or [], size, processes, variants or [])
    return Result(page.read_text(encoding="utf-8"), {"page": str(page)})


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})(guarded(command))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, with ``--debug`` for the traceback of an error.

    Returns:
        0 if all went well, 1 if a run failed, 2 for wrong usage or bad input, 130 if interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug_mode.set(debug_mode.get() or "--debug" in given)
    try:
        app([word for word in given if word != "--debug"], prog_name="python -m evidence")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
