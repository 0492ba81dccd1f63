"""``pave export``: a patch as plain files for other programs, or merged into its base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pave.cli.shared import DtypeOption, JsonOption, MismatchOption, Result, check_model_options

if TYPE_CHECKING:
    from pave.patching.convert import MergedExport


def command(
    patch: str = typer.Argument(..., help="A patch: a folder or a hub id."),
    out: Path | None = typer.Option(None, "--out", help="Where the files go; an older folder there is replaced."),
    merged: Path | None = typer.Option(
        None,
        "--merged",
        help="Instead: a folder for a copy of the base with the LoRA in its weights, and the patch without LoRA beside it.",
    ),
    peft: bool = typer.Option(False, "--peft", help="With --merged: leave the LoRA as a folder of PEFT's; no base is copied."),
    base: str | None = typer.Option(
        None, "--base", help="The base that --merged copies: a folder or a hub id. Default: the one that the patch names."
    ),
    dtype: str = DtypeOption,
    allow_base_mismatch: bool = MismatchOption,
    json_output: bool = JsonOption,
) -> Result:
    """\b
    pave export my-patch --out exported
    pave export my-patch --merged fast --base BASE

    Write a patch as files that other programs read without this library: a PEFT LoRA folder, the fusion weights, and a JSON file
    that says how they act. Or, for the least latency, fold its LoRA into a copy of the base's weights: every row gets it then, also one
    without the side channel.
    """
    check_model_options(base, patch, dtype)
    if (out is None) == (merged is None):
        raise ValueError("give --out for plain files or --merged for a merged base, one of the two")
    if merged is None:
        if peft or base is not None:
            raise ValueError("--peft and --base belong to --merged; plain files need no base")
        return _exported(patch, out)  # type: ignore[arg-type]
    if peft and base is not None:
        raise ValueError("--peft leaves the base as it is, so --base is not needed; leave one of them out")
    from pave.patching.convert import export_beside, export_merged

    if peft:
        return _merged_result(export_beside(patch, merged))
    return _merged_result(export_merged(patch, merged, base=base, dtype=dtype, allow_base_mismatch=allow_base_mismatch))


def _exported(patch: str, out: Path) -> Result:
    from pave.patching.convert import export_patch

    exported = export_patch(patch, out)
    lines = [f"wrote {', '.join(str(exported.folder / name) for name in exported.files)}"]
    if exported.duties:
        lines += ["beside the adapter, the other program must:", *(f"- {duty}" for duty in exported.duties)]
    data = {"folder": str(exported.folder), "files": list(exported.files), "engine_must": list(exported.duties)}
    return Result("\n".join(lines), data)


def _merged_result(made: MergedExport) -> Result:
    lines = []
    if made.base is not None:
        lines.append(
            f"wrote {made.base}: the base with the LoRA in its weights; every row gets it, and it is not the base any more"
        )
    if made.adapter is not None:
        lines.append(f"wrote {made.adapter}: the LoRA, for PeftModel.from_pretrained; while it is active every row gets it")
    if made.patch is None:
        lines.append("the patch has no side channel, so nothing else remains of it")
    else:
        lines.append(f"wrote {made.patch}: the fusion alone, for load_patch on that model")
    folders = {name: getattr(made, name) for name in ("folder", "base", "adapter", "patch")}
    return Result("\n".join(lines), {name: None if path is None else str(path) for name, path in folders.items()})
