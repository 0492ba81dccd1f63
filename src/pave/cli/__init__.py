"""The ``pave`` command: one file per verb, each calling one library function."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``pave`` command.

    Args:
        arguments: as typed after ``pave``; default, those of the process.

    Returns:
        0 if all went well, 1 if the job failed, 2 for wrong usage or bad input, 130 if interrupted.
    """
    from pave.cli.app import run

    return run(arguments)
