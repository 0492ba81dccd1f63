"""A base is loaded whole or not at all, and nothing that comes with it is run."""

import io
import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from pave.video_llms.known import load_config
from pave.video_llms.loading import load_base
from tiny_models import tiny_llava_onevision, tiny_qwen2_5_vl


@pytest.fixture(params=[tiny_llava_onevision, tiny_qwen2_5_vl], ids=lambda build: build.__name__)
def saved(request, tmp_path):
    model, processor = request.param()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    return model, tmp_path


def test_what_was_saved_comes_back(saved):
    model, folder = saved
    again, processor = load_base(folder)
    assert type(again) is type(model) and processor.chat_template
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert {p.dtype for p in load_base(str(folder), dtype="bfloat16")[0].parameters()} == {torch.bfloat16}


def test_missing_and_damaged_weights_are_refused(saved):
    _, folder = saved
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = next(key for key in tensors if key.endswith("down_proj.weight"))
    short = {key: value for key, value in tensors.items() if key != name}
    save_file(short, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 of its weights, among them .*down_proj\.weight"):
        load_base(folder)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"base '.*' cannot be loaded: "):
        load_base(folder)
    file.unlink()
    with pytest.raises(ValueError, match="is no folder with a model"):
        load_base(folder)


@pytest.mark.parametrize("load", [load_base, lambda folder: load_config(str(folder))])
def test_code_that_comes_with_a_base_is_neither_run_nor_asked_about(tmp_path, monkeypatch, load):
    auto_map = {"AutoConfig": "own.Own", "AutoModelForImageTextToText": "own.Own"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto_map}))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w')\nclass Own: pass\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    with pytest.raises(ValueError, match="custom code"):
        load(tmp_path)
    assert not (tmp_path / "was-run").exists()


def test_a_family_that_is_not_supported_is_refused_before_its_weights_are_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip"}))
    with pytest.raises(
        ValueError, match=r"base models of type 'blip' are not supported; supported: ernie4_5_vl_moe, .*llava_onevision"
    ):
        load_base(tmp_path)
