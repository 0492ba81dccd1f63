"""Patches as plain files: PEFT loads the adapter on the base, and the JSON file says the rest."""

from __future__ import annotations

import dataclasses
import json

import peft
import pytest
import torch
from safetensors.torch import load_file

from cases import CASES, patched, shake, side_tokens, small_config
from pave import attach_patch, load_patch, save_patch
from pave.patching import read_record
from pave.patching.convert import export_beside, export_merged, export_patch
from pave.patching.convert import merged as merged_module
from pave.video_llms.loading import load_base
from tiny_runs import recorded_as, save_base_and_patch


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


# --- merged into the base, or left to PEFT


@pytest.fixture(params=CASES)
def merged(request, tmp_path):
    """(case, saved base, saved patch, batch with its channel, what the patch makes of it)."""
    case = CASES[request.param]
    model, processor = case.build()
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    base, _ = load_base(tmp_path / "base", dtype="float32")
    shake(attach_patch(base, small_config()))
    save_patch(base, tmp_path / "patch", processor=processor)
    batch = case.batch(processor) | {"side_channels": {"audio": side_tokens()}}
    with torch.no_grad():
        return tmp_path, batch, base.eval()(**batch).logits


def test_a_base_with_the_update_in_its_weights_and_the_fusion_beside_it(merged):
    folder, batch, wanted = merged
    made = export_merged(folder / "patch", folder / "out", base=folder / "base")
    assert (made.base, made.patch, made.adapter) == (folder / "out" / "base", folder / "out" / "patch", None)
    model, processor = load_base(made.base, dtype="float32")
    load_patch(model, made.patch, processor=processor)
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    text = {key: value for key, value in batch.items() if key not in ("side_channels", "frame_times")}
    base, _ = load_base(folder / "base", dtype="float32")
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(**batch).logits, wanted, atol=1e-5, rtol=1e-5)
        assert (
            float((model(**text).logits - base.eval()(**text).logits).abs().max()) > 1e-3
        )  # the base's rows are not the base's
    with pytest.raises(ValueError, match="other weights"):
        load_patch(base, made.patch)
    again, _ = load_base(made.base, dtype="float32")
    with pytest.raises(ValueError, match="other weights"):
        load_patch(again, folder / "patch")
    assert read_record(made.patch).provenance["merged"]["files"] == read_record(folder / "patch").files


def test_peft_keeps_the_update_and_the_fusion_stands_beside_it(merged):
    folder, batch, wanted = merged
    made = export_beside(folder / "patch", folder / "out")
    assert (made.base, made.adapter) == (None, folder / "out" / "adapter")
    base, processor = load_base(folder / "base", dtype="float32")
    model = peft.PeftModel.from_pretrained(base, made.adapter).eval()
    load_patch(model.get_base_model(), made.patch, processor=processor)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, wanted, atol=1e-5, rtol=1e-5)
        with model.disable_adapter():
            assert float((model(**batch).logits - wanted).abs().max()) > 1e-3


def test_what_cannot_be_merged_is_refused(tmp_path):
    case = CASES["llava_onevision"]
    for name, config in (("none", small_config(lora=False)), ("plain", small_config())):
        model, _ = patched(case, config)
        save_patch(model, tmp_path / name)
    with pytest.raises(ValueError, match="none has no LoRA, so there is nothing to merge"):
        export_beside(tmp_path / "none", tmp_path / "out")
    with pytest.raises(ValueError, match="plain: the patch does not say which base it was trained on; give it as base"):
        export_merged(tmp_path / "plain", tmp_path / "out")
    with pytest.raises(ValueError, match="are one folder or inside each other"):
        export_merged(tmp_path / "plain", tmp_path / "plain", base="base")
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="are one folder or inside each other"):
        export_merged(tmp_path / "plain", tmp_path / "base", base=tmp_path / "base")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"newline": "grid"}, "newline"),
        ({"vocabulary": 300}, "vocabulary"),
        ({"newline": "grid", "vocabulary": 300}, "newline and vocabulary"),
    ],
)
def test_what_only_the_patch_can_keep_is_not_lost(changes, named, tmp_path):
    """Without a channel no patch is written that could hold it."""
    config = dataclasses.replace(small_config(), side_channels={}, missing_channel="lora_only", **changes)
    model, _ = patched(CASES["llava_onevision"], config)
    save_patch(model, tmp_path / "patch")
    for export in (export_merged, export_beside):
        with pytest.raises(ValueError, match=f"no patch would remain to keep its {named}, which"):
            export(tmp_path / "patch", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_base_is_the_one_that_the_patch_names(tmp_path, monkeypatch):
    """A relative folder is found from the patch, wherever one stands; of an id on the hub its revision is asked for."""
    base, patch = save_base_and_patch(tmp_path / "project")
    relative = recorded_as(tmp_path / "project" / "runs" / "one", patch, "base")
    monkeypatch.chdir(tmp_path)
    made = export_merged(relative, tmp_path / "out")
    given = export_merged(patch, tmp_path / "given", base=base)
    for file in sorted(path.name for path in given.base.glob("*.safetensors")):
        found, wanted = load_file(made.base / file), load_file(given.base / file)
        assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    asked = []

    def load(name, *, revision=None, dtype):
        asked.append((name, revision))
        return load_base(base, dtype=dtype)

    monkeypatch.setattr(merged_module, "load_base", load)
    export_merged(recorded_as(tmp_path / "hub", patch, "org/base-7b", "abc123"), tmp_path / "third")
    assert asked == [("org/base-7b", "abc123")]
