"""The feature store of a reproduction: frozen encoders run once over all clips, every training and answering reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from evidence.bases import folder_of
from evidence.runs import DTYPE, FRAMES, Run
from pave.data.samples import read_samples
from pave.utils.embedded import model_path


def store_of(root: Path) -> Path:
    """Where the feature store of a reproduction is."""
    return root / "features"


def fill_store(runs: Iterable[Run], data: Mapping[str, Path], root: Path, processes: int = 2) -> None:
    """Make the vision features and side features that runs read and the store lacks.

    Args:
        runs: to be made.
        data: folder of each world.
        root: folder of the reproduction.
        processes: how many at most.

    Raises:
        RuntimeError: naming a file that cannot be encoded.
    """
    from pave.data.store import VISION, FeatureStore, Plan, extract, plan_features
    from pave.data.vision import BaseVision
    from pave.side_channels import build_encoder

    store = FeatureStore(store_of(root), create=True)
    hashes, plan = store.hashes(), Plan()
    planned: set[tuple[str, str]] = set()
    towers: dict[tuple[str, bool], BaseVision] = {}
    for run in runs:
        encoders: dict[str, Any] = {}
        patches = [part.patch for part in (run, *run.added) if part.patch is not None]
        for patch in patches:
            encoders |= {name: build_encoder(channel.encoder) for name, channel in patch.side_channels.items()}
        kind = run.base, any(patch.reads_pre_projector for patch in patches)
        if kind not in towers:
            folder = model_path(folder_of(run.base, root))
            towers[kind] = BaseVision(folder, FRAMES, dtype=DTYPE, pre_projector=kind[1])
        encoders[VISION] = towers[kind]
        new = {name: e for name, e in encoders.items() if (run.world, str(e.spec().to_dict())) not in planned}
        planned |= {(run.world, str(e.spec().to_dict())) for e in new.values()}
        if new:
            samples = [s for split in ("train", "test") for s in read_samples(data[run.world] / f"{split}.jsonl")]
            plan_features(samples, new, hashes, plan)
    report = extract(plan, store, processes=processes, progress=False)
    if report.failures:
        raise RuntimeError(f"{report.failures[0].file}: {report.failures[0].message}")
