"""Sound files and samples for tests of the feature store, and what a store holds, as values that can be compared."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from pave.data.samples import Sample
from pave.data.store import FeatureStore, extract, plan_features
from pave.side_channels.log_mel import LogMelEncoder

RATE = 16_000


def write_sound(path: Path, seed: int, seconds: float = 0.5) -> Path:
    noise = np.random.default_rng(seed).normal(scale=3000, size=int(RATE * seconds)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(noise.tobytes())
    return path


def sounds(folder: Path, count: int) -> list[Sample]:
    """Samples whose sound stands in files of its own; the videos are never opened."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        Sample(
            id=f"s{i}",
            video=str(folder / "none.mp4"),
            question="?",
            answer="a",
            side_channels={"audio": str(write_sound(folder / f"{i}.wav", i))},
        )
        for i in range(count)
    ]


def encoder(**settings) -> LogMelEncoder:
    return LogMelEncoder(**{"n_mels": 8, **settings})


def fill(folder: Path, samples, encoders=None, **options):
    """Extract in this process; the store, the plan and the report."""
    store = FeatureStore(folder, create=True)
    plan = plan_features(samples, encoders or {"audio": encoder()}, store.hashes())
    return store, plan, extract(plan, store, **{"processes": 0, "progress": False, **options})


def content(folder: Path) -> dict[str, bytes]:
    """Every complete file below ``features`` by its path."""
    root = folder / "features"
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and not p.name.startswith(".")}
