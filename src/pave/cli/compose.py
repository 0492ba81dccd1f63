"""``pave compose``: several patches added up, with what that loses and wins."""

from __future__ import annotations

import logging
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
    check_model_options,
)

if TYPE_CHECKING:
    from pave.data.samples import Sample
    from pave.evaluation.together import Together, TogetherResult
    from pave.patching.compose import ComposedPatch

logger = logging.getLogger(__name__)


def command(
    patches: list[str] = typer.Argument(..., help="Two patches or more, folders or hub ids, each also as NAME=PATCH."),
    data: Path | None = typer.Option(
        None, "--data", help="A .jsonl file of samples with answers: score each patch alone and all together."
    ),
    out: Path | None = typer.Option(
        None, "--out", help="Where the merged patch goes; an older folder there is replaced. Default: none is written."
    ),
    weights: str | None = typer.Option(
        None, "--weights", help="hearing=0.5,depth=1:0.25: one weight, or that of the residual and that of LoRA. Default 1."
    ),
    find_weights: Path | None = typer.Option(
        None, "--find-weights", help="Instead: a .jsonl file of held-out samples on which weights are found first."
    ),
    rank: int | None = typer.Option(None, "--rank", min=1, help="Cut the LoRA updates of the merged patch to this rank."),
    method: str = typer.Option(
        "sum", "--method", help="sum, or knots: merge LoRA updates of one layer in the subspace that they span."
    ),
    density: float | None = typer.Option(
        None, "--density", help="With --method knots: share of each update that is kept. Default 0.5."
    ),
    base: str | None = BaseOption,
    root: Path | None = typer.Option(
        None, "--root", help="Folder that paths in the samples start from. Default: the file's own."
    ),
    frames: int | None = typer.Option(
        None, "--frames", min=1, help="Frames to look at. Default: as the patches were trained, where they agree."
    ),
    batch_size: int = typer.Option(8, "--batch-size", min=1, help="Samples answered at a time."),
    max_new_tokens: int = typer.Option(64, "--max-new-tokens", min=1, help="Longest answer."),
    device: str = DeviceOption,
    dtype: str = DtypeOption,
    allow_base_mismatch: bool = MismatchOption,
    encoders: list[str] | None = EncodersOption,
    json_output: bool = JsonOption,
) -> Result:
    """\b
    pave compose hearing=patches/audio depth=patches/depth --data test.jsonl --out both

    Add patches of one base up: residuals and LoRA updates add, with weights. Scores every patch alone, all together, and says by question
    type what adding lost or won. --out writes one merged patch, which is used as any other; without it, load the patches side by
    side, which also tells the rows apart where only one channel is there.
    """
    chosen: Any = check_choice("--method", method, ("sum", "knots"))
    _check_options(data, out, weights, find_weights, base, rank, method, density)
    given = parse_patches(patches)
    said = None if weights is None else parse_weights(weights)
    for patch in given.values() if isinstance(given, dict) else given:
        check_model_options(base, str(patch), dtype)
    samples = {option: _read(path, root) for option, path in (("data", data), ("find", find_weights)) if path is not None}

    if len(samples) == 2:
        _check_apart(samples["find"], samples["data"])

    from pave.evaluation.together import check_names
    from pave.patching.compose import DENSITY, compose_patches, write_composed

    how: dict[str, Any] = {"method": chosen, "density": DENSITY if density is None else density, "rank": rank}
    made = compose_patches(given, weights=said, **how)
    report: dict[str, Any] = {"patches": {part.name: str(part.folder) for part in made.parts}}
    measured: TogetherResult | None = None
    texts: list[str] = []
    if samples:
        check_names(part.name for part in made.parts)
        together = _load(made, base, device, dtype, frames, allow_base_mismatch, encoders)
        options: dict[str, Any] = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
        if "find" in samples:
            from pave.evaluation.together import find_weights as search

            found, score = search(together, samples["find"], **options)
            texts.append(
                f"weights found on {len(samples['find'])} samples, {100 * score:.1f} % right, mean over question types: {_weights_text(found)}"
            )
            report["found"] = {"weights": found, "accuracy": score, "samples": str(find_weights)}
            said = dict(found)
            made = compose_patches(given, weights=said, **how)
        if "data" in samples:
            if out is not None:
                _attach_merged(together, made)
            measured = together.evaluate(samples["data"], weights=said, **options)
            _check_answered(measured)
            texts.append(together_text(measured))
            report["measured"] = measured.to_dict()
    report |= {"weights": {part.name: [part.weight, part.lora_weight] for part in made.parts}, "lost": made.lost}
    if out is not None:
        facts = None if measured is None else {"samples": str(data), "sentences": measured.sentences()}
        report["out"] = str(write_composed(made, out, measured=facts))
        texts.append(_written_text(made, out))
    return Result("\n\n".join(texts), report)


def _check_options(
    data: Path | None,
    out: Path | None,
    weights: str | None,
    find_weights: Path | None,
    base: str | None,
    rank: int | None,
    method: str,
    density: float | None,
) -> None:
    if data is None and out is None and find_weights is None:
        raise ValueError("nothing to do: give --data to measure the patches together, --out to write one merged patch, or both")
    if weights is not None and find_weights is not None:
        raise ValueError("--weights says the weights and --find-weights looks for them; give one of the two")
    if base is not None and data is None and find_weights is None:
        raise ValueError("--base answers samples; give --data as well, or leave it out: adding patches needs no base")
    if out is None and (rank is not None or method != "sum"):
        raise ValueError("--rank and --method say how the merged patch is made; give --out as well")
    if density is not None and method != "knots":
        raise ValueError("--density is a setting of knots; give --method knots as well, or leave it out")


def parse_patches(texts: list[str]) -> list[str] | dict[str, str]:
    """``patches/audio patches/depth``, or ``hearing=patches/audio depth=patches/depth``."""
    named = [text.partition("=") for text in texts]
    if not any(mark and name.isidentifier() for name, mark, _ in named):
        return texts
    for name, mark, patch in named:
        if not (mark and name.isidentifier() and patch):
            raise ValueError(f"name every patch or none, as in hearing=patches/audio, got {name + mark + patch!r}")
    if len({name for name, _, _ in named}) < len(named):
        raise ValueError(f"two patches have one name: {', '.join(name for name, _, _ in named)}")
    return {name: patch for name, _, patch in named}


def parse_weights(text: str) -> dict[str, float | tuple[float, float]]:
    """``hearing=0.5,depth=1:0.25``."""
    weights: dict[str, float | tuple[float, float]] = {}
    for entry in text.split(","):
        name, mark, value = entry.strip().partition("=")
        try:
            numbers = [float(number) for number in value.split(":")]
        except ValueError:
            numbers = []
        if not (mark and name) or name in weights or len(numbers) not in (1, 2):
            raise ValueError(f"--weights is as in hearing=0.5,depth=1:0.25 (of the residual, of LoRA), got {text!r}")
        weights[name] = numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])
    return weights


def _read(path: Path, root: Path | None) -> list[Sample]:
    from pave.data.samples import read_samples

    samples = read_samples(path, data_root=root)
    if not samples:
        raise ValueError(f"{path}: the file holds no sample")
    return samples


def _check_apart(find: list[Sample], data: list[Sample]) -> None:
    """Weights that were found on samples of the test would flatter the patches."""
    ids, asked = ({(sample.video, getter(sample)) for sample in find} for getter in (lambda s: s.id, lambda s: s.turns[0][0]))
    shared = [sample for sample in data if (sample.video, sample.id) in ids or (sample.video, sample.turns[0][0]) in asked]
    if shared:
        raise ValueError(
            f"--find-weights and --data share {len(shared)} samples, the first {shared[0].id!r}: weights are found on samples that the test "
            "does not have; give others to one of them"
        )


def _load(
    made: ComposedPatch,
    base: str | None,
    device: str,
    dtype: str,
    frames: int | None,
    allow_base_mismatch: bool,
    encoders: list[str] | None,
) -> Together:
    """The base with every part."""
    from pave.cli.models import load
    from pave.data.media import FrameSampling
    from pave.evaluation.together import Together
    from pave.inference import trained_sampling
    from pave.patching import load_patch

    sampling = FrameSampling(num_frames=frames) if frames else trained_sampling(made.record.provenance)
    qa = load(base, None, device, dtype, sampling, allow_base_mismatch)
    for part in made.parts:
        load_patch(qa.model, part.folder, name=part.name, processor=qa.processor, allow_base_mismatch=allow_base_mismatch)
    return Together(qa.model, qa.processor, made, sampling=qa.sampling, encoders=encoders or ())


def _attach_merged(together: Together, made: ComposedPatch) -> None:
    import tempfile

    from pave.evaluation.together import MERGED
    from pave.patching import load_patch
    from pave.patching.compose import write_composed

    with tempfile.TemporaryDirectory() as work:
        folder = write_composed(made, Path(work) / "merged")
        load_patch(together.model, folder, name=MERGED, allow_base_mismatch=True)


def _check_answered(measured: TogetherResult) -> None:
    from pave.cli.tables import print_failures
    from pave.evaluation.together import TOGETHER

    result = measured.runs[TOGETHER]
    print_failures(result)
    if result.overall.n_scored == 0:
        raise JobFailed(
            f"none of the {result.overall.n_expected} samples could be answered; the first: {result.failures[0][1]}"
        )


# --- text


def together_text(measured: TogetherResult) -> str:
    """A table for each set of channels that samples have: accuracy by question type in every run, and what adding changed."""
    from pave.evaluation.together import TOGETHER
    from pave.utils.console import aligned

    texts = []
    for names, ids in measured.groups().items():
        whose = f"the channels of {' and '.join(names)}" if names else "none of the channels"
        header = ["", *measured.runs, "best alone", "together minus it", "95 % interval", "", "samples"]
        cells = [header]
        for kind in measured.kinds(ids):
            low, high = 100 * kind.added.interval.low, 100 * kind.added.interval.high
            accuracies = [f"{100 * kind.accuracy[run]:.1f}" for run in measured.runs]
            change = [f"{100 * kind.added.difference:+.1f}", f"{low:+.1f} to {high:+.1f}", kind.verdict]
            cells.append([kind.kind, *accuracies, kind.best, *change, str(kind.samples)])
        texts.append(f"with {whose}, accuracy in %\n{aligned(cells)}")
        if len(names) == 1:
            differing = measured.differing(names[0], TOGETHER, ids)
            texts.append(f"{differing} of these {len(ids)} answers differ from those of {names[0]} alone")
    return "\n\n".join(texts)


def _weights_text(weights: Any) -> str:
    return ",".join(f"{name}={residual:g}:{lora:g}" for name, (residual, lora) in weights.items())


def _written_text(made: ComposedPatch, out: Path) -> str:
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    lora = made.record.patch.lora
    ranks = "no LoRA" if lora is None else "LoRA of rank " + ", ".join(f"{lora.rank_of(k)} on {k}" for k in lora.targets)
    lines = [f"wrote {out}: {size / 1e6:.2f} MB, channels {', '.join(made.record.patch.side_channels) or 'none'}, {ranks}"]
    renamed = [f"{part.name}'s {own} is {name}" for part in made.parts for own, name in part.channels.items() if own != name]
    if renamed:
        lines.append(f"channels of one name are told apart, also in samples: {', '.join(renamed)}")
    if made.changes:
        worst = max(change.relative for change in made.changes.values())
        lines.append(
            f"{100 * made.lost:.2f} % of the squared norm of the summed updates is lost, in the worst layer {100 * worst**2:.2f} %"
        )
    lines.append("where a video has the channels of some of the patches only, the LoRA updates of all act in it")
    return "\n".join(lines)
