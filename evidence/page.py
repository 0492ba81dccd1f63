"""The page of evidence, from the runs of the sections."""

from __future__ import annotations

import logging
import os
import platform
import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import transformers

import pave
from evidence.bases import make_bases
from evidence.contents import SECTIONS, all_runs
from evidence.execution import execute_all
from evidence.figures import remove_unlinked
from evidence.plan import FULL, ONE_SEED, SHORT, Plan
from evidence.reuse import check_runs, earlier_sections, note_page, with_earlier_variants
from evidence.sections.variants import NAME as OWN
from evidence.worlds import WORLDS, make_worlds
from pave.training.checkpoints import held
from pave.utils.files import atomic_write_text

logger = logging.getLogger(f"pave.{__name__}")

SIZES = {"full": FULL, "one-seed": ONE_SEED, "short": SHORT}


def reproduce(
    root: Path, names: Sequence[str] = (), size: str = "full", processes: int = 2, variants: Sequence[str] = ()
) -> Path:
    """Make every run that is missing, and write ``evidence.md`` into the folder, its figures under ``evidence/``.

    Args:
        root: folder for data, runs and the page; what is in it already is used.
        names: sections; without any all, or with one seed all but the long ones, or with variants none but theirs.
            Those that are on the folder's page already, in the same size, stay on it.
        size: "full", "one-seed" or "short" (which shows that everything runs, not that anything is learnt).
        processes: runs made side by side, each with one thread.
        variants: a reader's rows, each ``NAME: KEY=VALUE ...`` (``evidence.variants.read_variants``), for the section
            "own".

    Returns:
        The page.

    Raises:
        ValueError: if a section or a size is unknown, ``processes`` is below 1, a variant is wrong, the section "own"
            is named without one, another reproduction is at work in the folder, or what is there would be made
            otherwise now.
        RuntimeError: naming the run that failed.
    """
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        raise ValueError(f"there is no section {unknown[0]!r}; known: {', '.join(SECTIONS)}")
    if size not in SIZES:
        raise ValueError(f"there is no size {size!r}; known: {', '.join(SIZES)}")
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    root = Path(root).resolve()
    plan = replace(SIZES[size], variants=with_earlier_variants(variants, root, SIZES[size], size))
    if OWN in names and not plan.variants:
        raise ValueError(f'the section {OWN} has no rows yet; --variant "NAME: KEY=VALUE" gives it one')
    wanted = [*(names or ([] if variants else default_sections(size))), *([OWN] if plan.variants else [])]
    chosen = [name for name in SECTIONS if name in wanted]
    start = time.monotonic()
    runs = all_runs(chosen, plan)
    logger.info("%s, size %s: %d runs, in %s", ", ".join(chosen), size, len({run.folder(root) for run in runs}), root)
    with held(root):
        check_runs(runs, root)
        for name in chosen:
            SECTIONS[name].check(plan, root)
        chosen = [name for name in SECTIONS if name in (*chosen, *earlier_sections(root, plan, size, chosen))]
        worlds = dict.fromkeys(run.world for run in all_runs(chosen, plan))
        data = make_worlds(worlds, root, plan.train_clips, plan.test_clips, processes)
        make_bases([run.base for run in runs], root, processes)
        execute_all(runs, data, root, processes)
        page, text = root / "evidence.md", _page(chosen, plan, root, size)
        atomic_write_text(page, text)
        remove_unlinked(root, text)
        note_page(root, size, chosen, plan.variants)
    logger.info("wrote %s after %.0f s", page, time.monotonic() - start)
    return page


def default_sections(size: str) -> list[str]:
    """What is made where no section is named."""
    return [name for name, section in SECTIONS.items() if name != OWN and (size != "one-seed" or not section.long)]


def command(names: Sequence[str], plan: Plan, size: str) -> str:
    """What makes a page with these sections again."""
    built_in = [name for name in names if name != OWN]
    if built_in == default_sections(size) and not plan.variants:
        built_in = []
    variants = [f"--variant {shlex.quote(variant.text)}" for variant in plan.variants]
    return " ".join(["python -m evidence", *built_in, *_size_option(size), *variants])


def _size_option(size: str) -> list[str]:
    return [] if size == "full" else [f"--size {size}"]


def _page(names: Sequence[str], plan: Plan, root: Path, size: str) -> str:
    parts = [
        "# Evidence",
        f"Made by `{command(names, plan, size)}` with pave {pave.__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, Python {platform.python_version()}, on {platform.machine()} with "
        f"{os.cpu_count()} processors, without a GPU. Unless a section names another base, everything runs on the "
        "playground: real media files of a miniature world, and a Video LLM of 1.2 million parameters that was trained "
        "on its silent part. It shows how the method behaves, not how good it is on the benchmarks of the paper.",
        _scale(plan, size),
        "Intervals say how sure a number is over other clips: all questions about a clip, and answers of all seeds, "
        "count as the one piece of evidence that they are. The seeds are taken as they are; how much training itself "
        "varies is seen in the accuracy of each seed, in small print where there are several, bold where they lie "
        "further apart than the interval is wide: there the interval looks surer than the training is. Differences are "
        "taken question by question. Where all answers are right or all wrong, or two runs agree on all, the interval "
        "still has a width: clips that were not asked may differ. Nothing is corrected for the number of comparisons.",
    ]
    lines = [f"- {line}" for name in names for line in SECTIONS[name].in_short(plan, root)]
    parts += ["## In short", "\n".join(lines)] if lines else []
    for name in names:
        parts += [f"## {SECTIONS[name].title}", SECTIONS[name].write(plan, root)]
    left_out = [name for name in SECTIONS if name not in names and name != OWN]
    if left_out:
        further = " ".join(["python -m evidence", *left_out, *_size_option(size)])
        parts += [
            "## What is not here",
            f"Not made for this page: {', '.join(f'`{name}`' for name in left_out)}. `{further}`, with the same "
            "`--out`, adds them.",
        ]
    return "\n\n".join(parts) + "\n"


def _scale(plan: Plan, size: str) -> str:
    if size == "short":
        return (
            f"**This is the size `short`: {plan.steps} steps of training, {plan.test_clips} clips to test on. It shows "
            "that everything runs; its numbers say nothing.**"
        )
    training = WORLDS["audio"].recipe.training
    return (
        f"{plan.train_clips} clips to train on and {plan.test_clips} others to test on in every world, "
        f"{'one seed' if len(plan.seeds) == 1 else f'{len(plan.seeds)} seeds'} of training, {plan.steps_of('audio')} "
        f"steps of {training.batch_size} samples where a section does not say otherwise. The audio patch is that of "
        "the demo, `recipes/playground_audio.yaml` in the repository."
    )
