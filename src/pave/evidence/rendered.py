"""The clips and questions of a reproduction."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from pave.evidence.processes import side_by_side
from pave.evidence.sections.common import Plan, data_folder
from pave.evidence.worlds import check_world, merge_worlds, write_world

logger = logging.getLogger(__name__)

_COMPLETE = "complete"
"""An empty file in the folder of a world that is all there."""


def make_worlds(worlds: Iterable[str], root: Path, plan: Plan, processes: int) -> dict[str, Path]:
    """The folders with the samples of worlds; what is missing is rendered side by side.

    Args:
        worlds: names, of several worlds in one joined by "+".
        root: of the reproduction.
        plan: how many clips.
        processes: at most.

    Raises:
        ValueError: if a world is there, but would be made otherwise now.
        RuntimeError: naming the world that failed.
    """
    data = {world: data_folder(world, root, plan) for world in worlds}
    single = {name: data_folder(name, root, plan) for world in data for name in world.split("+")}
    missing = []
    for name, folder in single.items():
        if (folder / _COMPLETE).exists():
            check_world(name, folder, plan.train_clips, plan.test_clips)
        else:
            missing.append(name)
    if missing:
        logger.info("rendering %d clips of each world: %s", plan.train_clips + plan.test_clips, ", ".join(missing))
        for _ in side_by_side(_make_world, [(f"world {name}", (name, single[name], plan)) for name in missing], processes):
            pass
    for world, folder in data.items():
        if world not in single:
            folder.mkdir(parents=True, exist_ok=True)
            merge_worlds(world.split("+"), single, folder)
    return data


def _make_world(name: str, folder: Path, plan: Plan) -> None:
    write_world(name, folder, plan.train_clips, plan.test_clips)
    (folder / _COMPLETE).touch()
