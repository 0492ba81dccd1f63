"""Write the tables in README.md, CONTRIBUTING.md and docs/ that repeat facts of the code, between their markers.

    python docs/make_tables.py

A test runs the same functions and compares, so that the documents cannot fall behind the code. Markers are comments:
``<!-- fields: MODULE.CLASS -->`` for the fields of a config, ``<!-- costs -->`` for the sizes of the presets,
``<!-- layers -->`` for the layers of pyproject.toml. What stands between a marker and its closing one is replaced, and so is the
output under a line ``$ pave show ...`` in a console block.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import json
import re
import shlex
from pathlib import Path

from pave.cli import main
from pave.config import field_docs
from pave.utils.files import atomic_write_text

ROOT = Path(__file__).resolve().parents[1]
MARKER = re.compile(r"(<!-- (fields|costs|layers)(?:: ([\w.]+))? -->\n)(.*?)(<!-- /\2 -->)", re.DOTALL)
CONSOLE = re.compile(r"(```console\n\$ pave (show [^\n]*)\n)(.*?)(```)", re.DOTALL)
COSTS = (
    ("compact", "llava-onevision-qwen2-0.5b"),
    ("compact", "llava-onevision-qwen2-7b"),
    ("compact", "qwen2.5-vl-7b"),
    ("paper", "llava-onevision-qwen2-7b"),
)


def documents() -> list[Path]:
    """Every document for people that the repository holds."""
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def refreshed(text: str) -> str:
    """``text`` with everything that is made from the code made anew."""

    def table(match: re.Match[str]) -> str:
        start, kind, name, _, end = match.groups()
        body = fields_table(name) if kind == "fields" else costs_table() if kind == "costs" else layers_list()
        return f"{start}{body}\n{end}"

    def output(match: re.Match[str]) -> str:
        start, arguments, _, end = match.groups()
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            main(shlex.split(arguments))
        return f"{start}{shown.getvalue()}{end}"

    return CONSOLE.sub(output, MARKER.sub(table, text))


def fields_table(path: str) -> str:
    """The fields of a config dataclass: name, kind of value, default, meaning."""
    module, name = path.rsplit(".", 1)
    cls = getattr(importlib.import_module(module), name)
    docs = field_docs(cls)
    rows = ["| field | value | default | meaning |", "| --- | --- | --- | --- |"]
    for field in dataclasses.fields(cls):
        meaning = " ".join(docs[field.name].split()).replace("|", "\\|")
        rows.append(f"| `{field.name}` | {_kind(str(field.type))} | {_default(field)} | {meaning} |")
    return "\n".join(rows)


def _kind(annotation: str) -> str:
    """An annotation in words of YAML."""
    if annotation.endswith(" | None"):
        return f"{_kind(annotation.removesuffix(' | None'))} or null"
    if annotation.startswith("Literal["):
        return ", ".join(f"`{value}`" for value in re.findall(r"['\"]([^'\"]+)['\"]", annotation))
    if annotation.startswith("tuple["):
        inner = _kind(annotation.removeprefix("tuple[").split(",")[0])
        return f"list of {inner}"
    if annotation.startswith("dict["):
        inner = annotation.removeprefix("dict[str, ").removesuffix("]")
        return "mapping" if inner == "Any" else f"mapping of name to {_kind(inner)}"
    plain = {"str": "text", "int": "integer", "float": "number", "bool": "true, false"}
    return plain.get(annotation, f"[{annotation}](#{annotation.lower()})")


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
        if dataclasses.is_dataclass(value):
            return "its own defaults"
    else:
        return "required"
    if isinstance(value, str):
        return f"`{value}`"
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"


def costs_table() -> str:
    """What the presets cost on published bases; the numbers of ``pave show``."""
    from pave.cli.show import PRESETS, preset_patch
    from pave.patching.cost import patch_cost
    from pave.video_llms.known import load_config

    presets = {name: preset_patch(name) for name in PRESETS}
    rows = [
        "| `--preset` | `--base` | fusion | LoRA | whole patch | of the base's parameters | added to prefill |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for preset, base in COSTS:
        cost = patch_cost(load_config(base), presets[preset])
        sizes = " | ".join(f"{size / 1e6:.2f} MB" for size in (cost.fusion_bytes, cost.lora_bytes, cost.patch_bytes))
        flops = cost.fusion_flops + cost.lora_flops
        shares = f"{100 * cost.patch_parameters / cost.base_parameters:.3f} % | {100 * flops / cost.base_prefill_flops:.3f} %"
        rows.append(f"| {preset} | {base} | {sizes} | {shares} |")
    return "\n".join(rows)


def layers_list() -> str:
    """The layers of pyproject.toml, the highest first."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    layers = re.search(r"^layers = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert layers is not None
    return "```\n" + "\n".join(re.findall(r'"(.+)"', layers[1])) + "\n```"


if __name__ == "__main__":
    for path in documents():
        old = path.read_text(encoding="utf-8")
        new = refreshed(old)
        if new != old:
            atomic_write_text(path, new)
