"""``pave eval``: score a file of samples."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pave.cli.shared import (
    BaseOption,
    DeviceOption,
    DtypeOption,
    JobFailed,
    JsonOption,
    MismatchOption,
    PatchOption,
    Result,
    VisionOption,
    storage_dtype,
)

if TYPE_CHECKING:
    from pave.evaluation.result import EvalResult

PREDICTIONS, SCORES = "predictions.jsonl", "scores.json"


def command(
    samples: Path = typer.Argument(..., help="A .jsonl file of samples with answers."),
    base: str | None = BaseOption,
    patch: str | None = PatchOption,
    out: Path | None = typer.Option(
        None, "--out", help="Folder for predictions and scores. An interrupted run in it goes on where it stopped."
    ),
    root: Path | None = typer.Option(
        None, "--root", help="Folder that paths in the samples start from. Default: the file's own."
    ),
    store: Path | None = typer.Option(
        None, "--store", help="Feature store to read side features from; pave extract fills it. Default: run the encoders."
    ),
    vision: str | None = VisionOption,
    frames: int | None = typer.Option(
        None,
        "--frames",
        min=1,
        help="Frames to look at. Default: as the patch was trained, else what the base's processor says.",
    ),
    batch_size: int = typer.Option(8, "--batch-size", min=1, help="Samples answered at a time."),
    max_new_tokens: int = typer.Option(64, "--max-new-tokens", min=1, help="Longest answer."),
    seed: int = typer.Option(0, "--seed", min=0, help="Of the bootstrap that makes the intervals."),
    device: str = DeviceOption,
    dtype: str = DtypeOption,
    allow_base_mismatch: bool = MismatchOption,
    json_output: bool = JsonOption,
) -> Result:
    """\b
    pave eval test.jsonl --patch my-patch --out runs/test

    Answer every sample and print the accuracy by question type, with 95 % intervals clustered by video. Samples that cannot be
    read count as wrong and are listed. Without --base, the small Video LLM inside pave answers.
    """
    from pave.cli.models import load
    from pave.data.media import FrameSampling
    from pave.data.samples import read_samples
    from pave.evaluation.runner import evaluate
    from pave.utils.files import atomic_write_json

    expected = read_samples(samples, data_root=root)
    if not expected:
        raise ValueError(f"{samples}: the file holds no sample")
    qa = load(base, patch, device, dtype, FrameSampling(num_frames=frames) if frames else None, allow_base_mismatch)
    if store is not None:
        qa.use_store(store, expected, vision=storage_dtype(vision))
    elif vision is not None:
        raise ValueError("--vision says what --store holds; give --store as well")
    result = evaluate(
        qa,
        expected,
        predictions=None if out is None else out / PREDICTIONS,
        settings={"base": qa.name, "patch": patch},
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    data = {"samples": str(samples), "predictions": None if out is None else str(out / PREDICTIONS), **result.to_dict()}
    if out is not None:
        atomic_write_json(out / SCORES, data)
    if result.overall.n_scored == 0:
        raise JobFailed(f"none of the {len(expected)} samples could be answered; the first: {result.failures[0][1]}")
    return Result(_table(result), data)


def _table(result: EvalResult) -> str:
    rows = [*result.by_type.items(), ("overall", result.overall)] if len(result.by_type) > 1 else [("overall", result.overall)]
    width = max(len(kind) for kind, _ in rows)
    lines = [f"{'':<{width}}  accuracy  95 % interval     n"]
    for kind, score in rows:
        interval = f"{100 * score.interval.low:.1f} to {100 * score.interval.high:.1f}"
        answered = "" if score.n_scored == score.n_expected else f" ({score.n_scored} answered)"
        lines.append(f"{kind:<{width}}  {100 * score.accuracy:>7.1f}%  {interval:<14}{score.n_expected:>5}{answered}")
    for sample, message in result.failures[:20]:
        print(f"no answer to {sample}: {message}", file=sys.stderr)
    if len(result.failures) > 20:
        print(f"... and {len(result.failures) - 20} more samples without an answer", file=sys.stderr)
    return "\n".join(lines)
