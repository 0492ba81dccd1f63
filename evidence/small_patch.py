"""Train the audio patch that ships inside the package, measure it on unseen clips and save it.

    python -m evidence.small_patch --out DIR --seed 0

The audio patch of ``pave demo`` on the playground's base, with the demo's clips, questions and steps; about ten minutes
of one processor core. The result ships as ``pave:audio`` (``pave.utils.embedded``).
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pave.demo.plan import FULL, SHORT, Plan, audio_patch, recipe
from pave.demo.story import answer_all, render_data
from pave.evaluation.result import EvalResult
from pave.training.run import run_recipe
from pave.utils.console import setup_logging
from pave.utils.embedded import PLAYGROUND, RECORDED
from pave.utils.files import atomic_folder, atomic_write_json

logger = logging.getLogger(f"pave.{__name__}")

ACCURACY = "accuracy.json"
"""File in the patch's folder: what was measured."""


def make_patch(out: Path, work: Path, *, seed: int = 0, plan: Plan = FULL) -> dict[str, Any]:
    """Train the patch, save it as a folder with its measured accuracy, and return what the measurement says.

    Args:
        out: folder of the patch; an older one is replaced.
        work: folder for clips and checkpoints; clips that are there are used again.
        seed: of the world, the fresh weights and the order of training.
        plan: how many clips and steps.
    """
    out = out.resolve()
    with _inside(work):  # the record names files by the paths they have from here, which say nothing of this machine
        train, test = render_data(Path("data"), plan, seed)
        shutil.rmtree("run", ignore_errors=True)
        made = recipe(audio_patch(), plan, base=PLAYGROUND, train=str(train), output="run", seed=seed)
        made = replace(made, data=replace(made.data, vision="memory"))  # each clip passes the frozen tower once
        trained = run_recipe(made, progress=False)
        for old in Path().glob("answers-*.jsonl"):
            old.unlink()
        answers = {
            "base": answer_all(PLAYGROUND, None, test, Path("answers-base.jsonl"), seed),
            "patch": answer_all(PLAYGROUND, trained.patch, test, Path("answers-patch.jsonl"), seed),
        }
        report = {
            "command": f"python -m evidence.small_patch --out DIR --seed {seed}",
            "base": RECORDED,
            "train_clips": plan.train_clips,
            "steps": plan.steps,
            "batch_size": plan.batch_size,
            "test_clips": plan.test_clips,
            "train_loss": trained.train_loss,
            "accuracy": {name: _accuracies(result) for name, result in answers.items()},
        }
        with atomic_folder(out) as folder:
            shutil.copytree(trained.patch, folder, dirs_exist_ok=True)
            atomic_write_json(folder / ACCURACY, report)
    return report


def _accuracies(result: EvalResult) -> dict[str, Any]:
    return {
        kind: {
            "right": score.n_correct,
            "questions": score.n_expected,
            "accuracy": round(score.accuracy, 4),
            "interval_95": [round(score.interval.low, 4), round(score.interval.high, 4)],
        }
        for kind, score in result.by_type.items()
    }


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m evidence.small_patch", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the patch; an older one is replaced")
    parser.add_argument("--seed", type=int, default=0, help="of the world, the fresh weights and the order of training")
    parser.add_argument("--short", action="store_true", help="a few clips and steps: shows that it runs")
    parser.add_argument("--work", type=Path, help="folder where clips and checkpoints stay; by default a temporary one")
    options = parser.parse_args()
    setup_logging()
    with tempfile.TemporaryDirectory() as temporary:
        report = make_patch(
            options.out, options.work or Path(temporary), seed=options.seed, plan=SHORT if options.short else FULL
        )
    logger.info("saved %s: %s", options.out, report["accuracy"]["patch"])


if __name__ == "__main__":
    main()
