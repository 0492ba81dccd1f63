"""``pave compress``: a trained patch made smaller, with its quality before and after."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pave.cli.shared import (
    BaseOption,
    DeviceOption,
    DtypeOption,
    EncodersOption,
    JobFailed,
    JsonOption,
    MismatchOption,
    Result,
    check_choice,
)

if TYPE_CHECKING:
    from pave.data.samples import Sample
    from pave.evaluation.metrics import PairedComparison
    from pave.evaluation.result import EvalResult
    from pave.patching.compress import CompressedPatch

logger = logging.getLogger(__name__)


def command(
    patch: str = typer.Argument(..., help="A patch: a folder or a hub id."),
    out: Path | None = typer.Option(
        None,
        "--out",
        help="Where the smaller patch goes; an older folder there is replaced. Default: only say what would be reached.",
    ),
    lora_rank: str | None = typer.Option(
        None, "--lora-rank", help="Cut every LoRA update to this rank, or kinds of layers to theirs: q_proj=8,down_proj=4."
    ),
    lora_energy: float | None = typer.Option(
        None, "--lora-energy", help="Instead: keep this share of the squared norm of the updates of every kind, such as 0.99."
    ),
    fusion: str | None = typer.Option(None, "--fusion", help="Store the fusion's matrices in 8bit or 4bit."),
    samples: Path | None = typer.Option(
        None, "--samples", help="A .jsonl file of samples with answers: score the patch before and after."
    ),
    base: str | None = BaseOption,
    root: Path | None = typer.Option(
        None, "--root", help="Folder that paths in the samples start from. Default: the file's own."
    ),
    batch_size: int = typer.Option(8, "--batch-size", min=1, help="Samples answered at a time."),
    max_new_tokens: int = typer.Option(64, "--max-new-tokens", min=1, help="Longest answer."),
    seed: int = typer.Option(0, "--seed", min=0, help="Of the bootstrap behind intervals of scores such as CIDEr."),
    device: str = DeviceOption,
    dtype: str = DtypeOption,
    allow_base_mismatch: bool = MismatchOption,
    encoders: list[str] | None = EncodersOption,
    json_output: bool = JsonOption,
) -> Result:
    """\b
    pave compress my-patch --out small-patch --lora-rank 8 --fusion 8bit --samples test.jsonl

    Cut the LoRA updates of a trained patch to their largest singular values, store the matrices of its fusion in 8 or 4 bits, and say
    how many bytes that saves and what it costs in accuracy. The smaller patch is used as any other. Without --out nothing is written.
    """
    from pave.patching.checkpoint import resolve_patch
    from pave.patching.compress import check_out, compress_patch, write_compressed

    storage: Any = check_choice("--fusion", fusion, ("8bit", "4bit"))
    if base is not None and samples is None:
        raise ValueError("--base answers --samples; give samples as well, or leave it out: compressing needs no base")
    ranks = None if lora_rank is None else parse_ranks(lora_rank)
    expected = None if samples is None else _read_samples(samples, root)
    source = resolve_patch(patch)
    if out is not None:
        check_out(source, out)
    made = compress_patch(source, lora_rank=ranks, lora_energy=lora_energy, fusion=storage)
    logger.info(
        "the patch will take %.2f MB of tensors, from %.2f MB", *(_megabytes(made, when) for when in ("after", "before"))
    )
    texts, data = [_sizes_text(made)], {"patch": patch, "out": None if out is None else str(out), **_sizes_data(made)}
    measured = None
    if expected is not None:
        options = {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "seed": seed}

        def answer(folder: Path) -> EvalResult:
            return _evaluate(folder, expected, (base, device, dtype, allow_base_mismatch, encoders), options)

        with tempfile.TemporaryDirectory() as work:
            results = answer(source), answer(write_compressed(made, Path(work) / "patch"))
        text, measured = _measured(*results, str(samples), seed)
        texts.append(text)
        data["measured"] = measured
    if out is not None:
        folder = write_compressed(made, out, measured=measured)
        data["bytes_on_disk"] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        texts.append(f"wrote {folder}: {data['bytes_on_disk'] / 1e6:.2f} MB on disk")
    return Result("\n\n".join(texts), data)


def parse_ranks(text: str) -> int | dict[str, int]:
    """``8``, or ``q_proj=8,down_proj=4``."""
    ranks: dict[str, int] = {}
    for part in text.split(","):
        kind, named, value = part.rpartition("=")
        if (
            not value.strip().isdecimal()
            or (named and not kind.strip())
            or kind.strip() in ranks
            or (not named and "," in text)
        ):
            raise ValueError(
                f"--lora-rank is a number, or kinds of layers with their ranks such as q_proj=8,down_proj=4, got {text!r}"
            )
        if not named:
            return int(value)
        ranks[kind.strip()] = int(value)
    return ranks


def _read_samples(path: Path, root: Path | None) -> list[Sample]:
    from pave.data.samples import read_samples

    samples = read_samples(path, data_root=root)
    if not samples:
        raise ValueError(f"{path}: the file holds no sample")
    return samples


def _evaluate(
    folder: Path, samples: list[Sample], loading: tuple[str | None, str, str, bool, list[str] | None], options: dict[str, int]
) -> EvalResult:
    from pave.cli.models import load
    from pave.cli.tables import print_failures
    from pave.evaluation.runner import evaluate

    base, device, dtype, allow_base_mismatch, encoders = loading
    qa = load(base, str(folder), device, dtype, None, allow_base_mismatch, encoders)
    result = evaluate(qa, samples, **options)  # type: ignore[arg-type]
    print_failures(result)
    if result.overall.n_scored == 0:
        raise JobFailed(f"none of the {len(samples)} samples could be answered; the first: {result.failures[0][1]}")
    return result


def _measured(before: EvalResult, after: EvalResult, samples: str, seed: int) -> tuple[str, dict[str, Any]]:
    from dataclasses import asdict

    from pave.cli.tables import comparison_text, result_text
    from pave.evaluation.result import ALL, compare_results

    pairs = compare_results(before, after, seed=seed)
    texts = [f"before\n{result_text(before)}", f"after\n{result_text(after)}", comparison_text(pairs, "before", "after")]
    data = {
        "samples": samples,
        "before": before.overall.to_dict(),
        "after": after.overall.to_dict(),
        "differences": {name: asdict(pair) for name, pair in pairs.items()},
        "sentence": _sentence(before, after, pairs[ALL]),
    }
    return "\n\n".join(texts), data


def _sentence(before: EvalResult, after: EvalResult, pair: PairedComparison) -> str:
    scores = ", ".join(
        f"{100 * result.overall.accuracy:.1f} % [{100 * result.overall.interval.low:.1f}, {100 * result.overall.interval.high:.1f}] {when}"
        for result, when in ((before, "before"), (after, "after"))
    )
    low, high = 100 * pair.interval.low, 100 * pair.interval.high
    return (
        f"accuracy on {before.overall.n_expected} samples: {scores}; difference {100 * pair.difference:+.1f} points "
        f"[{low:+.1f}, {high:+.1f}]"
    )


# --- sizes


def _megabytes(made: CompressedPatch, when: str) -> float:
    return sum(getattr(made, f"bytes_{when}").values()) / 1e6


def _sizes_data(made: CompressedPatch) -> dict[str, Any]:
    lora = made.record.patch.lora
    return {
        "bytes_before": {**made.bytes_before, "patch": sum(made.bytes_before.values())},
        "bytes_after": {**made.bytes_after, "patch": sum(made.bytes_after.values())},
        "fusion_storage": made.record.fusion_storage,
        "lora": None if lora is None else lora.to_dict(),
        "lora_ranks": {kind: list(pair) for kind, pair in made.ranks.items()},
        "errors": made.errors,
    }


def _sizes_text(made: CompressedPatch) -> str:
    data = _sizes_data(made)
    lines = [f"{'':<10}{'before':>12}{'after':>12}"]
    for part, label in (("fusion", "fusion"), ("lora", "LoRA"), ("patch", "patch")):
        sizes = "".join(f"{data[f'bytes_{when}'][part] / 1e6:>9.2f} MB" for when in ("before", "after"))
        lines.append(f"{label:<10}{sizes}")
    groups: dict[str, list[float]] = {}
    for key, error in made.errors.items():
        is_lora = key.startswith("lora ")
        kind = key.rsplit(".", 1)[-1]
        before, after = made.ranks.get(kind, (0, 0)) if is_lora else (0, 0)
        name = f"LoRA on {kind}, rank {before} to {after}" if is_lora else f"{key}, {made.record.fusion_storage}"
        groups.setdefault(name, []).append(error)
    if groups:
        width = max(map(len, groups))
        lines += ["", f"{'relative error (Frobenius)':<{width}}    mean  largest   of"]
        for name, errors in groups.items():
            lines.append(f"{name:<{width}}  {sum(errors) / len(errors):.4f}   {max(errors):.4f}  {len(errors):>3}")
    return "\n".join(lines)
