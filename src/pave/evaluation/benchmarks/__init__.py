"""The benchmarks: official files to samples, published prompts, scorers as published and strict. ``docs/benchmarks.md``."""

from __future__ import annotations

import difflib

from pave.evaluation.benchmarks import avqa, avsd, ego_exo4d, mlvu, music_avqa, mvbench, scanqa, sqa3d, video_mme
from pave.evaluation.benchmarks.base import PROTOCOLS, Benchmark, Measure, Protocol, Scorer

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        music_avqa.BENCHMARK,
        avqa.BENCHMARK,
        avsd.BENCHMARK,
        scanqa.BENCHMARK,
        sqa3d.BENCHMARK,
        video_mme.BENCHMARK,
        mvbench.BENCHMARK,
        mlvu.BENCHMARK,
        ego_exo4d.BENCHMARK,
    )
}
"""By name."""


def get_benchmark(name: str) -> Benchmark:
    """The benchmark of a name.

    Raises:
        ValueError: if there is none.
    """
    if name not in BENCHMARKS:
        near = difflib.get_close_matches(name, BENCHMARKS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(BENCHMARKS)}"
        raise ValueError(f"there is no benchmark {name!r}; {hint}")
    return BENCHMARKS[name]


__all__ = ["BENCHMARKS", "PROTOCOLS", "Benchmark", "Measure", "Protocol", "Scorer", "get_benchmark"]
