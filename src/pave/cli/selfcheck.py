"""``pave selfcheck``: what this machine can do, and whether patches work on it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from pave.cli.shared import FAILED, JsonOption, Result
from pave.utils.console import aligned

if TYPE_CHECKING:
    from pave.selfcheck import Check


_DTYPES = ("float32", "bfloat16")
"""How the base's weights are held in the checks."""


def command(
    device: list[str] | None = typer.Option(
        None,
        "--device",
        help="Check this device: cpu, cuda, cuda:1, mps, ... May be repeated. Default: the CPU and all there are.",
    ),
    json_output: bool = JsonOption,
) -> Result:
    """\b
    pave selfcheck --json > selfcheck.json

    Say what this machine can do (devices, number formats, attention kernels, codecs, memory, disk, versions), and attach, train, save,
    load and ask on each device with the small base inside pave; about half a minute. Bits that have to be equal are compared bit for
    bit, the rest with the CPU. The JSON belongs in a bug report; it names no path and no host. Exit code 1 if a check fails.
    """
    import torch

    from pave.cli.models import hide_loading_bars
    from pave.selfcheck import describe_machine, devices, usable_device

    chosen = [usable_device(name) for name in device or ()] or devices()
    hide_loading_bars()
    machine = describe_machine(chosen)
    checks = _run([torch.device("cpu"), *(place for place in chosen if place.type != "cpu")])
    failed = sum(check.result == "failed" for column in checks.values() for check in column)
    data = {
        "passed": failed == 0,
        "machine": machine,
        "checks": {column: [asdict(check) for check in found] for column, found in checks.items()},
    }
    return Result(_text(machine, checks, failed), data, FAILED if failed else 0)


def _run(places: Sequence[Any]) -> dict[str, list[Check]]:
    """By device and number format. The CPU in float32 comes first: the others are compared with it."""
    import tempfile
    from pathlib import Path

    from pave.playground import base_path
    from pave.selfcheck import check_device, check_recipe, make_items
    from pave.utils.threads import fitting_threads

    logger = logging.getLogger("pave")
    checks: dict[str, list[Check]] = {}
    parameters = (base_path() / "model.safetensors").stat().st_size // 2  # it is stored in 16 bits
    with tempfile.TemporaryDirectory() as name, fitting_threads(parameters):
        folder = Path(name)
        logger.info("rendering a few clips")
        items = make_items(folder)
        reference = None
        for place in places:
            for dtype in _DTYPES:
                logger.info("checking %s in %s", place, dtype)
                checks[f"{place} {dtype}"], outcome = check_device(place, dtype, items, folder, reference)
                reference = reference or outcome
        logger.info("checking a recipe, on the device that training takes")
        level = logger.level
        logger.setLevel(max(level, logging.WARNING))  # a run of a few steps says as much as one of days
        try:
            checks["pave train"] = [check_recipe(folder)]
        finally:
            logger.setLevel(level)
    return checks


def _text(machine: dict[str, Any], checks: dict[str, list[Check]], failed: int) -> str:
    rows = [
        (
            place if number == 0 else "",
            check.result.upper() if check.result == "failed" else check.result,
            check.name,
            check.seen,
        )
        for place, column in checks.items()
        for number, check in enumerate(column)
    ]
    verdict = "everything that was checked works" if not failed else f"{failed} check{'s' if failed > 1 else ''} failed"
    return "\n".join([aligned(_facts(machine)), "", aligned(rows), "", verdict])


def _facts(machine: dict[str, Any]) -> list[tuple[str, str]]:
    cores, versions, codecs = machine["cores"], machine["versions"], machine["codecs"]
    lost = [name for kind in ("decodes", "encodes") for name, there in codecs[kind].items() if not there]
    rows = [
        ("pave", f"{machine['pave']}, Python {machine['python']}, {machine['system']}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)),
        ("cores", f"{cores['all']}, of which {cores['free']} free"),
        ("memory", f"{_gigabytes(machine['memory']['free'])} of {_gigabytes(machine['memory']['all'])} free"),
        (
            "disk",
            f"{_gigabytes(machine['disk']['here'])} free here, {_gigabytes(machine['disk']['temporary'])} for temporary files",
        ),
        ("codecs", f"FFmpeg's libavcodec {codecs['libavcodec']}, {'all there' if not lost else 'lacks ' + ', '.join(lost)}"),
        ("torchcodec", codecs["torchcodec"]),
    ]
    for name, facts in machine["devices"].items():
        rows.append((name, facts["name"] + ("" if "memory" not in facts else f", {_memory(facts['memory'])}")))
        rows.append(("", f"computes in {_those_that_work(facts['dtypes'])}"))
        rows += [("", f"{kernel} attention: {_those_that_work(found)}") for kernel, found in facts["attention"].items()]
    return rows


def _those_that_work(tried: dict[str, str]) -> str:
    wrong = [f"{name} is {said}" for name, said in tried.items() if said.startswith("off by")]
    return ", ".join([name for name, said in tried.items() if said == "yes"] or ["no format"]) + "".join(
        f"; {one}" for one in wrong
    )


def _memory(memory: dict[str, int]) -> str:
    return f"{_gigabytes(memory['free'])} of {_gigabytes(memory['all'])} free"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
