"""One measurement of a prompt, taken once and read from the folder of the reproduction afterwards."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.prefill import Measurement, measure_prefill
from pave.config import PatchConfig, read_strict
from pave.utils.files import atomic_write_json, read_json

FILE = "measured.json"


def read_measurement(patch: PatchConfig, root: Path, **settings: Any) -> Measurement | None:
    """What ``measured_once`` has left in a folder.

    Raises:
        ValueError: if the file is no such file, or of another patch or with other settings; the message names it.
    """
    path = root / FILE
    if not path.is_file():
        return None
    values = read_json(path)
    try:
        measurement = read_strict(Measurement, values, str(path))
    except ValueError as error:
        raise ValueError(f"{error}; remove the file to measure anew") from None
    for name, now in {"patch": patch.to_dict(), **settings}.items():
        before = getattr(measurement, name)
        if json.dumps(before, sort_keys=True) != json.dumps(now, sort_keys=True):
            raise ValueError(f"{path} was measured with another {name} than it would be now; remove it to measure anew")
    return measurement


def measured_once(patch: PatchConfig, root: Path, **settings: Any) -> Measurement:
    """``measure_prefill`` in a process of its own, written to a file of the folder and read from there the next time.

    Raises:
        ValueError: as ``read_measurement`` does.
    """
    before = read_measurement(patch, root, **settings)
    if before is not None:
        return before
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        measurement = pool.submit(measure_prefill, patch, **settings).result()
    atomic_write_json(root / FILE, measurement.to_dict())
    return measurement
