"""The self-check passes on a device that works, and sees what a broken one does."""

from __future__ import annotations

import contextlib

import pytest
import torch

from other_device import DEVICE, OtherDevice
from pave.patching import patch_parameters
from pave.patching.patched import PatchedVideoLLM
from pave.selfcheck import checks, make_items, recipe_run
from pave.selfcheck.checks import CHECKS, Outcome, check_device
from pave.selfcheck.placeholders import without_paths

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("selfcheck")


@pytest.fixture(scope="module")
def items(folder):
    return make_items(folder)


@pytest.fixture(scope="module")
def on_cpu(items, folder):
    return check_device(CPU, "float32", items, folder)


def results(found):
    return {check.name: check.result for check in found}


def failures(found):
    return {check.name: check.seen for check in found if check.result == "failed"}


def test_everything_is_checked_and_passes_on_the_cpu(on_cpu, items):
    found, outcome = on_cpu
    assert results(found) == dict.fromkeys(CHECKS, "ok"), failures(found)
    sounds = [item.turns[-1][1] for item in items]
    assert len(set(sounds)) > 1 and outcome.answers[4:] == sounds and outcome.answers[:4] != sounds
    assert outcome.losses[-1] < 0.1 * outcome.losses[0]


def test_the_imitated_device_computes_what_the_cpu_does(on_cpu, items, folder):
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with OtherDevice():
            found, outcome = check_device(DEVICE, "float32", items, folder, on_cpu[1])
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
    assert results(found) == dict.fromkeys(CHECKS, "ok"), failures(found)
    assert torch.equal(outcome.logits, on_cpu[1].logits) and outcome.losses == on_cpu[1].losses


def test_bfloat16_is_near_float32(on_cpu, items, folder):
    found, outcome = check_device(CPU, "bfloat16", items, folder, on_cpu[1])
    assert results(found) == dict.fromkeys(CHECKS, "ok"), failures(found)
    assert not torch.equal(outcome.logits, on_cpu[1].logits)


# --- each of them fails where what it is about is broken


def broken(monkeypatch, items, folder, steps=1, **replaced):
    for name, value in (replaced | {"STEPS": steps}).items():
        monkeypatch.setattr(checks, name, value)
    found, _ = check_device(CPU, "float32", items[:2], folder)
    return failures(found), results(found)


def test_a_base_that_computes_something_else_is_seen(monkeypatch, on_cpu, items, folder):
    monkeypatch.setattr(checks, "CHECKS", {"base runs": CHECKS["base runs"]})
    logits = on_cpu[1].logits
    found, _ = check_device(CPU, "float32", items, folder, Outcome(logits=logits + 0.02 * logits.abs().max()))
    assert failures(found) == {"base runs": "logits differ from the CPU's by 2.0e-02 of the largest, more than 0.01"}


def test_a_fresh_patch_that_acts_is_seen(monkeypatch, items, folder):
    def attach(model, config):
        checks_attach(model, config)
        with torch.no_grad():
            for parameter in patch_parameters(model):
                parameter += 0.01

    checks_attach = checks.attach_patch
    failed, _ = broken(monkeypatch, items, folder, attach_patch=attach)
    assert failed["identity at start"].startswith("a fresh patch is not the base bit for bit: off by ")


def test_a_gradient_in_the_base_is_seen(monkeypatch, items, folder):
    def attach(model, config):
        checks_attach(model, config)
        model.get_output_embeddings().weight.requires_grad_(True)

    checks_attach = checks.attach_patch
    failed, _ = broken(monkeypatch, items, folder, attach_patch=attach)
    assert "of the base's parameters have a gradient, among them" in failed["gradient only in the patch"]


def test_a_missing_gradient_is_seen(monkeypatch, items, folder):
    def attach(model, config):
        checks_attach(model, config)
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.requires_grad_(False)

    checks_attach = checks.attach_patch
    failed, _ = broken(monkeypatch, items, folder, attach_patch=attach)
    assert failed["gradient only in the patch"].startswith("lora: ")


def test_training_that_changes_the_base_is_seen(monkeypatch, items, folder):
    def loss(model, head, inputs):
        with torch.no_grad():
            head.weight[0, 0] += 1e-3
        return answer_loss(model, head, inputs)

    answer_loss = checks.answer_loss
    failed, _ = broken(monkeypatch, items, folder, answer_loss=loss)
    assert failed["training learns"].startswith("training changed ")


def test_an_optimizer_that_does_nothing_is_seen(monkeypatch, items, folder):
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)
    failed, _ = broken(monkeypatch, items, folder)
    assert failed["training learns"].endswith(": nothing was learnt")
    assert failed["strength 0 is the base"] == "the trained patch does not change the logits"
    assert failed["answers"].startswith("answers [")


def test_a_patch_that_comes_back_changed_is_seen(monkeypatch, items, folder):
    def load(model, *args, **kwargs):
        load_patch(model, *args, **kwargs)
        with torch.no_grad():
            patch_parameters(model)[-1].mul_(1 + 1e-4)

    load_patch = checks.load_patch
    failed, _ = broken(monkeypatch, items, folder, load_patch=load)
    assert failed["saved and loaded"].startswith("the loaded patch is not the saved one bit for bit: off by ")


def test_a_strength_that_is_not_heeded_is_seen(monkeypatch, items, folder):
    monkeypatch.setattr(PatchedVideoLLM, "patch_scaled", lambda self, strength: contextlib.nullcontext())
    failed, _ = broken(monkeypatch, items, folder)
    assert failed["strength 0 is the base"].startswith("strength 0 is not the base bit for bit: off by ")


def test_after_an_error_the_rest_is_not_run(monkeypatch, items, folder):
    def attach(model, config):
        raise RuntimeError("this device has no\nsuch operation")

    failed, state = broken(monkeypatch, items, folder, attach_patch=attach)
    assert failed == {"identity at start": "RuntimeError: this device has no such operation"}
    assert list(state.values()) == ["ok", "failed", *["not run"] * 5]


def test_an_error_that_names_paths_tells_none_of_them(monkeypatch, items, folder):
    def full(trial):
        raise OSError(28, "x", "/home/u/f")

    monkeypatch.setattr(checks, "CHECKS", {"full": full})
    for home, seen in (("/home/u", "'<home>/f'"), ("/home/other", "'<folder>/f'")):
        monkeypatch.setenv("HOME", home)
        (check,), _ = check_device(CPU, "float32", items, folder)
        assert check.result == "failed" and check.seen == f"OSError: [Errno 28] x: {seen}"
        monkeypatch.setattr(recipe_run, "_both_runs", full)
        assert recipe_run.check_recipe(folder).seen == check.seen


def test_folders_have_placeholders(monkeypatch, tmp_path):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "env" / "site-packages"))
    for path, wanted in (
        ("here/a.py", "<cwd>/a.py"),
        ("scratch/x/p.safetensors", "<temp>/x/p.safetensors"),
        ("env/site-packages/torch/nn.py", "<site-packages>/torch/nn.py"),
        ("elsewhere/b c", "<home>/elsewhere/b c"),
        ("hereafter/b", "<home>/hereafter/b"),
    ):
        assert without_paths(f"at {tmp_path / path}, line 3") == f"at {wanted}, line 3"
    assert without_paths("/data/someone/model.bin") == "<folder>/model.bin"
    for text in ("1/2 of it", "see https://pytorch.org/docs/stable/", "torch/nn/x.py", "and/or", "a / b"):
        assert without_paths(text) == text
