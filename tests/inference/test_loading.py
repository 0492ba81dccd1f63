"""A patch knows its base: without one given, that of its record is loaded, from any folder, or said to be missing."""

import json
import shutil

import pytest
import torch

from pave import attach_patch, load_patch, save_patch
from pave.inference import Engine, VideoQA
from pave.patching import fingerprint
from pave.patching.base_of import base_of_patch
from pave.playground import base_path
from pave.utils.embedded import PLAYGROUND
from pave.video_llms.loading import load_base
from tiny_runs import hearing_config, recorded_as, save_base_and_patch, write_clip


@pytest.fixture(scope="module")
def on_playground(tmp_path_factory):
    """A patch that was trained on a copy of the base inside the package."""
    folder = tmp_path_factory.mktemp("playground")
    shutil.copytree(base_path(), folder / "copy")
    model, processor = load_base(folder / "copy")
    attach_patch(model, hearing_config())
    return save_patch(model, folder / "patch", processor=processor)


def test_the_base_inside_the_package_is_known_by_its_fingerprint(on_playground, tmp_path):
    assert json.loads((on_playground / "patch_config.json").read_text())["base"]["model_id"] != PLAYGROUND
    for model_id in (None, "/machine/site-packages/pave/playground/base", PLAYGROUND):
        patch = recorded_as(tmp_path / str(abs(hash(model_id))), on_playground, model_id)
        assert base_of_patch(patch) == (PLAYGROUND, None)
    qa = VideoQA.from_pretrained(patch=on_playground, device="cpu")
    assert qa.name == PLAYGROUND and qa.model.patch_names == ("default",)
    assert fingerprint(qa.model).weights == fingerprint(load_base(PLAYGROUND)[0]).weights


def test_another_model_of_the_same_sizes_is_not_taken_for_it(on_playground, tmp_path):
    model, processor = load_base(PLAYGROUND)
    with torch.no_grad():
        model.lm_head.weight.add_(0.1)
    attach_patch(model, hearing_config())
    patch = save_patch(model, tmp_path / "patch", processor=processor)
    other = recorded_as(tmp_path / "other", patch, "/gone/base")
    with pytest.raises(ValueError, match=r"other: the patch was trained on the base '/gone/base', and there is no such folder"):
        base_of_patch(other)


def test_a_folder_is_found_from_anywhere(tmp_path, monkeypatch):
    project = tmp_path / "project"
    base, patch = save_base_and_patch(project)
    assert base_of_patch(recorded_as(project / "absolute", patch, str(base))) == (str(base), None)
    relative = recorded_as(project / "runs" / "one", patch, "base")
    monkeypatch.chdir(tmp_path)
    assert base_of_patch(relative) == (str(project / "base"), None)
    video = write_clip(tmp_path / "clip.mp4", 1)
    texts = {
        VideoQA.from_pretrained(where, relative, device="cpu").ask(video, "red?", max_new_tokens=4).text
        for where in (None, base)
    }
    assert len(texts) == 1
    with pytest.raises(ValueError, match="trained on another base"):
        VideoQA.from_pretrained(patch=recorded_as(tmp_path / "wrong", patch, str(base_path())), device="cpu")


def test_an_id_of_the_hub_keeps_its_revision(tmp_path):
    _, patch = save_base_and_patch(tmp_path)
    named = recorded_as(tmp_path / "named", patch, "org/base-7b", "abc123")
    assert base_of_patch(named) == ("org/base-7b", "abc123")
    unknown = recorded_as(tmp_path / "unknown", patch, None)
    with pytest.raises(ValueError, match="unknown: the patch does not say which base it was trained on; give it"):
        base_of_patch(unknown)
    with pytest.raises(ValueError, match="neither a base nor a patch"):
        Engine.from_pretrained()


def test_several_patches_get_the_names_they_are_given(tmp_path):
    base, patch = save_base_and_patch(tmp_path)
    patch = recorded_as(tmp_path / "recorded", patch, str(base))
    engine = Engine.from_pretrained(None, {"one": patch, "two": patch}, device="cpu")
    assert engine.model.patch_names == ("one", "two") and engine.name == str(base)
    plain, _ = load_base(base)
    load_patch(plain, patch)
    assert engine.model.patch_configs["two"] == plain.patch_config


def test_frames_are_those_of_the_patches_that_act(tmp_path):
    frames = [{"recipe": {"data": {"frames": {"num_frames": count}}}} for count in (6, 4)]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    base, six = save_base_and_patch(tmp_path / "a", provenance=frames[0])
    _, four = save_base_and_patch(tmp_path / "b", provenance=frames[1])
    model, processor = load_base(base)
    load_patch(model, six, name="six")
    load_patch(model, four, name="four")
    qa = VideoQA(model, processor)
    video = write_clip(tmp_path / "clip.mp4", 1)
    for patches, count in (("six", 6), ("four", 4), (None, 16)):
        answer = qa.ask(video, "red?", patches=patches, max_new_tokens=2)
        assert len(answer.frame_times) == count
    with pytest.raises(ValueError, match="the patches 'six' and 'four' were trained with different frames"):
        qa.ask(video, "red?")
    model.select_patches("six")
    assert qa.sampling.num_frames == 6
