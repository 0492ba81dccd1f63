"""Write the tables in README.md, CONTRIBUTING.md and docs/ that repeat facts of the code, between their markers.

    python docs/make_tables.py [RUN/result.json ...]

Results of ``pave demo`` that are named are first copied to docs/results, where the table of the demo comes from.

A test runs the same functions and compares, so that the documents cannot fall behind the code. Markers are comments:
``<!-- fields: MODULE.CLASS -->`` for the fields of a config, ``<!-- costs -->`` for the sizes of the presets,
``<!-- layers -->`` for the layers of pyproject.toml, ``<!-- demo -->`` for what the demo measured, ``<!-- families -->`` for the
types of base models, ``<!-- published: TABLE -->`` for the numbers that papers print. What stands between a marker and its closing one is replaced, and so is the output under a line
``$ pave show ...`` or ``$ pave families ...`` in a console block.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import json
import re
import shlex
import sys
from pathlib import Path

from pave.cli import main
from pave.config import field_docs
from pave.utils.files import atomic_write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
MARKER = re.compile(r"(<!-- (fields|costs|layers|demo|families|published)(?:: ([\w.]+))? -->\n)(.*?)(<!-- /\2 -->)", re.DOTALL)
CONSOLE = re.compile(r"(```console\n\$ pave ((?:show|families)[^\n]*)\n)(.*?)(```)", re.DOTALL)
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
        plain = {"costs": costs_table, "layers": layers_list, "demo": demo_table, "families": families_table}
        named = {"fields": fields_table, "published": published_table}
        body = named[kind](name) if kind in named else plain[kind]()
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
    annotation = annotation.removeprefix("Annotated[").removesuffix(", NullIsEmpty()]")
    if annotation.endswith(" | None"):
        return f"{_kind(annotation.removesuffix(' | None'))} or null"
    if " | " in annotation:
        return " or ".join(_kind(one) for one in annotation.split(" | "))
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


def demo_table() -> str:
    """What ``pave demo`` measured, from its stored results: a row for each type of question, a column for each run."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("demo-seed*.json"))]
    first, *others = results
    runs = list(first["scores"])
    rows = [f"| questions | {' | '.join(runs)} |", "| --- |" + " --- |" * len(runs)]
    for kind in first["scores"][runs[0]]["by_type"]:
        rows.append(f"| `{kind}` | {' | '.join(_cell(first['scores'][run]['by_type'][kind]) for run in runs)} |")
    for label, key in (("all silent questions", "silent"), ("all questions on sound", "sound")):
        rows.append(f"| **{label}** | {' | '.join(_cell(first['findings'][key][run]) for run in runs)} |")
    setup, seconds = first["setup"], sum(first["seconds"].values())
    text = (
        f"\n`{setup['command']}`: {setup['clips']}; {setup['steps']}. It took {seconds:.0f} s on {setup['machine']}, "
        f"torch {setup['versions']['torch']}."
    )
    if others:
        gains = ", ".join(f"{r['findings']['sound_gain']:+.1f}" for r in others)
        losses = ", ".join(f"{-r['findings']['silent_loss']:+.1f}" for r in others)
        seeds = " and ".join(str(r["setup"]["seed"]) for r in others)
        text += (
            f" The patch gains {first['findings']['sound_gain']:+.1f} points over LoRA on video only where sound is needed and "
            f"{-first['findings']['silent_loss']:+.1f} over the base where it is not; with seeds {seeds} (other clips, other "
            f"weights) {gains} and {losses}."
        )
    return "\n".join(rows) + "\n" + text


def _cell(score: dict) -> str:
    low, high = (score[k] if k in score else score["interval"][k] for k in ("low", "high"))
    return f"{100 * score['accuracy']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def store_results(paths: list[Path]) -> None:
    """Copy results of the demo to docs/results, without what is only true on the machine that made them."""
    for path in paths:
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["short"]:
            raise SystemExit(f"{path} is a short run, which measures nothing")
        for score in result["scores"].values():
            del score["settings"], score["failures"]
        kept = {key: result[key] for key in ("setup", "scores", "findings", "seconds")}
        atomic_write_text(RESULTS / f"demo-seed{result['setup']['seed']}.json", json.dumps(kept, indent=1) + "\n")


def families_table() -> str:
    """Every described type of base model, as the conformance suite wrote it down."""
    from pave.video_llms.verified import verified_families

    rows = [
        "| `model_type` | class | frames a step | linear layers for LoRA | needs | passed | the base itself cannot |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for family in verified_families():
        count = len(family.passed) + len(family.limits) + len(family.open)
        linears = ", ".join(f"`{name}`" for name in family.facts["linears"])
        needs = ", ".join(f"`{name}`" for name in family.facts["packages"])
        limits = "; ".join(f"{check} ({reason})" for check, reason in family.limits.items())
        facts = f"{family.model_class} | {family.facts['frames_per_step']} | {linears} | {needs}"
        rows.append(f"| `{family.model_type}` | {facts} | {len(family.passed)} of {count} | {limits} |")
    return "\n".join(rows)


def published_table(which: str) -> str:
    """The numbers that papers print for benchmarks with a side channel (``side``) or with dense frames as one (``dense``)."""
    from pave.evaluation.benchmarks import BENCHMARKS
    from pave.evaluation.benchmarks.published import published_rows

    kinds = {"side": ("zero-shot", "LoRA on the video only", "with the side channel"), "dense": ("base", "with dense frames")}
    wanted = kinds[which]
    rows = ["| | 0.5B | 7B | 7B, run again | others |", "| --- | --- | --- | --- | --- |"]
    for row in published_rows():
        values = {number.system: f"{number.value:.1f}" for number in row.numbers}
        if row.benchmark not in BENCHMARKS or not any(f"PAVE 7B, {kind}" in values for kind in wanted):
            continue
        ours = [" / ".join(values.pop(f"PAVE {size}, {kind}", "–") for kind in wanted) for size in ("0.5B", "7B")]
        again = values.pop("PAVE 7B, run again", "")
        others = ", ".join(f"{system} {value}" for system, value in values.items())
        rows.append(f"| {row.label} | {ours[0]} | {ours[1]} | {again} | {others} |")
    return "\n".join(rows)


if __name__ == "__main__":
    store_results([Path(name) for name in sys.argv[1:]])
    for path in documents():
        old = path.read_text(encoding="utf-8")
        new = refreshed(old)
        if new != old:
            atomic_write_text(path, new)
