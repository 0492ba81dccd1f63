"""The demo's steps: render clips, score the base, train two patches side by side, score them as saved, report."""

from __future__ import annotations

import dataclasses
import logging
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

import pave
from pave.data.samples import Sample, read_samples
from pave.demo.plan import CHANCE, FULL, SHORT, SILENT, SOUND, Plan, audio_patch, recipe, video_only_patch
from pave.demo.workers import Tell, run_side_by_side
from pave.evaluation.examples import example_view
from pave.evaluation.inference import VideoQA
from pave.evaluation.predictions import Prediction
from pave.evaluation.report import NamedComparison, write_report
from pave.evaluation.result import EvalResult, compare_results, rescore
from pave.evaluation.runner import evaluate
from pave.playground import base_path
from pave.playground.clips import render_clips, write_samples
from pave.training.run import run_recipe
from pave.training.trainer import PATCH_FOLDER
from pave.utils.console import aligned, track
from pave.utils.files import atomic_write_json
from pave.utils.threads import settle_threads

logger = logging.getLogger(__name__)

BASE, VIDEO_ONLY, PATCH = "base", "LoRA on video only", "audio patch"
_TEST = [[kind] for kind in (*SILENT, *SOUND)]
_TRAIN = [["sound"], ["sound_vision"], ["colour|shape"], ["first_mover"], ["light"], ["light_vision"]]
_BATCH = 64
_MAX_NEW_TOKENS = 4


@dataclass(frozen=True)
class DemoResult:
    """What the demo found and where it is."""

    results: dict[str, EvalResult]
    report: Path
    patch: Path
    seconds: dict[str, float]
    """By step."""
    asked: dict[str, Any]
    """The clip that was asked about: video, question, truth, answers."""
    setup: dict[str, Any]
    """Command, sizes, versions and machine."""
    short: bool

    def findings(self) -> dict[str, Any]:
        """In points: how far the patch is ahead on questions that need sound, and what it costs on silent ones."""
        sound = {run: pooled(self.results[run], SOUND) for run in self.results}
        silent = {run: pooled(self.results[run], SILENT) for run in self.results}
        return {
            "sound_gain": 100 * (sound[PATCH]["accuracy"] - sound[VIDEO_ONLY]["accuracy"]),
            "sound_intervals_apart": sound[PATCH]["low"] > sound[VIDEO_ONLY]["high"],
            "silent_loss": 100 * (silent[BASE]["accuracy"] - silent[PATCH]["accuracy"]),
            "sound": sound,
            "silent": silent,
        }

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "scores": {run: result.to_dict() for run, result in self.results.items()},
            "findings": self.findings(),
            "asked": self.asked,
            "setup": self.setup,
            "seconds": self.seconds,
            "report": str(self.report),
            "patch": str(self.patch),
            "short": self.short,
        }

    def __str__(self) -> str:
        return _summary(self)


def run_demo(out: Path, short: bool = False, seed: int = 0, base: Path | None = None) -> DemoResult:
    """Run the demo in a folder. Clips that are there already are kept; everything else is made anew.

    Args:
        out: folder for data, patches and the report.
        short: a few clips and steps: shows that everything runs, not that it learns.
        seed: of the world, the fresh weights and the order of training.
        base: another base than the embedded one, of the same vocabulary.
    """
    plan = SHORT if short else FULL
    clock = _Clock()
    folder = Path(out).resolve()
    data = folder / ("data-short" if short else "data")
    base_folder = str(base or base_path())
    logger.info("1/5 rendering %d clips with sound (H.264 + AAC)", plan.train_clips + plan.test_clips)
    train, test = _render(data, plan, seed)
    samples = list(read_samples(test))
    clock.lap("render")

    logger.info("2/5 asking the base %d questions about %d clips", len(samples), plan.test_clips)
    predictions = {BASE: folder / "base.jsonl", VIDEO_ONLY: folder / "video-only.jsonl", PATCH: folder / "patch.jsonl"}
    for path in predictions.values():
        path.unlink(missing_ok=True)
    _score(base_folder, None, test, predictions[BASE], seed)
    clock.lap("score base")

    logger.info("3/5 training side by side: %s and %s, %d steps each", VIDEO_ONLY, PATCH, plan.steps)
    jobs = {}
    for name, config, place in ((VIDEO_ONLY, video_only_patch(), "video-only"), (PATCH, audio_patch(), "audio")):
        made = recipe(config, plan, base=base_folder, train=str(train), output=str(folder / place), seed=seed)
        arguments = {"made": made, "base": base_folder, "test": test, "predictions": predictions[name], "seed": seed}
        jobs[name] = (_train_and_score, arguments)
    run_side_by_side(jobs)
    clock.lap("train and score both")

    logger.info("4/5 asking one question with and without the patch")
    results = {name: rescore(path, seed=seed) for name, path in predictions.items()}
    patch = folder / "audio" / PATCH_FOLDER
    qa = VideoQA.from_pretrained(base_folder, patch, device="cpu")
    shown = _choose(samples, results)
    asked = _ask(qa, shown[0][0])
    clock.lap("ask")

    logger.info("5/5 writing the report")
    report = folder / "report.html"
    result = DemoResult(results, report, patch, clock.laps, asked, _setup(plan, short, seed), short)
    _write_report(result, qa, shown, seed)
    clock.lap("report")
    atomic_write_json(folder / "result.json", result.to_dict())
    return result


class _Clock:
    def __init__(self) -> None:
        self.last = time.monotonic()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = round(now - self.last, 1)
        self.last = now


def _render(data: Path, plan: Plan, seed: int) -> tuple[Path, Path]:
    for split, count in (("train", plan.train_clips), ("test", plan.test_clips)):
        rendering = render_clips(data, split, count, seed=seed)  # type: ignore[arg-type]
        for _ in track(rendering, f"Rendering {split} clips", total=count):
            pass
    train, test = data / "train.jsonl", data / "test.jsonl"
    write_samples(train, "train", plan.train_clips, _TRAIN, seed=seed)
    write_samples(test, "test", plan.test_clips, _TEST, seed=seed)
    return train, test


def _score(base: str, patch: Path | None, test: Path, predictions: Path, seed: int, progress: bool = True) -> None:
    qa = VideoQA.from_pretrained(base, patch, device="cpu", dtype="float32")
    settle_threads(qa.model.num_parameters())
    evaluate(
        qa,
        list(read_samples(test)),
        predictions=predictions,
        batch_size=_BATCH,
        max_new_tokens=_MAX_NEW_TOKENS,
        seed=seed,
        progress=progress,
    )


def _train_and_score(*, made: Any, base: str, test: Path, predictions: Path, seed: int, tell: Tell) -> None:
    """A job: train, save, load again from disk, answer the test questions."""
    import shutil

    transformers.utils.logging.disable_progress_bar()
    shutil.rmtree(made.output, ignore_errors=True)
    result = run_recipe(made, progress=False, callbacks=[_TellSteps(tell)])
    _score(base, result.patch, test, predictions, seed, progress=False)


class _TellSteps(transformers.TrainerCallback):
    def __init__(self, tell: Tell) -> None:
        self.tell = tell

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.tell(state.global_step, state.max_steps)


def pooled(result: EvalResult, kinds: Sequence[str]) -> dict[str, float]:
    """Accuracy over several question types with its interval clustered by video."""
    from pave.evaluation.result import score_predictions

    merged = [dataclasses.replace(p, type="pooled") for p in result.predictions if p.type in kinds]
    score = score_predictions(merged).overall
    return {"accuracy": score.accuracy, "low": score.interval.low, "high": score.interval.high}


def _choose(samples: Sequence[Sample], results: Mapping[str, EvalResult]) -> list[tuple[Sample, dict[str, Prediction]]]:
    """Samples to show: first questions on sound that the patch alone answers right, then one that it does not."""
    by_run = {run: {p.id: p for p in result.predictions} for run, result in results.items()}
    rows = [(sample, {run: by_run[run][sample.id] for run in results}) for sample in samples]
    heard = [(s, p) for s, p in rows if s.type in SOUND]
    won = [r for r in heard if r[1][PATCH].correct and not r[1][BASE].correct and not r[1][VIDEO_ONLY].correct]
    lost = [r for r in heard if not r[1][PATCH].correct]
    both = [r for r in won if r[0].type == "sound_vision"]
    alone = [r for r in won if r[0].type == "sound"]
    silent = [r for r in rows if r[0].type == "light_vision"]
    return (both[:2] + alone[:1] + lost[:1] + silent[:1]) or rows[:1]


def _ask(qa: VideoQA, sample: Sample) -> dict[str, Any]:
    question, truth = sample.turns[-1]
    answers = {
        BASE: qa.ask(sample.video, question, patch=False, max_new_tokens=_MAX_NEW_TOKENS).text,
        PATCH: qa.ask(sample.video, question, max_new_tokens=_MAX_NEW_TOKENS).text,
    }
    return {"video": str(sample.video), "question": question, "truth": truth, "answers": answers}


def _write_report(result: DemoResult, qa: VideoQA, shown: Sequence[tuple[Sample, Mapping[str, Prediction]]], seed: int) -> None:
    notes = {
        BASE: "as shipped, never heard a sound",
        VIDEO_ONLY: "same questions, same budget, no sound",
        PATCH: "log-mel tokens fused by true time, plus the same LoRA",
    }
    comparisons = [
        NamedComparison(first=VIDEO_ONLY, second=PATCH, subset=kind, result=pair)
        for kind, pair in compare_results(result.results[VIDEO_ONLY], result.results[PATCH], seed=seed).items()
    ]
    write_report(
        result.report,
        "Audio patch on the playground",
        [result.results[name].table(name, notes[name]) for name in result.results],
        [example_view(qa, sample, answers) for sample, answers in shown],
        {**result.setup, "seconds": result.seconds},
        summary=_finding(result),
        chance=CHANCE,
        comparisons=comparisons,
    )


def _setup(plan: Plan, short: bool, seed: int) -> dict[str, Any]:
    return {
        "command": f"pave demo{' --short' if short else ''} --seed {seed}",
        "seed": seed,
        "clips": f"{plan.train_clips} clips to train on, {plan.test_clips} others to test on",
        "steps": f"{plan.steps} steps of {plan.batch_size} samples each",
        "versions": {
            "pave": pave.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, no GPU used",
    }


def _finding(result: DemoResult) -> str:
    found = result.findings()
    text = (
        f"On questions that need sound the patch answers {100 * found['sound'][PATCH]['accuracy']:.1f} %, LoRA on "
        f"video only {100 * found['sound'][VIDEO_ONLY]['accuracy']:.1f} % ({found['sound_gain']:+.1f} points; the 95 % "
        f"intervals {'do not overlap' if found['sound_intervals_apart'] else 'overlap'}). On silent questions the "
        f"patch is {abs(found['silent_loss']):.1f} points {'below' if found['silent_loss'] > 0 else 'above'} the base."
    )
    return f"{text} (A short run: it shows that everything works, not that it learns.)" if result.short else text


def _summary(result: DemoResult) -> str:
    rows = [["", *result.results]]
    for kind in (*SILENT, *SOUND):
        rows.append([kind, *(_percent(pooled(scored, (kind,))) for scored in result.results.values())])
    for label, kinds in (("all silent", SILENT), ("all sound", SOUND)):
        rows.append([label, *(_percent(pooled(scored, kinds)) for scored in result.results.values())])
    asked = result.asked
    lines = [
        aligned(rows),
        "",
        _finding(result),
        "",
        f"pave ask {asked['video']} {asked['question']!r} --patch {result.patch} --compare",
        *(f"  {run}: {text}" for run, text in asked["answers"].items()),
        f"  truth: {asked['truth']}",
        "",
        f"report: {result.report}",
        f"patch:  {result.patch}",
        f"{sum(result.seconds.values()):.0f} s in all",
    ]
    return "\n".join(lines)


def _percent(values: Mapping[str, float]) -> str:
    return f"{100 * values['accuracy']:.1f} % [{100 * values['low']:.1f}, {100 * values['high']:.1f}]"
