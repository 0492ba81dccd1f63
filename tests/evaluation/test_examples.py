"""Examples for the report, made from a real patched model and real files."""

import numpy as np
import pytest
import torch

from cases import shake
from pave import attach_patch
from pave.data.media import FrameSampling, read_frames
from pave.data.samples import Sample
from pave.evaluation.examples import attention_of, example_view
from pave.evaluation.inference import VideoQA
from pave.evaluation.report import write_report
from pave.evaluation.runner import evaluate
from tiny_models import tiny_qwen2_5_vl
from tiny_runs import hearing_config, save_base_and_patch, write_clip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    base, patch = save_base_and_patch(folder)
    qa = VideoQA.from_pretrained(base, patch, device="cpu", sampling=FrameSampling(num_frames=4))
    return folder, qa, write_clip(folder / "clip.mp4", 2)


def item_of(qa, video):
    return next(iter(qa.items([Sample(id="a", video=str(video), question="red?")])))


def test_each_frame_attends_to_the_steps_of_its_own_interval(world):
    """Four frames at 0.25 to 1.75 s own half a second each; the steps are a quarter of a second long."""
    _, qa, video = world
    item = item_of(qa, video)
    weights = attention_of(qa, item)["audio"]
    times = item.side["audio"].times_K.numpy()
    assert weights.shape == (4, len(times))
    assert np.allclose(weights.sum(axis=1), 1)
    middles = (item.times_F[1:] + item.times_F[:-1]) / 2
    own = np.searchsorted(middles, times)[None] == np.arange(4)[:, None]
    assert own.sum(axis=1).tolist() == [2, 2, 2, 2] and (weights[~own] == 0).all()
    assert weights[1].max() > 0.6  # the tone starts in the second frame's interval: not an even spread


def test_bases_that_merge_frames_share_a_row():
    model, processor = tiny_qwen2_5_vl()
    attach_patch(model, hearing_config())
    qa = VideoQA(shake(model), processor, sampling=FrameSampling(num_frames=5))
    generator = np.random.default_rng(0)
    from pave.data.items import PatchItem
    from pave.side_channels import SideFeatures

    side = SideFeatures(torch.randn(10, 2, 16), 0.1 + torch.arange(10).double() / 5)
    frames = generator.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    item = PatchItem("a", frames, np.arange(5) * 0.4 + 0.2, (("red?", None),), {"audio": side})
    weights = attention_of(qa, item)["audio"]
    assert weights.shape == (5, 10)
    assert (weights[0] == weights[1]).all() and (weights[2] == weights[3]).all() and (weights[1] != weights[2]).any()
    assert np.allclose(weights.sum(axis=1), 1)


def test_an_example_holds_what_the_files_hold(world, tmp_path):
    folder, qa, video = world
    sample = Sample(
        id="clip", video=str(video), question="what sound is heard?", answer="bell", type="sound", choices=("bell", "buzz")
    )
    runs = {name: evaluate(qa, [sample], patch=name == "patch", max_new_tokens=4, progress=False) for name in ("base", "patch")}
    view = example_view(qa, sample, {name: run.predictions[0] for name, run in runs.items()})
    clip = read_frames(video, FrameSampling(num_frames=4))
    assert [f.time for f in view.frames] == list(clip.times_F)
    assert all((f.pixels_HWC == pixels).all() for f, pixels in zip(view.frames, clip.frames_FHWC))
    assert [a.run for a in view.answers] == ["base", "patch"]
    assert [a.text for a in view.answers] == [run.predictions[0].prediction for run in runs.values()]
    assert (view.question, view.truth, view.choices, view.question_type) == (sample.question, "bell", ("bell", "buzz"), "sound")
    loud = np.abs(view.sound.samples) > 0.2
    assert abs(len(view.sound.samples) / view.sound.sample_rate - 2.0) < 0.1
    assert view.sound.start + np.flatnonzero(loud)[0] / view.sound.sample_rate == pytest.approx(0.4, abs=0.05)
    side = view.sides[0]
    assert side.features_KC.shape == (len(side.times_K), 16) and side.attention_TK.shape == (4, len(side.times_K))
    write_report(tmp_path / "r.html", "t", [run.table(name) for name, run in runs.items()], [view], {"seed": 0})
    assert "clip, sound" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_silent_video_has_no_side_and_no_sound(world):
    folder, qa, _ = world
    video = write_clip(folder / "silent.mp4", 1, sound=False)
    sample = Sample(id="s", video=str(video), question="red?", answer="red")
    run = evaluate(qa, [sample], max_new_tokens=2, progress=False)
    view = example_view(qa, sample, {"patch": run.predictions[0]})
    assert view.sound is None and view.sides == []
    assert attention_of(qa, item_of(qa, video)) == {}


def test_what_is_missing_is_said(world):
    folder, qa, video = world
    sample = Sample(id="s", video=str(folder / "nowhere.mp4"), question="red?", answer="red")
    run = evaluate(qa, [sample], max_new_tokens=2, progress=False)
    with pytest.raises(ValueError, match=r"nowhere\.mp4"):
        example_view(qa, sample, {"patch": run.predictions[0]})
    with pytest.raises(ValueError, match="no run"):
        example_view(qa, sample, {})
    base = VideoQA(tiny_qwen2_5_vl()[0], qa.processor)
    with pytest.raises(ValueError, match="no patch"):
        attention_of(base, item_of(qa, video))
