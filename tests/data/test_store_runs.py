"""Runs that are killed anywhere, children that hang or crash, several processes, Ray."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import signal
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from pave.config import EncoderConfig
from pave.data.media import read_audio
from pave.data.samples import Sample, write_samples
from pave.data.store import FeatureStore, ShardLimits, StoredChannels, collect, extract, plan_features
from pave.side_channels import build_encoder
from small_disk import on_small_disk
from store_files import RATE, content, encoder, fill, sounds

LIMITS = ShardLimits(entries=3, num_bytes=180)
PARTS = ("pave/data/store", "pave/utils/files", "tempfile", "json/", "safetensors", "test_store_runs")


def save_in_pieces(tensors, path, metadata=None):
    """What ``safetensors.torch.save_file`` writes, but a process can be ended in the middle of it."""
    data = safetensors.torch.save(tensors, metadata)
    with open(path, "wb", buffering=0) as file:
        for start in range(0, len(data), 16):
            file.write(data[start : start + 16])


def step_counter(kill_at, steps):
    """A trace function that counts the lines run in the code that writes a store, and ends the process at one of them."""

    def trace(frame, event, arg):
        if not any(part in frame.f_code.co_filename for part in PARTS):
            return None
        if event == "line":
            steps[0] += 1
            if steps[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def in_fork(work, kill_at):
    """Run ``work`` in a forked process that is killed at a line; how many lines it ran, None if it was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            steps = [0]
            safetensors.torch.save_file = save_in_pieces
            sys.settrace(step_counter(kill_at, steps))
            work()
            sys.settrace(None)
            os.write(writing, str(steps[0]).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    said = os.read(reading, 100)
    os.close(reading)
    status = os.waitpid(child, 0)[1]
    assert said or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL)
    return int(said) if said else None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_killed_anywhere_leaves_whole_shards_and_ends_with_the_same_bytes(tmp_path):
    samples = sounds(tmp_path / "in", 8)
    expected = {s.id: encoder().encode(read_audio(s.side_channels["audio"], RATE)).features_KMC for s in samples}

    def run(folder):
        fill(folder, samples, limits=LIMITS)

    lines = in_fork(lambda: run(tmp_path / "whole"), None)
    whole = content(tmp_path / "whole")
    run(tmp_path / "unforked")
    assert content(tmp_path / "unforked") == whole
    assert len(whole) == 1 + 5  # what the encoder is; chunks of 3, 3 and 2 streams, two of which fit a shard
    rng, kills, resumed = random.Random(0), 0, 0
    for campaign in range(12):
        folder = tmp_path / f"killed{campaign}"
        for _ in range(4):
            if in_fork(lambda folder=folder: run(folder), rng.randrange(1, lines)) is not None:
                break
            kills += 1
            there = content(folder)
            assert there.items() <= whole.items()  # nothing half-written under a name that is read, nothing else
            resumed += 0 < len(there) < len(whole)
            if not (folder / "store.json").is_file():
                continue
            reader = StoredChannels(folder, {"audio": encoder()})
            for sample in samples:
                try:
                    found = reader.load("audio", sample.video, sample.side_channels["audio"])
                except ValueError as error:
                    assert "has no features" in str(error)
                else:
                    assert torch.equal(found.features_KMC, expected[sample.id])
        run(folder)
        assert content(folder) == whole
    assert kills >= 20 and resumed >= 10


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_collection_killed_anywhere_loses_nothing(tmp_path):
    samples = sounds(tmp_path / "in", 7)
    fill(tmp_path / "fresh", samples[1:], limits=LIMITS)
    fresh, packed = content(tmp_path / "fresh"), None

    def prepare(folder):
        for part in (samples[:2], samples[2:3], samples[3:]):
            store, _, _ = fill(folder, part, limits=LIMITS)
        return store, plan_features(samples[1:], {"audio": encoder()}, store.hashes())

    def clean(store, plan):
        collect(store, plan, limits=LIMITS)

    store, plan = prepare(tmp_path / "whole")
    lines = in_fork(lambda: clean(store, plan), None)
    packed = content(tmp_path / "whole")
    assert packed != fresh  # chunks of a run are not filled up, packed shards are
    rng = random.Random(1)
    for campaign in range(8):
        store, plan = prepare(tmp_path / f"killed{campaign}")
        for _ in range(3):
            if in_fork(lambda store=store, plan=plan: clean(store, plan), rng.randrange(1, lines)) is not None:
                break
            (name,) = plan.encoders
            assert plan.wanted.keys() <= FeatureStore(store.folder).index(name).keys()
        clean(FeatureStore(store.folder), plan)
        assert content(store.folder) == packed


def test_what_a_killed_writer_left_goes_when_it_is_old(tmp_path):
    samples = sounds(tmp_path / "in", 1)
    store, plan, _ = fill(tmp_path / "store", samples)
    (name,) = plan.encoders
    new, old = (store.encoder_folder(name) / f".{age}.tmp.safetensors" for age in ("new", "old"))
    new.touch()
    old.touch()
    os.utime(old, (0, 0))
    fill(tmp_path / "store", samples)
    assert new.exists() and not old.exists()


# --- children


def fragile(folder, texts):
    """Samples of files that behave as their texts say."""
    folder.mkdir(exist_ok=True)
    samples = []
    for i, text in enumerate(texts):
        (folder / f"{i}.txt").write_text(text)
        channels = {"own": str(folder / f"{i}.txt")}
        samples.append(Sample(id=f"s{i}", video=str(folder / "0.txt"), question="?", side_channels=channels))
    return samples, {"own": build_encoder(EncoderConfig(name="store_encoders:Fragile"), "store_encoders")}


def test_a_file_that_hangs_or_crashes_fails_alone(tmp_path):
    samples, encoders = fragile(tmp_path / "in", ["x", "hang", "xx", "crash", "raise", "raise", *("xxx",) * 6])
    options = {"processes": 1, "timeout": 6.0, "limits": ShardLimits(entries=64, num_bytes=30)}
    _, _, report = fill(tmp_path / "store", samples, encoders, **options)
    assert report.extracted == 8
    failures = {f.samples: f.message for f in report.failures}
    assert [f.samples for f in report.failures] == [("s1",), ("s3",), ("s4",), ("s5",)]
    assert "1.txt: reading and encoding took longer than the 6 s allowed" in failures["s1",]
    assert "3.txt: the process that read it ended with status 3" in failures["s3",]
    assert failures["s4",] == "RuntimeError: a decoder's own error"
    stored = StoredChannels(tmp_path / "store", encoders)
    lengths = [stored.load("own", s.video, s.side_channels["own"]).features_KMC.item() for s in (samples[0], samples[2])]
    assert lengths == [1, 2]


def test_processes_write_what_one_writes(tmp_path):
    samples = sounds(tmp_path / "in", 8)
    fill(tmp_path / "here", samples, limits=LIMITS)
    _, _, report = fill(tmp_path / "children", samples, limits=LIMITS, processes=2, timeout=None)
    assert report.extracted == 8 and report.failures == []
    assert content(tmp_path / "here") == content(tmp_path / "children")


def test_a_child_that_cannot_build_the_encoder_stops_the_run(tmp_path):
    samples = sounds(tmp_path / "in", 1)

    class Lost(type(encoder())):
        def spec(self):
            return EncoderConfig(name="log_mel", settings={"n_mels": 8, "unknown": 1})

    with pytest.raises(ValueError, match="no setting 'unknown'"):
        fill(tmp_path / "store", samples, {"audio": Lost(n_mels=8)}, processes=1)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra ray is not installed")
def test_ray_writes_what_one_process_writes(tmp_path):
    import ray

    samples = sounds(tmp_path / "in", 8)
    fill(tmp_path / "here", samples, limits=LIMITS)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        _, _, report = fill(tmp_path / "ray", samples, limits=LIMITS, processes=2, ray=True)
    finally:
        ray.shutdown()
    assert report.extracted == 8 and report.failures == []
    assert content(tmp_path / "here") == content(tmp_path / "ray")


SCRIPT = """
from pave.data.samples import read_samples
from pave.data.store import FeatureStore, ShardLimits, extract, plan_features
from pave.utils.files import DiskError
from store_files import encoder

store = FeatureStore({store!r}, create=True)
plan = plan_features(read_samples({samples!r}), {{"audio": encoder(n_mels=64)}}, store.hashes())
try:
    report = extract(plan, store, processes={processes}, limits=ShardLimits(entries=4), progress=False)
    print(report.extracted, len(report.failures))
except DiskError as error:
    print("disk:", error)
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_a_script_needs_no_guard(tmp_path, processes):
    write_samples(tmp_path / "a.jsonl", sounds(tmp_path / "in", 6))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(store=str(tmp_path / "store"), samples=str(tmp_path / "a.jsonl"), processes=processes))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)
    assert (done.stdout, done.returncode) == ("6 0\n", 0), done.stderr


@pytest.mark.parametrize("processes", [0, 1])
def test_a_full_disk_stops_the_run_and_no_file_is_blamed(tmp_path, processes):
    write_samples(tmp_path / "a.jsonl", sounds(tmp_path / "in", 40))
    store = tmp_path / "disk" / "store"
    code = SCRIPT.format(store=str(store), samples=str(tmp_path / "a.jsonl"), processes=processes)
    done = on_small_disk(tmp_path / "disk", code, kilobytes=32)
    assert re.fullmatch(
        rf"disk: {store}/features/\w+/\w+\.safetensors: it cannot be written, because the disk at {tmp_path / 'disk'} is full; make room "
        r"there, or write elsewhere\n",
        done.stdout,
    ), done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_arguments(tmp_path):
    store = FeatureStore(tmp_path / "store", create=True)
    plan = plan_features([], {}, store.hashes())
    for wrong in ({"processes": -1}, {"batch_size": 0}, {"timeout": 0.0}, {"world_size": 0}):
        with pytest.raises(ValueError, match="extract: processes must be"):
            extract(plan, store, **wrong)
    with pytest.raises(ValueError, match="ShardLimits"):
        ShardLimits(entries=0)
