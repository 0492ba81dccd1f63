"""``pave export``: a patch as plain files for other programs."""

from __future__ import annotations

from pathlib import Path

import typer

from pave.cli.shared import JsonOption, Result


def command(
    patch: str = typer.Argument(..., help="A patch: a folder or a hub id."),
    out: Path = typer.Option(..., "--out", help="Where the files go; an older folder there is replaced."),
    json_output: bool = JsonOption,
) -> Result:
    """\b
    pave export my-patch --out exported

    Write a patch as files that other programs read without this library: a PEFT LoRA folder, the fusion weights, and a JSON file
    that says how they act.
    """
    from pave.patching.convert import export_patch

    exported = export_patch(patch, out)
    lines = [f"wrote {', '.join(str(exported.folder / name) for name in exported.files)}"]
    if exported.duties:
        lines += ["beside the adapter, the other program must:", *(f"- {duty}" for duty in exported.duties)]
    data = {"folder": str(exported.folder), "files": list(exported.files), "engine_must": list(exported.duties)}
    return Result("\n".join(lines), data)
