"""How many threads torch computes with: by the model, by the cores that are free, and as the user says."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
import torch

from pave.utils import threads
from pave.utils.threads import _quota, fitting_threads, free_cores, threads_for


@pytest.mark.parametrize(
    ("parameters", "cores", "expected"),
    [
        (3_000_000, 16, 1),
        (49_999_999, 16, 1),
        (50_000_000, 16, 2),
        (500_000_000, 16, 11),
        (7_000_000_000, 16, 16),
        (7_000_000_000, 1, 1),
    ],
)
def test_a_thread_for_every_fifty_million_parameters_as_far_as_there_are_cores(parameters, cores, expected):
    assert threads_for(parameters, cores) == expected


@pytest.mark.parametrize(
    ("machine", "allowed", "load", "local", "expected"),
    [
        (16, 16, 0.0, 1, 16),
        (16, 4, 0.0, 1, 4),  # the affinity
        (16, 16, 11.6, 1, 4),  # what others leave
        (16, 4, 11.0, 1, 4),
        (2, 2, 30.0, 1, 1),  # one there always is
        (16, 16, 0.0, 4, 4),  # processes of torchrun share
        (2, 2, 0.0, 8, 1),
    ],
)
def test_free_cores_are_those_of_the_process_less_the_load(monkeypatch, machine, allowed, load, local, expected):
    monkeypatch.setattr(os, "cpu_count", lambda: machine)
    monkeypatch.setattr(threads, "_affinity", lambda: set(range(allowed)))
    monkeypatch.setattr(threads, "_quota", lambda cgroup: None)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 99.0, 99.0))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    assert free_cores() == expected


def test_a_container_has_the_cores_of_its_cgroup(tmp_path, monkeypatch):
    assert _quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert _quota(tmp_path) == 2.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert _quota(tmp_path) is None
    old = tmp_path / "old" / "cpu"
    old.mkdir(parents=True)
    (old / "cpu.cfs_period_us").write_text("100000\n")
    for quota, cores in (("150000\n", 1.5), ("-1\n", None)):
        (old / "cpu.cfs_quota_us").write_text(quota)
        assert _quota(tmp_path / "old") == cores
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(threads, "_affinity", lambda: set(range(16)))
    monkeypatch.setattr(threads, "_CGROUP", tmp_path / "old")
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    (old / "cpu.cfs_quota_us").write_text("300000\n")
    assert free_cores() == 3


SCRIPT = """
import torch
from pave.utils.console import setup_logging
from pave.utils.threads import fitting_threads
setup_logging()
{before}
first = torch.get_num_threads()
with fitting_threads({parameters}) as chosen:
    print(first, chosen, torch.get_num_threads())
assert torch.get_num_threads() == first
"""


@pytest.mark.parametrize(
    ("before", "variable", "said"),
    [
        ("", None, "computing with 1 thread: 3 million parameters"),
        ("", "2", ""),
        ("torch.set_num_threads(97)", None, ""),
    ],
)
def test_who_has_said_a_number_keeps_it(before, variable, said):
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    environment |= {} if variable is None else {"OMP_NUM_THREADS": variable}
    script = SCRIPT.format(before=before, parameters=3_000_000)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    first, chosen, now = done.stdout.split()
    assert chosen == now == ("1" if said else first)
    assert done.stderr.startswith(said) and bool(done.stderr) == bool(said)


def test_the_number_of_an_earlier_part_of_a_run_is_taken(monkeypatch, caplog):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "_defaults_of_torch", lambda: {torch.get_num_threads()})
    with caplog.at_level(logging.INFO, logger="pave"), fitting_threads(3_000_000, 2) as chosen:
        assert (chosen, torch.get_num_threads()) == (2, 2)
    assert "computing with 2 threads" in caplog.text
