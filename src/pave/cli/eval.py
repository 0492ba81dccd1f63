"""``pave eval``: score a file of samples."""

from __future__ import annotations

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
    PatchOption,
    Result,
    VisionOption,
    check_model_options,
    rank_of_process,
    storage_dtype,
)

if TYPE_CHECKING:
    from pave.evaluation.counterfactuals import Counterfactual

SCORES = "scores.json"


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
    shard: str | None = typer.Option(
        None,
        "--shard",
        help="Answer a part only, such as 2/4, into --out; pave score OUT puts the parts together. Under torchrun every rank takes one.",
    ),
    counterfactuals: bool = typer.Option(
        False,
        "--counterfactuals",
        help="Answer the samples again with every side channel removed, swapped with another video's, shifted by 2 s, and noised.",
    ),
    counterfactual: list[str] | None = typer.Option(
        None,
        "--counterfactual",
        metavar="[CHANNEL:]KIND[=VALUE]",
        help="Answer them again under this change too, such as shifted=5, audio:removed or thinned. May be repeated.",
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
    pave eval test.jsonl --patch my-patch --out runs/test --counterfactuals

    Answer every sample and print the accuracy by question type, with 95 % intervals clustered by video. Samples that cannot be
    read count as wrong and are listed. Samples of a benchmark (pave data convert) get the benchmark's own tables. Without --base, the
    small Video LLM inside pave answers.
    """
    from pave.data.samples import read_samples
    from pave.evaluation.shards import PREDICTIONS, parse_shard, take_shard

    expected = read_samples(samples, data_root=root)  # this and what follows before torch is loaded, which takes seconds
    if not expected:
        raise ValueError(f"{samples}: the file holds no sample")
    check_model_options(base, patch, dtype)
    storage = storage_dtype(vision)
    if store is None and storage is not None:
        raise ValueError("--vision says what --store holds; give --store as well")
    everything, part = expected, None
    rank, world_size = rank_of_process()
    if shard is None and world_size > 1:
        shard = f"{rank + 1}/{world_size}"
    if shard is not None:
        if out is None:
            raise ValueError(
                "--shard, and under torchrun every rank, answers a part: name the folder that the parts are written to with --out"
            )
        part, expected = take_shard(expected, *parse_shard(shard))

    from pave.cli.models import load
    from pave.cli.tables import exposure_text, print_failures, result_text
    from pave.data.media import FrameSampling
    from pave.evaluation.exposure import check_changes, compare_changes, evaluate_changes
    from pave.evaluation.runner import evaluate
    from pave.utils.files import atomic_write_json

    changes = _changes(counterfactuals, counterfactual or [])
    file = None if out is None else out / (PREDICTIONS if part is None else part.file_name)
    qa = load(base, patch, device, dtype, FrameSampling(num_frames=frames) if frames else None, allow_base_mismatch, encoders)
    if store is not None:
        qa.use_store(store, everything if changes else expected, vision=storage)
    check_changes(qa, changes, everything)
    options: dict[str, Any] = {
        "settings": {"base": qa.name, "patch": patch},
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "shard": part,
    }
    result = evaluate(qa, expected, predictions=file, **options)
    if part is None and result.overall.n_scored == 0:
        changes = []  # nothing could be compared with them
    changed = evaluate_changes(qa, expected, changes, folder=out, lenders=everything, **options)
    print_failures(result, changed)
    data = {"samples": str(samples), "predictions": None if file is None else str(file), **result.to_dict()}
    if part is not None:
        n = result.overall
        text = f"shard {part.index} of {part.count}: {n.n_scored} of {n.n_expected} samples answered; after the others: pave score {out}"
        return Result(text, {**data, "shard": part.to_dict()})
    exposure = compare_changes(result, changed, seed=seed) if changed else None
    if exposure is not None:
        data["counterfactuals"] = exposure.to_dict()
    if out is not None:
        atomic_write_json(out / SCORES, data)
    if result.overall.n_scored == 0:
        raise JobFailed(f"none of the {len(expected)} samples could be answered; the first: {result.failures[0][1]}")
    return Result(result_text(result) + ("" if exposure is None else f"\n\n{exposure_text(exposure)}"), data)


def _changes(standard: bool, further: list[str]) -> list[Counterfactual]:
    """The counterfactuals that are asked for, each once."""
    from pave.evaluation.counterfactuals import STANDARD, Counterfactual

    parsed = [Counterfactual.parse(text) for text in [*(STANDARD if standard else ()), *further]]
    return list({str(change): change for change in parsed}.values())
