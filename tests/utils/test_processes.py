"""Pieces of work in processes: one thread each, no GPU, and an error that names the piece."""

import os
from pathlib import Path

import pytest
import torch

from evidence_files import dies
from pave.training.arguments import TrainingConfig, uses_accelerator
from pave.utils.processes import one_thread_no_gpu, side_by_side


def test_processes_of_a_reproduction_see_no_gpu(monkeypatch):
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda *args, **settings: True)
    assert uses_accelerator()
    one_thread_no_gpu()
    assert (os.environ["OMP_NUM_THREADS"], os.environ["CUDA_VISIBLE_DEVICES"]) == ("1", "")
    assert not uses_accelerator()  # nor one of another kind, such as MPS
    assert TrainingConfig().arguments("out", num_steps=1).use_cpu


def test_two_pieces_of_one_name_are_both_made(tmp_path):
    """As a variant with one seed on two bases is."""
    files = [tmp_path / name for name in "ab"]
    assert sorted(side_by_side(Path.touch, [("x", (file,)) for file in files], 2)) == [0, 1]
    assert all(file.exists() for file in files)
    with pytest.raises(RuntimeError, match="^y: FileNotFoundError: .*nowhere"):
        list(side_by_side(Path.touch, [("y", (tmp_path / "nowhere" / "file",))], 1))


def write_threads(path):
    path.write_text(f"{os.environ['OMP_NUM_THREADS']} {os.environ['CUDA_VISIBLE_DEVICES']!r} {os.environ.get('SET')}")


def set_variable(value):
    os.environ["SET"] = value


def test_every_process_is_prepared_before_its_first_piece(tmp_path):
    files = [tmp_path / name for name in "abc"]
    pieces = [(file.name, (file,)) for file in files]
    assert sorted(side_by_side(write_threads, pieces, 2, (set_variable, ("told",)))) == [0, 1, 2]
    assert {file.read_text() for file in files} == {"1 '' told"}


def test_a_piece_whose_process_is_killed_is_named_and_what_has_not_begun_is_not_made(tmp_path):
    file = tmp_path / "made"
    with pytest.raises(RuntimeError, match="^second: its process was ended from outside"):
        list(side_by_side(work, [("first", (None,)), ("second", ("die",)), ("third", (file,))], 1))
    assert not file.exists()


def work(order):
    if order == "die":
        dies()
    if order is not None:
        order.touch()
