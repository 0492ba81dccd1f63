"""``pave show`` against counts made from the real modules."""

import json
import shutil

import pytest
import torch

from cases import CASES, small_config
from pave import PatchConfig, attach_patch, save_patch
from pave.cli import main
from pave.patching import patch_parameter_groups
from signing import resign


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(folder of the base, folder of a patch on it, parameters of its parts)."""
    folder = tmp_path_factory.mktemp("saved")
    model, processor = CASES["llava_onevision"].build()
    base_parameters = sum(p.numel() for p in model.parameters())
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    attach_patch(model, small_config())
    save_patch(model, folder / "patch", processor=processor, provenance={"seed": 5})
    groups = patch_parameter_groups(model)
    lora = sum(p.numel() for p in groups.pop("lora"))
    fusion = sum(p.numel() for group in groups.values() for p in group)
    return folder, {"base": base_parameters, "fusion": fusion, "lora": lora}


def show(capsys, *arguments):
    assert main(["show", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_saved_patch_counts_what_is_in_its_files(saved, capsys):
    folder, counts = saved
    data = show(capsys, folder / "patch", "--base", folder / "base", "--frames", 4)
    cost = data["cost"]
    assert cost["base_parameters"] == counts["base"]
    assert cost["fusion_parameters"] == counts["fusion"] and cost["lora_parameters"] == counts["lora"]
    assert cost["patch_bytes"] == 4 * (counts["fusion"] + counts["lora"])
    assert PatchConfig.from_dict(data["patch"]) == small_config()
    assert data["provenance"] == {"seed": 5}
    assert data["prompt"]["llm_tokens"] == 4 * 4 + 1 + 64


def test_the_table_for_people_shows_the_same_numbers(saved, capsys):
    folder, counts = saved
    assert main(["show", str(folder / "patch"), "--base", str(folder / "base")]) == 0
    out = capsys.readouterr().out
    for number in counts.values():
        assert f"{number:,}" in out
    assert "side channel audio" in out and "LoRA rank 2 on q_proj, v_proj, down_proj" in out


def test_presets_on_a_7b_base_need_no_weights(capsys):
    compact = show(capsys, "--preset", "compact")
    assert compact["base"] == "llava-onevision-qwen2-7b" and compact["cost"]["base_parameters"] > 7e9
    assert compact["cost"]["patch_bytes"] <= 20e6
    paper = show(capsys, "--preset", "paper", "--base", "llava-onevision-qwen2-7b")
    assert paper["cost"]["lora_parameters"] == 161_480_704
    assert PatchConfig.from_dict(paper["patch"]) == PatchConfig.paper(audio=1024)


def test_configs_as_json(tmp_path, capsys):
    config = PatchConfig.compact(audio=64)
    (tmp_path / "patch.json").write_text(json.dumps(config.to_dict()))
    data = show(capsys, "--config", tmp_path / "patch.json", "--base", "llava-onevision-qwen2-0.5b")
    assert PatchConfig.from_dict(data["patch"]) == config
    for text, message in (
        ("{", "not JSON"),
        ('{"side_channels": {}, "channel": 1}', "unknown key 'channel'"),
        ("[1]", "a JSON object in braces is needed"),
    ):
        (tmp_path / "patch.json").write_text(text)
        assert main(["show", "--config", str(tmp_path / "patch.json")]) == 2
        err = capsys.readouterr().err
        assert message in err and "patch.json" in err and err.count("\n") == 1


def test_what_cannot_be_shown_is_said(saved, tmp_path, capsys):
    folder, _ = saved
    for arguments, message in (
        ([str(folder / "patch"), "--preset", "paper"], "PATCH and --preset both say which patch to show"),
        ([str(tmp_path)], "it has no patch_config.json"),
        ([str(tmp_path / "nowhere")], "no patch at"),
        (["--base", str(tmp_path)], "no config of a base at"),
        (["--config", str(tmp_path / "nowhere.yaml")], "nowhere.yaml"),
    ):
        assert main(["show", *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == "" and message in err and err.startswith("pave: ")


def test_a_patch_whose_base_is_not_on_this_machine_asks_for_it(saved, tmp_path, capsys):
    folder, counts = saved
    shutil.copytree(folder / "patch", tmp_path / "patch")
    record = json.loads((tmp_path / "patch" / "patch_config.json").read_text())
    record["base"]["model_id"] = str(tmp_path / "elsewhere")
    (tmp_path / "patch" / "patch_config.json").write_text(json.dumps(record))
    resign(tmp_path / "patch")
    assert main(["show", str(tmp_path / "patch")]) == 2
    err = capsys.readouterr().err
    assert f"names the base '{tmp_path / 'elsewhere'}', give another with --base" in err
    shown = show(capsys, tmp_path / "patch", "--base", folder / "base")
    assert shown["cost"]["base_parameters"] == counts["base"]


def test_no_weights_are_loaded(monkeypatch, capsys):
    """The 7B base is built without memory for its weights: nothing larger than a megabyte is ever allocated."""
    largest = 0
    empty = torch.empty

    def watched(*args, **kwargs):
        nonlocal largest
        made = empty(*args, **kwargs)
        if made.device.type != "meta":
            largest = max(largest, made.numel() * made.element_size())
        return made

    monkeypatch.setattr(torch, "empty", watched)
    show(capsys, "--preset", "compact")
    assert largest < 2**20
