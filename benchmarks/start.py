"""How long it takes until something happens: imports, help, a refused file name, and an answer, each in a fresh process.

    python benchmarks/start.py --rounds 5

The ratio is to `import torch` alone, which everything that computes has to wait for.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pave.playground.clips import render_clip
from pave.playground.world import draw_scene
from pave.utils.console import aligned

PAVE = [sys.executable, "-m", "pave.cli"]


def cases(clip: Path) -> dict[str, list[str]]:
    """What is timed, by its name, as words of a command line."""
    imports = ("torch", "transformers", "pave", "pave.config", "pave.tokens", "pave.patching", "pave.inference")
    return {
        "python -c pass": [sys.executable, "-c", "pass"],
        **{f"import {name}": [sys.executable, "-c", f"import {name}"] for name in imports},
        "pave --version": [*PAVE, "--version"],
        "pave --help": [*PAVE, "--help"],
        "pave ask --help": [*PAVE, "ask", "--help"],
        "pave ask, no such file": [*PAVE, "ask", "missing.mp4", "what ?"],
        "pave train, no such file": [*PAVE, "train", "missing.yaml"],
        "pave ask, an answer": [*PAVE, "ask", str(clip), "which light flashes first ?", "--device", "cpu"],
    }


def seconds(words: list[str]) -> float:
    """Wall time of one run, its output thrown away."""
    start = time.perf_counter()
    subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rounds", type=int, default=5, help="runs of each; the first, which fills the disk's cache, is not counted"
    )
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        render_clip(clip, draw_scene(0, "test", 0))
        taken: dict[str, list[float]] = {name: [] for name in cases(clip)}
        for number in range(rounds + 1):
            for name, words in cases(clip).items():
                taken[name] += [seconds(words)] if number else []
    median = {name: statistics.median(values) for name, values in taken.items()}
    rows = [("", "seconds", "fastest", "slowest", "ratio to import torch")]
    for name, values in taken.items():
        numbers = (median[name], min(values), max(values))
        rows.append((name, *(f"{value:.2f}" for value in numbers), f"{median[name] / median['import torch']:.2f}"))
    print(aligned(rows))


if __name__ == "__main__":
    main()
