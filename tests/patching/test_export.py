"""Patches as plain files: PEFT loads the adapter on the base, and the JSON file says the rest."""

from __future__ import annotations

import dataclasses
import json

import peft
import pytest
import torch
from safetensors.torch import load_file

from cases import CASES, patched, side_tokens, small_config
from pave import load_patch, save_patch
from pave.patching.convert import export_patch


@pytest.mark.parametrize("family", CASES)
def test_peft_loads_the_adapter_on_the_plain_base(family, tmp_path):
    case = CASES[family]
    model, processor = patched(case, small_config(missing_channel="lora_only"))
    batch = case.batch(processor)
    times = batch.pop("frame_times")
    with torch.no_grad():
        wanted = model(**batch).logits
    save_patch(model, tmp_path / "patch")
    exported = export_patch(tmp_path / "patch", tmp_path / "out")
    assert exported.files == ("adapter_config.json", "adapter_model.safetensors", "fusion.safetensors", "pave_export.json")
    base, _ = case.build()
    plain = peft.PeftModel.from_pretrained(base, tmp_path / "out").eval()
    layers = [name for name, module in plain.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
    assert len(layers) == 2 * 3
    with torch.no_grad():
        torch.testing.assert_close(plain(**batch).logits, wanted, atol=1e-5, rtol=1e-5)
        base, _ = case.build()
        assert not torch.allclose(base(**batch).logits, wanted, atol=1e-3)
    fusion = load_file(tmp_path / "out" / "fusion.safetensors")
    own = load_file(tmp_path / "patch" / "patch.safetensors")
    assert fusion.keys() == own.keys() and all(torch.equal(fusion[key], own[key]) for key in own)
    base, _ = case.build()
    with torch.no_grad():
        again = load_patch(base, tmp_path / "patch")(**batch, frame_times=times, side_channels={"audio": side_tokens()}).logits
    assert not torch.allclose(again, wanted, atol=1e-3)


def test_the_settings_file_says_what_an_engine_must_do(tmp_path):
    config = dataclasses.replace(small_config(missing_channel="lora_only"), newline="grid", vocabulary=300)
    model, _ = patched(CASES["llava_onevision"], config)
    save_patch(model, tmp_path / "patch")
    export_patch(tmp_path / "patch", tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "pave_export.json").read_text())
    assert settings["patch"] == json.loads((tmp_path / "patch" / "patch_config.json").read_text())["patch"]
    assert settings["patch"]["newline"] == "grid"
    assert [sentence.split()[0] for sentence in settings["engine_must"]] == ["fuse", "put", "leave"]
    assert "300" in settings["engine_must"][2]
    assert settings["files"] == {"fusion": "fusion.safetensors", "lora": "adapter_model.safetensors"}


def test_a_patch_without_lora_has_no_adapter(tmp_path):
    model, _ = patched(CASES["llava_onevision"], small_config(lora=False))
    save_patch(model, tmp_path / "patch")
    exported = export_patch(tmp_path / "patch", tmp_path / "out")
    assert exported.files == ("fusion.safetensors", "pave_export.json")
    assert exported.duties[-1] == "switch LoRA off for videos without a side channel" or len(exported.duties) == 1
    with pytest.raises(ValueError, match="no patch"):
        export_patch(tmp_path / "out", tmp_path / "again")
