"""``pave doctor``: look for defects in samples and their files before a GPU is held."""

from __future__ import annotations

import io
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pave.cli.shared import FAILED, MOST_PROCESSES, EncodersOption, JsonOption, Result

if TYPE_CHECKING:
    from pave.data.doctor import Cleaned, Report
    from pave.training.recipe import Recipe

_SHOWN = 5
"""Most findings of one kind that are written out."""


def command(
    data: list[Path] = typer.Argument(..., help="A recipe, or .jsonl files of samples; several are compared with each other."),
    patch: str | None = typer.Option(None, "--patch", help="A patch, for its channels and frames. A recipe has its own."),
    encoders: list[str] | None = EncodersOption,
    base: str | None = typer.Option(
        None, "--base", help="Count tokens with this base's processor. Default: a recipe's base if it is on this computer."
    ),
    require: list[str] | None = typer.Option(None, "--require", help="A channel that no sample may lack; may be repeated."),
    quick: bool = typer.Option(False, "--quick", help="Only probe files: decode nothing, make no features and no prompts."),
    strict: bool = typer.Option(False, "--strict", help="Warnings count as defects."),
    fix: Path | None = typer.Option(
        None, "--fix", help="Write the first file without what has a defect, and NAME.left_out.json that says why."
    ),
    root: Path | None = typer.Option(
        None, "--root", help="Folder that paths in .jsonl files start from. Default: each one's own."
    ),
    frames: int | None = typer.Option(
        None, "--frames", min=1, help="Frames that the base sees. Default: of the recipe or patch, else 8."
    ),
    max_length: int | None = typer.Option(None, "--max-length", min=1, help="Most tokens of a prompt. Default: the recipe's."),
    max_answer_tokens: int = typer.Option(64, "--max-answer-tokens", min=1, help="Most tokens of an answer."),
    max_offset: float = typer.Option(
        0.2, "--max-offset", min=0, help="Seconds that sound may begin before or after the picture."
    ),
    timeout: float = typer.Option(60.0, "--timeout", help="Seconds that reading one file may take."),
    workers: int | None = typer.Option(
        None, "--workers", min=1, max=MOST_PROCESSES, help="Processes that read. Default: one for each core, at most 8."
    ),
    json_output: bool = JsonOption,
) -> Result:
    """\b
    pave doctor train.jsonl test.jsonl --require audio

    Read every file that samples name, with the readers of training, and list what is damaged, missing or suspicious: media, sound,
    side channels, texts, and what two files share. Nothing is changed. Exit codes: 0 clean, 1 defects, 2 wrong usage.
    """
    from pave.data.doctor import examine, write_clean

    if fix is not None and fix.suffix != ".jsonl":
        raise ValueError(f"--fix: {fix} must end in .jsonl")
    plan = _plan(data, patch, base, quick, root)
    if frames is not None:
        plan.values["frames"] = {"num_frames": frames}
    if max_length is not None:
        plan.values["max_length"] = max_length
    if encoders:
        plan.values["encoders"] = [*plan.values.get("encoders", []), *encoders]
    if fix is not None and os.path.realpath(fix) in {os.path.realpath(file) for file in plan.files}:
        raise ValueError(f"--fix: {fix} is one of the files that are examined, and they are not changed; choose another name")
    report = examine(
        plan.files,
        plan.setup(
            required=tuple(require or ()),
            quick=quick,
            max_answer_tokens=max_answer_tokens,
            max_offset=max_offset,
            timeout=timeout,
        ),
        data_root=plan.root,
        workers=workers or min(8, os.cpu_count() or 1),
    )
    cleaned = None if fix is None else write_clean(report, fix, strict=strict)
    clean = report.is_clean(strict)
    fixed = None if cleaned is None else {**vars(cleaned), "samples": str(cleaned.samples), "left_out": str(cleaned.left_out)}
    content = {"clean": clean, "strict": strict, **report.to_dict(), "fixed": fixed}
    return Result(_text(report) + _fixed(fix, cleaned), content, 0 if clean else FAILED)


@dataclass(frozen=True)
class _Plan:
    """What a recipe, or files and a patch, say."""

    files: list[Path]
    root: Path | dict[str, Path | None] | None
    """Of all files, or of each by its path."""
    values: dict[str, Any]
    """Fields of a ``Setup``."""

    def setup(self, **more: Any) -> Any:
        from pave.data.doctor import Setup

        return Setup.from_dict({**self.values, **more}, where="pave doctor")


def _plan(data: list[Path], patch: str | None, base: str | None, quick: bool, root: Path | None) -> _Plan:
    if any(path.suffix in (".yaml", ".yml") for path in data):
        if len(data) > 1 or patch is not None or root is not None:
            raise ValueError("a recipe names its own files, channels and root; give it alone, without --patch and --root")
        return _of_recipe(data[0], base, quick)
    values: dict[str, Any] = {} if base is None else {"base": base}
    if patch is not None:
        from pave.patching import read_record, resolve_patch

        record = read_record(resolve_patch(patch))
        values["channels"] = record.patch.to_dict()["side_channels"]
        trained = (record.provenance or {}).get("recipe") or {}
        values |= {"frames": trained["data"]["frames"]} if "frames" in trained.get("data", {}) else {}
    return _Plan(data, root, values)


def _of_recipe(path: Path, base: str | None, quick: bool) -> _Plan:
    from pave.training.recipe import read_recipe

    recipe = read_recipe(path)
    folder = path.parent
    values: dict[str, Any] = {
        "channels": recipe.patch.to_dict()["side_channels"],
        "encoders": list(recipe.own_encoders(folder)),
        "frames": recipe.data.frames.to_dict(),
        "max_length": recipe.data.max_length,
    }
    chosen = base if base is not None or quick else _base_here(recipe, folder)
    if chosen is not None:
        values["base"] = chosen
        values["revision"] = recipe.base.revision if chosen == recipe.base.model else None
    roots: dict[str, Path | None] = {}
    for task in recipe.data.all_tasks().values():
        for file in (task.train, task.eval):
            if file is not None:  # two tasks may share a file; it is looked at once
                roots.setdefault(str(folder / file), None if task.root is None else folder / task.root)
    return _Plan([Path(file) for file in roots], roots, values)


def _base_here(recipe: Recipe, folder: Path) -> str | None:
    """The recipe's base, if nothing has to be downloaded for it."""
    from pave.utils.embedded import PLAYGROUND

    here = folder / recipe.base.model
    return str(here) if here.is_dir() else recipe.base.model if recipe.base.model == PLAYGROUND else None


def _text(report: Report) -> str:
    """A table of kinds, and the first findings of each in full."""
    from rich.console import Console
    from rich.table import Table

    from pave.data.doctor import DEFECTS

    files = ", ".join(f"{split.name} ({len(split.samples)} samples)" for split in report.splits)
    how = "probed" if report.quick else "read"
    counts = [
        f"{report.count(severity)} {severity}{'' if report.count(severity) == 1 else 's'}"
        for severity in ("error", "warning", "note")
    ]
    lines = [f"{files}: {report.videos} videos {how}, {', '.join(counts)}"]
    if not report.findings:
        return lines[0]
    kinds: dict[tuple[str, str], list[Any]] = {}
    for one in report.findings:
        kinds.setdefault((one.severity, one.code), []).append(one)
    table = Table(box=None, pad_edge=False)
    for title in ("severity", "code", "found", "what", "what to do"):
        table.add_column(title, justify="right" if title == "found" else "left")
    style = {"error": "red", "warning": "yellow", "note": "dim"}
    for (severity, code), found in kinds.items():
        defect = DEFECTS[code]
        table.add_row(severity, code, str(len(found)), defect.what, defect.remedy, style=style[severity])
    out = io.StringIO()
    width = shutil.get_terminal_size((110, 24)).columns
    Console(file=out, force_terminal=sys.stdout.isatty(), width=width).print(table)
    lines += ["", *(line.rstrip() for line in out.getvalue().splitlines()), ""]
    for (severity, code), found in kinds.items():
        if severity == "note":
            continue
        lines += [f"{severity} {code}: {one.sentence}" for one in found[:_SHOWN]]
        if len(found) > _SHOWN:
            lines.append(f"{severity} {code}: {len(found) - _SHOWN} more; --json lists all")
    return "\n".join(lines).rstrip()


def _fixed(fix: Path | None, cleaned: Cleaned | None) -> str:
    if fix is None:
        return ""
    if cleaned is None:
        return f"\n\nno sample is without a defect, so {fix} was not written"
    return f"\n\nwrote {cleaned.samples} with {cleaned.kept} samples; {cleaned.left_out} lists the {cleaned.dropped} left out"
