"""The run of a recipe that the self-check makes: stopped and resumed it ends alike, and where it does not that is seen."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from pave.selfcheck import check_recipe, make_items, recipe_run


@pytest.fixture
def folder(tmp_path):
    make_items(tmp_path)
    return tmp_path


def test_a_resumed_run_ends_bit_for_bit_where_the_first_did(folder):
    check = check_recipe(folder)
    assert check.result == "ok" and check.seen.endswith("; resumed, the same bit for bit"), check.seen


def test_a_run_that_ends_elsewhere_is_seen(folder, monkeypatch):
    def run(recipe, *, resume=False, **more):
        result = run_recipe(recipe, resume=resume, **more)
        if resume:
            file = result.patch / "patch.safetensors"
            save_file({name: value * (1 + 1e-4) for name, value in load_file(file).items()}, file)
        return result

    run_recipe = recipe_run.run_recipe
    monkeypatch.setattr(recipe_run, "run_recipe", run)
    check = check_recipe(folder)
    assert check.result == "failed" and "resumed, off by 1.0e-04 of the largest value" in check.seen, check.seen


def test_an_error_is_a_failed_check(folder, monkeypatch):
    def run(recipe, **more):
        raise ValueError("one process sees 2 GPUs")

    monkeypatch.setattr(recipe_run, "run_recipe", run)
    check = check_recipe(folder)
    assert (check.result, check.seen) == ("failed", "ValueError: one process sees 2 GPUs")
    assert torch.is_grad_enabled()
