"""``pave score``: scores from files of predictions, without a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pave.cli.shared import JsonOption, Result

if TYPE_CHECKING:
    from pave.evaluation.benchmarks import Protocol
    from pave.evaluation.result import EvalResult


def command(
    predictions: Path = typer.Argument(
        ..., help="A predictions.jsonl of pave eval, or its folder: shards are put together, counterfactuals included."
    ),
    other: Path | None = typer.Argument(None, help="A second one, to compare with the first on the same samples."),
    protocol: str = typer.Option("both", "--protocol", help="Scorers of a benchmark: paper, strict or both."),
    samples: Path | None = typer.Option(
        None, "--samples", help="The .jsonl file that was answered: samples without an answer count as wrong and are listed."
    ),
    root: Path | None = typer.Option(
        None, "--root", help="Folder that paths in --samples start from. Default: the file's own."
    ),
    meteor: bool = typer.Option(False, "--meteor", help="METEOR too, for captions. Needs Java and the extra captions."),
    submission: Path | None = typer.Option(None, "--submission", help="Write the benchmark's own format of results here."),
    seed: int = typer.Option(0, "--seed", min=0, help="Of the bootstrap behind intervals of scores such as CIDEr."),
    json_output: bool = JsonOption,
) -> Result:
    """\b
    pave score runs/test/predictions.jsonl

    Score answers again, by the rules of their benchmark or by the default ones, with 95 % intervals clustered by video. With a
    second file, compare the two runs sample by sample.
    """
    from pave.cli.tables import comparison_text, exposure_text, print_failures, result_text
    from pave.evaluation.exposure import read_changes
    from pave.evaluation.metrics.captions import check_meteor
    from pave.evaluation.result import compare_results, rescore
    from pave.evaluation.shards import merge_shards

    protocols = _protocols(protocol)
    if meteor:
        check_meteor()
    if other is not None and submission is not None:
        raise ValueError("--submission: it is written from one file of predictions; leave the second one out")
    files = [predictions] if other is None else [predictions, other]
    results = [
        rescore(
            merge_shards(path) if path.is_dir() else path,
            samples=samples,
            data_root=root,
            protocols=protocols,
            seed=seed,
            meteor=meteor,
        )
        for path in files
    ]
    texts, data = [], []
    for path, result in zip(files, results, strict=True):
        print_failures(result)
        texts.append((f"{path}\n" if other is not None else "") + result_text(result))
        data.append({"predictions": str(path), **result.to_dict()})
        exposure = (
            read_changes(path, result, samples=samples, data_root=root, protocols=protocols, seed=seed)
            if path.is_dir()
            else None
        )
        if exposure is not None:
            texts.append(exposure_text(exposure))
            data[-1]["counterfactuals"] = exposure.to_dict()
    content: dict[str, Any] = dict(data[0])
    if other is not None:
        content = {"first": data[0], "second": data[1]}
        if results[0].benchmark is None:
            pairs = compare_results(*results, seed=seed)
            texts.append(comparison_text(pairs, str(predictions), str(other)))
            content["comparison"] = {name: _pair(pair) for name, pair in pairs.items()}
        else:
            text, content["comparison"] = _compared(results, (str(predictions), str(other)), protocols, seed)
            texts.append(text)
    if submission is not None:
        _submit(results[0], submission)
        content["submission"] = str(submission)
    return Result("\n\n".join(texts), content)


def _protocols(name: str) -> tuple[Protocol, ...]:
    from pave.evaluation.benchmarks import PROTOCOLS

    chosen = tuple(protocol for protocol in PROTOCOLS if name in (protocol, "both"))
    if not chosen:
        raise ValueError(f"--protocol: there is no protocol {name!r}; it is paper, strict or both")
    return chosen


def _compared(
    results: list[EvalResult], names: tuple[str, str], protocols: tuple[Protocol, ...], seed: int
) -> tuple[str, dict[str, Any]]:
    from pave.cli.tables import comparison_text
    from pave.evaluation.benchmarks.scoring import benchmark_of, compare_benchmark
    from pave.evaluation.result import paired_predictions

    benchmark = benchmark_of(results[0].predictions)
    assert benchmark is not None
    found = compare_benchmark(benchmark, paired_predictions(*results), protocols=protocols, seed=seed)
    texts = [
        comparison_text(pairs, *names, title=f", {measure} ({protocol})")
        for protocol, measures in found.items()
        for measure, pairs in measures.items()
    ]
    data: dict[str, Any] = {
        protocol: {measure: {name: _pair(pair) for name, pair in pairs.items()} for measure, pairs in measures.items()}
        for protocol, measures in found.items()
    }
    return "\n\n".join(texts), data


def _pair(pair: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(pair)


def _submit(result: EvalResult, path: Path) -> None:
    from pave.evaluation.benchmarks import BENCHMARKS
    from pave.evaluation.benchmarks.scoring import benchmark_of
    from pave.utils.files import atomic_write_json

    benchmark = benchmark_of(result.predictions)
    if benchmark is None or benchmark.submission is None:
        those = ", ".join(name for name, one in BENCHMARKS.items() if one.submission is not None)
        named = (
            "the samples are of no benchmark"
            if benchmark is None
            else f"{benchmark.title} has no format of its own for results"
        )
        raise ValueError(f"--submission: {named}; {those} have one")
    atomic_write_json(path, benchmark.submission(result.predictions))
    print(f"wrote {path}", file=sys.stderr)
