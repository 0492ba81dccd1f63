"""``pave import-base``: a base in the lmms-lab layout becomes one that transformers loads."""

from __future__ import annotations

from pathlib import Path

import typer

from pave.cli.shared import JsonOption, Result


def command(
    folder: Path = typer.Argument(..., help="config.json, tokenizer and weights, .safetensors or .bin, single or sharded."),
    out: Path = typer.Option(..., "--out", help="Where the base goes; an older folder there is replaced."),
    vision_heads: int | None = typer.Option(
        None, "--vision-heads", min=1, help="Attention heads of the vision tower. Default: those of the published ones."
    ),
    image_size: int | None = typer.Option(
        None, "--image-size", min=1, help="Pixels that the vision tower takes. Default: from its name or its weights."
    ),
    vision_feature_layer: int = typer.Option(
        -1, "--vision-feature-layer", help="Layer of those in the file whose output is used."
    ),
    json_output: bool = JsonOption,
) -> Result:
    """\b
    pave import-base llava-onevision-qwen2-7b-ov --out base

    Rewrite a base in the layout of lmms-lab, which the authors' code uses, as a folder that transformers loads. Weights keep their
    values and type; config, tokenizer and processor are written beside them.
    """
    from pave.patching.convert import convert_base

    given = {"num_attention_heads": vision_heads, "image_size": image_size}
    converted = convert_base(
        folder,
        out,
        vision={key: value for key, value in given.items() if value is not None},
        vision_feature_layer=vision_feature_layer,
    )
    return Result(f"wrote {converted.folder}", {"folder": str(converted.folder), "assumed": list(converted.assumed)})
