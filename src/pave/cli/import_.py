"""``pave import``: a patch as the authors' code saves it becomes a patch of this library."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

import typer

from pave.cli.shared import JsonOption, Result

NEWLINES = ("grid", "base")


def command(
    folder: Path = typer.Argument(
        ..., help="adapter_model.safetensors (or .bin), adapter_config.json, non_lora_trainables.bin and config.json."
    ),
    out: Path = typer.Option(..., "--out", help="Where the patch goes; an older folder there is replaced."),
    base: str = typer.Option(
        ..., "--base", help="The base in transformers' layout: a folder (weights and tokenizer are recorded), or a hub id."
    ),
    heads: int | None = typer.Option(None, "--heads", min=1, help="Attention heads of the fusion module. Default: 4."),
    rope: bool | None = typer.Option(None, "--rope/--no-rope", help="Rotary positions in the fusion module. Default: none."),
    newline: str | None = typer.Option(None, "--newline", help="grid or base. Default: what config.json says."),
    vocabulary: int | None = typer.Option(
        None, "--vocabulary", min=1, help="Token ids to choose from. Default: the length of the base's tokenizer."
    ),
    channel: str = typer.Option("side", "--channel", help="Name of the side channel."),
    tokens_per_step: int = typer.Option(1, "--tokens-per-step", min=1, help="Tokens per step of its stored features."),
    rate: float | None = typer.Option(None, "--rate", help="Steps a second of its stored features. Default: 1."),
    arguments: Path | None = typer.Option(
        None, "--arguments", help="A JSON file with the fusion module's constructor arguments, by the authors' names."
    ),
    json_output: bool = JsonOption,
) -> Result:
    """\b
    pave import released/ --out my-patch --base llava-onevision-qwen2-7b

    Read a patch that the authors' code saved. Sizes are read off the weights; what no file tells is assumed, and every assumption is
    printed and recorded in the patch.
    """
    if newline not in (None, *NEWLINES):
        raise ValueError(f"--newline must be {' or '.join(NEWLINES)}, got {newline!r}")
    from pave.patching.convert import import_patch
    from pave.utils.json_files import read_json_object

    imported = import_patch(
        folder,
        out,
        base,
        heads=heads,
        rope=rope,
        newline=cast("Literal['base', 'grid'] | None", newline),
        vocabulary=vocabulary,
        channel=channel,
        tokens_per_step=tokens_per_step,
        rate=rate,
        arguments=None if arguments is None else read_json_object(arguments),
    )
    data = {
        "folder": str(imported.folder),
        "patch": imported.config.to_dict(),
        "assumed": list(imported.assumed),
        "dropped": list(imported.dropped),
    }
    lines = [f"wrote {imported.folder}"]
    if imported.dropped:
        lines.append(
            f"left out {len(imported.dropped)} tensors that the released code never reads: {', '.join(imported.dropped)}"
        )
    return Result("\n".join(lines), data)
