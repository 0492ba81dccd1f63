"""One run: a world, a variant of a patch, a seed; from samples to predictions on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from pave.config import PatchConfig
from pave.data.samples import Sample, read_samples
from pave.evaluation.predictions import Prediction, read_predictions
from pave.evidence.bases import folder_of
from pave.evidence.processes import side_by_side
from pave.evidence.stored import DTYPE, FRAMES, fill_store, store_of
from pave.evidence.worlds import SILENT_WEIGHTS, WORLDS
from pave.patching import patch_slot
from pave.training.arguments import TrainingConfig
from pave.training.recipe import BaseConfig, DataConfig, Recipe
from pave.training.sampler import Stage
from pave.utils.embedded import PLAYGROUND
from pave.utils.files import atomic_write_json, read_json

logger = logging.getLogger(__name__)

RESULT = "result.json"
TRAINED = "trained.json"
"""Written when the weights are there."""
AS_IT_IS = "as it is"
"""The streams without a counterfactual."""
_SILENT_UNDER = "silent questions, "
_BATCH, _MAX_NEW_TOKENS = 64, 4


@dataclass(frozen=True)
class Run:
    """What is trained and asked. Two runs that are equal are one."""

    world: str
    """Of ``WORLDS``; or several, joined by "+"."""
    variant: str
    """What tables call it."""
    patch: PatchConfig | None
    """None: the base alone, nothing is trained."""
    seed: int = 0
    steps: int = 350
    weights: dict[str, float] = field(default_factory=dict)
    """Shares of the question types in training; empty: those of the world."""
    training: dict[str, Any] = field(default_factory=dict)
    """Changes to the training settings."""
    counterfactuals: tuple[str, ...] = ()
    """Changes to the streams under which the questions of the world's own types are asked again; ``silent(change)`` asks the silent
    ones."""
    asked_with: dict[str, Any] = field(default_factory=dict)
    """Settings that change nothing in training here, and are set when the questions are asked: ``empty_frames`` of the fusion, and
    ``missing_channel`` of the patch, where every sample has its channel."""
    added: tuple[Run, ...] = ()
    """Runs whose patches are added up instead of training one (``pave.evidence.added``); they are made first."""
    base: str = PLAYGROUND
    """The playground's own, or a name under ``pave.evidence.bases``."""
    asked: int = 0
    """Clips of the test set whose questions are asked; 0: all."""
    clips: int = 0
    """Clips that the data has for training; part of what the run is."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "patch": None if self.patch is None else self.patch.to_dict()}

    @property
    def trained(self) -> dict[str, Any]:
        """What decides the weights: everything but its name and what is asked afterwards. Settings at their default are left out, so that
        a run stays the same run when the library gets a new one."""
        values = _changed(self)
        if self.added:
            values["added"] = [part.trained for part in self.added]
        return {k: v for k, v in values.items() if k not in ("variant", "counterfactuals", "asked_with")}

    def folder(self, root: Path) -> Path:
        """Where its files are: the same for runs of any name that have the same weights."""
        key = hashlib.sha256(json.dumps(self.trained, sort_keys=True).encode()).hexdigest()[:12]
        return root / "runs" / self.world.replace("+", "_") / f"seed{self.seed}-{key}"


def silent(change: str) -> str:
    """The name under which the silent questions are asked with a change to the streams."""
    return _SILENT_UNDER + change


def _changed(config: Any) -> Any:
    """A dataclass as a dictionary of the fields that are not at their default, all the way down."""
    if isinstance(config, Mapping):
        return {key: _changed(value) for key, value in config.items()}
    if not is_dataclass(config):
        return config
    out = {}
    for item in fields(config):
        value = getattr(config, item.name)
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        if default is MISSING or value != default:
            out[item.name] = _changed(value)
    return out


def mixture(world: str) -> dict[str, float]:
    """Shares of the question types of a world; several worlds share what one has."""
    names = world.split("+")
    own = {kind: share / len(names) for name in names for kind, share in WORLDS[name].weights.items()}
    if len(names) == 1:
        return {**own, **SILENT_WEIGHTS}
    return {**own, **{f"{name}:{kind}": share / len(names) for name in names for kind, share in SILENT_WEIGHTS.items()}}


TRAINING: dict[str, Any] = {
    "batch_size": 32,
    "learning_rate": 3e-3,
    "lora_learning_rate": 1.5e-3,
    "output_norm_multiplier": 40.0,
    "log_every": 10,
}
"""Of every run that does not say otherwise."""


def recipe_of(run: Run, data: Path, output: Path, store: Path, base: str = PLAYGROUND) -> Recipe:
    """The recipe of a run that trains; ``base`` is where the run's base is."""
    assert run.patch is not None
    return Recipe(
        base=BaseConfig(model=base, dtype=DTYPE),
        patch=run.patch,
        data=DataConfig(
            train=str(data / "train.jsonl"),
            frames=FRAMES,
            cache="memory",
            store=str(store),
            vision="store",
            stages=(Stage(steps=run.steps, weights=run.weights or mixture(run.world)),),
        ),
        training=TrainingConfig(**{**TRAINING, "seed": run.seed, **run.training}),
        output=str(output),
    )


def execute(run: Run, data: Path, root: Path) -> Path:
    """Train and ask, where that has not been done; returns the folder. The store has the features already (``fill_store``).

    Args:
        run: what to do.
        data: folder of the world, with ``train.jsonl`` and ``test.jsonl``.
        root: of all runs.
    """
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    folder = run.folder(root)
    result = folder / RESULT
    patch: Path | None = None
    facts: dict[str, Any] = {"run": run.to_dict()}
    if run.patch is not None or run.added:
        patch = folder / "patch"
        if not (folder / TRAINED).exists():
            shutil.rmtree(folder, ignore_errors=True)
            made = _add(run, folder, root) if run.added else _train(run, data, folder, root)
            atomic_write_json(folder / TRAINED, made)
        facts |= read_json(folder / TRAINED)
    samples = _first(list(read_samples(data / "test.jsonl")), run.asked)
    _ask(run, patch, samples, root)
    if not result.exists():
        atomic_write_json(result, facts)
    return folder


def _first(samples: list[Sample], clips: int) -> list[Sample]:
    """The samples on the first clips; all, if 0."""
    chosen = set(list(dict.fromkeys(sample.video for sample in samples))[: clips or None])
    return [sample for sample in samples if sample.video in chosen]


def execute_alike(runs: Sequence[Run], data: Path, root: Path) -> None:
    """``execute`` for runs with the same weights, one after the other."""
    for run in runs:
        execute(run, data, root)


def _train(run: Run, data: Path, folder: Path, root: Path) -> dict[str, Any]:
    from transformers import TrainerCallback

    from pave.training.run import run_recipe

    curve: list[tuple[int, float]] = []

    class Losses(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                curve.append((state.global_step, float(logs["loss"])))

    start = time.monotonic()
    recipe = recipe_of(run, data, folder, store_of(root), folder_of(run.base, root))
    done = run_recipe(recipe, progress=False, callbacks=[Losses()])
    return {"seconds": round(time.monotonic() - start, 1), "train_loss": done.train_loss, "curve": curve}


def _add(run: Run, folder: Path, root: Path) -> dict[str, Any]:
    from pave.evidence.added import add_patches

    add_patches([part.folder(root) / "patch" for part in run.added], folder / "patch")
    return {"seconds": 0.0}


def answers_file(run: Run, root: Path, name: str = AS_IT_IS) -> Path:
    """Where a run's answers are."""
    words = "-".join([name, *(f"{key}={value}" for key, value in sorted(run.asked_with.items()))])
    return run.folder(root) / f"answers-{''.join(c if c.isalnum() or c in '.-' else '_' for c in words)}.jsonl"


def _ask(run: Run, patch: Path | None, samples: Sequence[Sample], root: Path) -> None:
    """Ask what has not been asked yet: as it is, and under each counterfactual."""
    from pave.evaluation.counterfactuals import Counterfactual
    from pave.evaluation.inference import VideoQA
    from pave.evaluation.runner import evaluate

    names = [n for n in (AS_IT_IS, *run.counterfactuals) if not answers_file(run, root, n).with_suffix(".done").exists()]
    if not names:
        return
    own = {kind for world in run.world.split("+") for kind in WORLDS[world].own}
    base = folder_of(run.base, root)
    qa = VideoQA.from_pretrained(base, patch, device="cpu", dtype=DTYPE, sampling=FRAMES)
    qa.use_store(store_of(root), samples, vision="exact")
    qa.keep_videos()
    if patch is not None:
        _set(patch_slot(qa.model), run.asked_with)
    for name in names:
        change = None if name == AS_IT_IS else Counterfactual.parse(name.removeprefix(_SILENT_UNDER))
        predictions = answers_file(run, root, name)
        result = evaluate(
            qa,
            samples if change is None else [s for s in samples if (s.type in own) != name.startswith(_SILENT_UNDER)],
            predictions=predictions,
            settings={"asked_with": run.asked_with},
            counterfactual=change,
            batch_size=_BATCH,
            max_new_tokens=_MAX_NEW_TOKENS,
            progress=False,
        )
        if result.failures:
            sample, message = result.failures[0]
            raise ValueError(f"{len(result.failures)} of the questions could not be asked, the first {sample}: {message}")
        predictions.with_suffix(".done").touch()


def _set(slot: Any, settings: Mapping[str, Any]) -> None:
    for setting, value in settings.items():
        if setting == "missing_channel":
            slot.config = replace(slot.config, missing_channel=value)
            continue
        for fusion in slot.fusions.values():
            if not hasattr(fusion, setting):
                raise ValueError(f"asked_with: the fusion has no setting {setting!r}")
            setattr(fusion, setting, value)


def answers(run: Run, root: Path, name: str = AS_IT_IS) -> list[Prediction]:
    """What a finished run answered."""
    return read_predictions(answers_file(run, root, name))[1]


def facts_of(run: Run, root: Path) -> dict[str, Any]:
    """Seconds, losses and config of a finished run."""
    facts: dict[str, Any] = read_json(run.folder(root) / RESULT)
    return facts


def execute_all(runs: Iterable[Run], data: dict[str, Path], root: Path, processes: int = 2) -> None:
    """Make what is missing, features first, side by side, each run in a process with one thread.

    Raises:
        RuntimeError: naming the run that failed, after the others that go on have ended.
    """
    waiting: dict[Path, list[Run]] = {}
    for run in runs:
        waiting.setdefault(run.folder(root), []).append(run)
    unfinished = [[run for run in alike if not finished(run, root)] for alike in waiting.values()]
    missing = sorted((alike for alike in unfinished if alike), key=lambda alike: alike[0].seed)
    start = time.monotonic()
    fill_store([run for alike in waiting.values() for run in alike], data, root, processes)
    logger.info("features are there (%.0f s)", time.monotonic() - start)
    if not missing:
        return
    logger.info("%d runs to make, %d there already", len(missing), len(waiting) - len(missing))
    number = 0
    for added in (False, True):  # patches can be added up once they are trained
        for run in _made([alike for alike in missing if bool(alike[0].added) is added], data, root, processes):
            number += 1
            seconds = time.monotonic() - start
            logger.info("%d of %d: %s (%.0f s)", number, len(missing), _title(run), seconds)


def _title(run: Run) -> str:
    return f"{run.world}, {run.variant}, seed {run.seed}"


def _made(missing: Sequence[list[Run]], data: dict[str, Path], root: Path, processes: int) -> Iterator[Run]:
    """The first of each list of runs with the same weights, as they are finished."""
    pieces = [(_title(alike[0]), (alike, data[alike[0].world], root)) for alike in missing]
    for place in side_by_side(execute_alike, pieces, processes):
        yield missing[place][0]


def finished(run: Run, root: Path) -> bool:
    """Whether a run is trained and everything is asked."""
    folder = run.folder(root)
    files = (answers_file(run, root, name).with_suffix(".done") for name in (AS_IT_IS, *run.counterfactuals))
    return (folder / RESULT).exists() and all(file.exists() for file in files)
