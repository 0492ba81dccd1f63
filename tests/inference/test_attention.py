"""What an engine says of a patch at work is what the modules did."""

import numpy as np
import pytest
import torch

from cases import shake
from pave import attach_patch
from pave.data.media import FrameSampling
from pave.inference import Engine, Request
from pave.inference import attention as attention_module
from pave.patching import patch_slot
from tiny_models import tiny_qwen2_5_vl
from tiny_runs import hearing_config, save_base_and_patch, write_clip

FRAMES = FrameSampling(num_frames=4)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    base, patch = save_base_and_patch(folder)
    return folder, Engine.from_pretrained(base, patch, device="cpu", sampling=FRAMES)


def test_strength_changes_nothing_of_what_is_told(engine):
    """The change is that of the patch as it was trained, so that it can be compared."""
    folder, asked = engine
    clip = write_clip(folder / "clip.mp4", 2)
    views = [asked.view(asked.read(Request(clip, "red?", patches={"default": s}))) for s in (1.0, 0.25)]
    full, quarter = (view["default.audio"] for view in views)
    assert np.array_equal(full.change_TS, quarter.change_TS) and full.change_TS.min() > 0
    assert np.allclose(full.attention_TK.sum(axis=1), 1) and full.gate_TS is None
    assert asked.view(asked.read(Request(clip, "red?", patches=None))) == {}


def test_the_model_keeps_no_hook(engine):
    folder, asked = engine
    asked.view(asked.read(Request(write_clip(folder / "again.mp4", 2), "red?")))
    assert all(not module._forward_hooks for module in patch_slot(asked.model).modules())


def test_too_much_attention_is_left_out(engine, monkeypatch):
    folder, asked = engine
    monkeypatch.setattr(attention_module, "MOST_WEIGHTS", 10)
    (view,) = asked.view(asked.read(Request(write_clip(folder / "large.mp4", 2), "red?"))).values()
    assert view.attention_TK is None and view.change_TS.min() > 0


def test_a_video_without_the_channel_has_no_view(engine):
    folder, asked = engine
    silent = write_clip(folder / "silent.mp4", 1, sound=False)
    assert asked.view(asked.read(Request(silent, "red?"))) == {}


def test_time_steps_are_those_of_a_base_that_merges_frames(tmp_path):
    model, processor = tiny_qwen2_5_vl()
    attach_patch(model, hearing_config())
    asked = Engine(shake(model), processor, sampling=FRAMES)
    (view,) = asked.view(asked.read(Request(write_clip(tmp_path / "clip.mp4", 2), "red?"))).values()
    assert len(view.change_TS) == len(view.attention_TK) == 2
    assert attention_module.by_frame(view.change_TS, 4).shape == (4, view.change_TS.shape[1])
    assert torch.allclose(torch.tensor(view.attention_TK.sum(axis=1)), torch.ones(2).double(), atol=1e-6)
