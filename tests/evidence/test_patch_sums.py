"""Patches added up: the folder computes exactly the sum of what its parts do, and what cannot be added is refused."""

import json
from dataclasses import replace

import pytest
import torch

from cases import CASES, patched, shake, side_tokens, small_config
from evidence.patch_sums import add_patches
from pave import LoraSettings, attach_patch, load_patch, save_patch
from pave.config import PatchConfig
from pave.patching import patch_slot, read_record
from pave.patching.checkpoint import read_files
from signing import resign

CASE = CASES["llava_onevision"]


def saved(folder, channel, seed, lora, **changes):
    """A patch of one channel that acts."""
    small = small_config()
    config = replace(small, side_channels={channel: small.side_channels["audio"]}, lora=lora, **changes)
    model, processor = patched(CASE, config, trained=False)
    save_patch(shake(model, seed, 0.2), folder, processor=processor)
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Two patches whose updates have other ranks and other scales, one of them by rsLoRA; and their sum."""
    root = tmp_path_factory.mktemp("parts")
    targets = ("q_proj", "v_proj")
    one = saved(root / "one", "audio", 3, LoraSettings(rank=2, ranks={"v_proj": 3}, alpha=4.0, targets=targets))
    other = saved(root / "other", "sensor", 4, LoraSettings(rank=4, alpha=10.0, targets=targets, use_rslora=True))
    return one, other, add_patches([one, other], root / "sum")


def deltas(folder):
    """``scale B A`` of every layer, in float64."""
    record = read_record(folder)
    tensors = read_files(folder, record).adapter
    out = {}
    for key in tensors:
        if key.endswith("lora_A.weight"):
            name = key.removesuffix(".lora_A.weight")
            scale = record.patch.lora.scale_of(name.rpartition(".")[2])
            out[name] = scale * tensors[f"{name}.lora_B.weight"].double() @ tensors[key].double()
    return out


def test_updates_and_fusions_are_the_sums(parts):
    one, other, added = parts
    first, second, total = (deltas(folder) for folder in parts)
    assert len(total) == 4 and set(total) == set(first)
    for name, value in total.items():
        torch.testing.assert_close(value, first[name] + second[name], rtol=1e-6, atol=1e-7)
        assert float(second[name].abs().max()) > 0.01 < float(first[name].abs().max())
    lora = read_record(added).patch.lora
    assert (lora.rank_of("q_proj"), lora.rank_of("v_proj")) == (6, 7)
    assert (lora.scale_of("q_proj"), lora.scale_of("v_proj")) == (2.0, pytest.approx(4 / 3))
    fusion = read_files(added, read_record(added)).fusion
    for folder in (one, other):
        for key, value in read_files(folder, read_record(folder)).fusion.items():
            assert torch.equal(fusion.pop(key), value)
    assert not fusion


def test_logits_are_those_of_a_base_with_both_updates_in_its_weights_and_both_residuals_in_its_tokens(parts):
    one, other, added = parts
    model, processor = CASE.build()
    batch = CASE.batch(processor)
    sides = {"audio": side_tokens(), "sensor": side_tokens(seed=5)}
    load_patch(model, added, processor=processor)
    plain, _ = CASE.build()
    layers = dict(plain.named_modules())
    with torch.no_grad():
        for folder in (one, other):
            for name, delta in deltas(folder).items():
                layers[name.removeprefix("base_model.model.")].weight.add_(delta.float())
    channels = read_record(added).patch.side_channels
    attach_patch(plain, PatchConfig(side_channels=channels, lora=None))
    for folder in (one, other):
        patch_slot(plain).fusions.load_state_dict(read_files(folder, read_record(folder)).fusion, strict=False)
    with torch.no_grad():
        for given in (sides, {"audio": sides["audio"]}, {"sensor": sides["sensor"]}):
            logits = model(**batch, side_channels=given).logits
            torch.testing.assert_close(logits, plain(**batch, side_channels=given).logits, rtol=1e-4, atol=1e-5)
        alone, _ = CASE.build()
        load_patch(alone, one, processor=processor)
        differs = alone(**batch, side_channels={"audio": sides["audio"]}).logits
        mine = model(**batch, side_channels={"audio": sides["audio"]}).logits
        assert float((differs - mine).abs().max()) > 1e-3  # the other patch's LoRA acts too
        base, _ = CASE.build()
        assert torch.equal(model(**batch).logits, base(**batch).logits)


def test_equal_scales_change_no_factor(tmp_path):
    lora = LoraSettings(rank=2, alpha=3.0, targets=("q_proj",))
    one, other = (saved(tmp_path / name, name, seed, lora) for seed, name in enumerate(("audio", "sensor")))
    added = add_patches([one, other], tmp_path / "sum")
    pieces = [read_files(folder, read_record(folder)).adapter for folder in (one, other)]
    whole = read_files(added, read_record(added)).adapter
    for key, value in whole.items():
        assert torch.equal(value, torch.cat([piece[key] for piece in pieces], dim=0 if "lora_A" in key else 1))
    settings = read_record(added).patch.lora
    assert (settings.rank, settings.alpha, settings.scale_of("q_proj")) == (4, 6.0, 1.5)


def test_what_cannot_be_added_is_refused(parts, tmp_path):
    one = parts[0]
    plain = LoraSettings(rank=2, alpha=4.0, targets=("q_proj", "v_proj"))
    for name, channel, lora, changes, message in (
        ("dora", "sensor", replace(plain, use_dora=True), {}, "need plain LoRA on the same layers"),
        ("layers", "sensor", replace(plain, targets=("q_proj",)), {}, "need plain LoRA on the same layers"),
        ("none", "sensor", None, {}, "need plain LoRA on the same layers"),
        ("missing", "sensor", plain, {"missing_channel": "lora_only"}, "missing_channel, newline, vocabulary"),
        ("channel", "audio", plain, {}, "have a channel of one name"),
    ):
        with pytest.raises(ValueError, match=message):
            add_patches([one, saved(tmp_path / name, channel, 1, lora, **changes)], tmp_path / "out")
    record = tmp_path / "channel" / "patch_config.json"
    values = json.loads(record.read_text())
    values["base"]["architecture"]["model_type"] = "another"
    record.write_text(json.dumps(values))
    resign(tmp_path / "channel")
    with pytest.raises(ValueError, match="trained on another base"):
        add_patches([one, tmp_path / "channel"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
