"""The verbs, put together. Importing this loads neither torch nor transformers: every verb imports them when it runs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from pave import __version__
from pave.cli import (
    ask,
    compress,
    data,
    demo,
    doctor,
    export,
    extract,
    families,
    import_,
    import_base,
    init,
    new_channel,
    report,
    score,
    show,
    sign,
    train,
)
from pave.cli import eval as evaluate
from pave.cli.shared import DEBUG_VARIABLE, Verb, debug_mode, guarded, message_level

app = typer.Typer(
    name="pave",
    help="""\b
    pave demo
    pave ask video.mp4 "What is heard?" --compare

    Patches that teach a frozen Video LLM to use sound or other side channels.

    Results go to standard output, messages and progress to standard error. Exit codes: 0 done, 1 the job failed,
    2 wrong usage or bad input, 130 interrupted.
    """,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

VERBS: dict[str, tuple[Callable[..., Any] | typer.Typer, str]] = {
    "demo": (demo.command, "The whole story on a miniature world, in about six minutes."),
    "ask": (ask.command, "Answer a question about a video, with a patch or without."),
    "init": (init.command, "Write a commented recipe and a sample file to start from."),
    "new-channel": (new_channel.command, "Write the skeleton of a side channel of your own, with its tests."),
    "data": (data.app, "Official files of a benchmark to samples (pave data convert)."),
    "doctor": (doctor.command, "Look for defects in samples and their files before training."),
    "extract": (extract.command, "Run the side encoders once over all samples and keep the features."),
    "train": (train.command, "Train a patch from a recipe."),
    "eval": (evaluate.command, "Score a file of samples."),
    "score": (score.command, "Score answers again without a model, or compare two runs."),
    "report": (report.command, "One page about several evaluations."),
    "show": (show.command, "What a patch is and what it costs, without loading weights."),
    "sign": (sign.command, "Bind the files of a patch together after they were changed on purpose."),
    "compress": (compress.command, "Make a trained patch smaller, and measure what that costs."),
    "families": (families.command, "Which base models are supported, and what was verified on each."),
    "import": (import_.command, "Read a patch that the authors' code saved."),
    "import-base": (import_base.command, "Read a base in the layout that the authors' code uses."),
    "export": (export.command, "Write a patch as plain files for other programs."),
}

for name, (function, summary) in VERBS.items():
    if isinstance(function, typer.Typer):
        app.add_typer(function, name=name, short_help=summary)
    else:
        app.command(name, cls=Verb, short_help=summary)(guarded(function))


def _show_version(value: bool) -> None:
    if value:
        print(f"pave {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: bool = typer.Option(
        False, "--version", "-V", callback=_show_version, is_eager=True, help="Print the version and stop."
    ),
    quiet: bool = typer.Option(False, "--quiet", help="Warnings and errors only, no progress. Anywhere on the line."),
    verbose: bool = typer.Option(False, "--verbose", help="More messages, with their times. Anywhere on the line."),
    debug: bool = typer.Option(
        False, "--debug", envvar=DEBUG_VARIABLE, help="As --verbose, with the traceback of an error. Anywhere on the line."
    ),
) -> None:
    if quiet and (verbose or debug):
        raise typer.BadParameter(f"--quiet and {'--verbose' if verbose else '--debug'} ask for opposite things; give one")
    debug_mode.set(debug)
    message_level.set(logging.WARNING if quiet else logging.DEBUG if verbose or debug else logging.INFO)


def run(arguments: Sequence[str] | None = None) -> int:
    """Parse and run; see ``pave.cli.main``."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = given[: given.index("--")] if "--" in given else given
    for flag in ("--quiet", "--verbose", "--debug"):  # anywhere on the line, yet options of the command as a whole
        if flag in options:
            given.remove(flag)
            given.insert(0, flag)
    try:
        app(given, prog_name="pave")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0
