"""``pave sign``: bind the files of a patch together after they were changed on purpose."""

from __future__ import annotations

from pathlib import Path

import typer

from pave.cli.shared import JsonOption, Result


def command(
    patch: Path = typer.Argument(..., help="A patch in a folder on this computer."),
    json_output: bool = JsonOption,
) -> Result:
    """\b
    pave sign my-patch

    Write the hashes of a patch's files anew, after you changed some on purpose, or for a patch of an earlier version. A patch whose files are
    not those that it was written with is refused wherever it is loaded. Sign only what you know the origin of: the hashes tell damage and
    mixtures, not who made a patch.
    """
    from pave.patching import sign_patch

    record = sign_patch(patch)
    return Result(f"signed {patch}: {', '.join(record.files)}", {"patch": str(patch), "files": record.files})
