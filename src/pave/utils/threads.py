"""How many threads torch computes with on a CPU.

By default it takes one for every core that the process may use. For a small model that is far too many: threads that wait for each
other burn their cores, and where other work has them, every step waits for it. The same few steps of a small model took ten times as
long with two threads as with one on two busy cores.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

PARAMETERS_A_THREAD = 50_000_000
"""A model is given a further thread for every so many parameters; below, the parts of a step are too small to be shared out."""
_ASKED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_CPUS = Path("/sys/devices/system/cpu")
_CGROUP = Path("/sys/fs/cgroup")


def settle_threads(parameters: int, threads: int | None = None) -> int:
    """Let torch compute with as many threads as suit a model from now on; a message says how many.

    Whoever has said it (OMP_NUM_THREADS, MKL_NUM_THREADS, ``torch.set_num_threads``) is left their number.

    Args:
        parameters: of the model.
        threads: the number to take, where it has been chosen before.

    Returns:
        The number of threads.
    """
    import torch

    now = torch.get_num_threads()
    if any(os.environ.get(name) for name in _ASKED) or now not in _defaults_of_torch():
        return now
    free = free_cores()
    chosen = threads or threads_for(parameters, free)
    logger.info(
        "computing with %d thread%s: %.3g million parameters, %d of %d cores free (OMP_NUM_THREADS says otherwise)",
        chosen,
        "" if chosen == 1 else "s",
        parameters / 1e6,
        free,
        os.cpu_count() or 1,
    )
    torch.set_num_threads(chosen)
    return chosen


@contextlib.contextmanager
def fitting_threads(parameters: int, threads: int | None = None) -> Iterator[int]:
    """``settle_threads`` for the time of a block."""
    import torch

    before = torch.get_num_threads()
    try:
        yield settle_threads(parameters, threads)
    finally:
        torch.set_num_threads(before)


def threads_for(parameters: int, cores: int) -> int:
    """Threads for a model of so many parameters: as many as it has work for, and no more than there are free cores."""
    return max(1, min(1 + parameters // PARAMETERS_A_THREAD, cores))


def free_cores() -> int:
    """Cores that this process may use and that nothing else is using: at most those of its affinity and of its cgroup, and those of the
    machine less its load, over the processes that torchrun has started here."""
    machine = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    own = min(len(_affinity()), _quota(_CGROUP) or machine, machine - load)
    return max(1, int(own + 0.5) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _affinity() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _quota(cgroup: Path) -> float | None:
    """Cores that a container may use at most, by either version of cgroups; None where nothing says so."""
    try:
        if (cgroup / "cpu.max").is_file():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # "max" is no number
        return None


def _defaults_of_torch() -> set[int]:
    """What torch computes with where nobody has said anything: a thread for every core, or for every physical one (MKL)."""
    allowed = _affinity()
    siblings = set()
    for cpu in allowed:
        with contextlib.suppress(OSError):
            siblings.add((_CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text())
    return {len(allowed), len(siblings) or len(allowed)}
