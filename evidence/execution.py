"""Runs are made: trained or added up, loaded again, asked; side by side, and only what is missing."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evidence.bases import folder_of
from evidence.features import fill_store, store_of
from evidence.patch_sums import add_patches
from evidence.runs import AS_IT_IS, DTYPE, FRAMES, RESULT, SILENT_UNDER, TRAINED, Run, recipe_of
from evidence.worlds import WORLDS
from pave.data.samples import Sample, read_samples
from pave.patching import patch_slot
from pave.utils.files import atomic_write_json, read_json
from pave.utils.processes import side_by_side

logger = logging.getLogger(f"pave.{__name__}")

_BATCH, _MAX_NEW_TOKENS = 64, 4


def execute_all(runs: Iterable[Run], data: dict[str, Path], root: Path, processes: int = 2) -> None:
    """Make what is missing, features first, side by side, each run in a process with one thread.

    Raises:
        RuntimeError: naming the run that failed, after the others that go on have ended.
    """
    by_folder: dict[Path, list[Run]] = {}
    for run in runs:
        by_folder.setdefault(run.folder(root), []).append(run)
    start = time.monotonic()
    fill_store([run for alike in by_folder.values() for run in alike], data, root, processes)
    logger.info("features are there (%.0f s)", time.monotonic() - start)
    unfinished = ([run for run in alike if not run.finished(root)] for alike in by_folder.values())
    missing = sorted((alike for alike in unfinished if alike), key=lambda alike: alike[0].seed)
    if missing:
        logger.info("%d runs to make, %d there already", len(missing), len(by_folder) - len(missing))
    trained = [alike for alike in missing if not alike[0].added]
    sums = [alike for alike in missing if alike[0].added]  # patches can be added up once they are trained
    number = 0
    for group in (trained, sums):
        pieces = [(str(alike[0]), (alike, data[alike[0].world], root)) for alike in group]
        for place in side_by_side(execute_alike, pieces, processes):
            number += 1
            seconds = time.monotonic() - start
            logger.info("%d of %d: %s (%.0f s)", number, len(missing), pieces[place][0], seconds)


def execute_alike(runs: Sequence[Run], data: Path, root: Path) -> None:
    """``execute`` for runs with the same weights, one after the other."""
    for run in runs:
        execute(run, data, root)


def execute(run: Run, data: Path, root: Path) -> None:
    """Train and ask, where that has not been done. The store has the features already (``fill_store``).

    Args:
        run: what to do.
        data: folder of the world, with ``train.jsonl`` and ``test.jsonl``.
        root: folder of all runs.
    """
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    folder = run.folder(root)
    patch: Path | None = None
    facts: dict[str, Any] = {"run": run.to_dict()}
    if run.patch is not None or run.added:
        patch = folder / "patch"
        if not (folder / TRAINED).exists():
            shutil.rmtree(folder, ignore_errors=True)
            atomic_write_json(folder / TRAINED, _make_patch(run, data, root))
        facts |= read_json(folder / TRAINED)
    _ask(run, patch, first_clips(list(read_samples(data / "test.jsonl")), run.asked), root)
    if not (folder / RESULT).exists():
        atomic_write_json(folder / RESULT, facts)


def first_clips(samples: list[Sample], clips: int) -> list[Sample]:
    """The samples on the first clips; all, if 0."""
    chosen = set(list(dict.fromkeys(sample.video for sample in samples))[: clips or None])
    return [sample for sample in samples if sample.video in chosen]


def _make_patch(run: Run, data: Path, root: Path) -> dict[str, Any]:
    """Write the folder ``patch`` of a run, and return seconds and losses."""
    from transformers import TrainerCallback

    from pave.training.run import run_recipe

    folder = run.folder(root)
    if run.added:
        add_patches([part.folder(root) / "patch" for part in run.added], folder / "patch")
        return {"seconds": 0.0}
    curve: list[tuple[int, float]] = []

    class Losses(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                curve.append((state.global_step, float(logs["loss"])))

    start = time.monotonic()
    recipe = recipe_of(run, data, folder, store_of(root), folder_of(run.base, root))
    trained = run_recipe(recipe, progress=False, callbacks=[Losses()])
    return {"seconds": round(time.monotonic() - start, 1), "train_loss": trained.train_loss, "curve": curve}


def _ask(run: Run, patch: Path | None, samples: Sequence[Sample], root: Path) -> None:
    """Ask what has not been asked yet: as it is, and under each counterfactual."""
    from pave.evaluation.counterfactuals import Counterfactual
    from pave.evaluation.inference import VideoQA
    from pave.evaluation.runner import evaluate

    names = run.unasked(root)
    if not names:
        return
    need_channel = {kind for world in run.world.split("+") for kind in WORLDS[world].own}
    qa = VideoQA.from_pretrained(folder_of(run.base, root), patch, device="cpu", dtype=DTYPE, sampling=FRAMES)
    qa.use_store(store_of(root), samples, vision="exact")
    qa.keep_videos()
    if patch is not None:
        change_settings(patch_slot(qa.model), run.asked_with)
    for name in names:
        change, asked = None, samples
        if name != AS_IT_IS:
            change = Counterfactual.parse(name.removeprefix(SILENT_UNDER))
            silent = name.startswith(SILENT_UNDER)
            asked = [sample for sample in samples if (sample.type in need_channel) != silent]
        predictions = run.answers_file(root, name)
        result = evaluate(
            qa,
            asked,
            predictions=predictions,
            settings={"asked_with": run.asked_with},
            counterfactual=change,
            batch_size=_BATCH,
            max_new_tokens=_MAX_NEW_TOKENS,
            progress=False,
        )
        if result.failures:
            sample, message = result.failures[0]
            raise ValueError(
                f"{len(result.failures)} of the questions could not be asked, the first {sample}: {message}"
            )
        predictions.with_suffix(".done").touch()


def change_settings(slot: Any, settings: Mapping[str, Any]) -> None:
    """Set ``missing_channel`` of an attached patch, and any other setting of its fusion modules.

    Raises:
        ValueError: if the fusion has no such setting.
    """
    for setting, value in settings.items():
        if setting == "missing_channel":
            slot.config = replace(slot.config, missing_channel=value)
            continue
        for fusion in slot.fusions.values():
            if not hasattr(fusion, setting):
                raise ValueError(f"asked_with: the fusion has no setting {setting!r}")
            setattr(fusion, setting, value)
