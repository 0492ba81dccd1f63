"""Going on from a saved patch: what it had is there bit for bit, what is new changes nothing yet, and what does not fit is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from cases import CASES, WIDTH, patched, side_tokens, small_config
from pave import FusionConfig, LoraSettings, SideChannelConfig, save_patch
from pave.patching import continue_patch, is_patched, patch_digest, patch_parameters, patch_slot
from signing import resign

CASE = CASES["llava_onevision"]


def wider(config, **changes):
    """The same with a further channel."""
    fusion = FusionConfig(width=8, embed_width=8, num_heads=2, num_layers=1, standardize=True)
    return replace(
        config, side_channels={**config.side_channels, "depth": SideChannelConfig(width=3, fusion=fusion)}, **changes
    )


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """A patch that acts, with measured features."""
    folder = tmp_path_factory.mktemp("parent") / "patch"
    model, processor = patched(CASE, small_config(standardize=True))
    patch_slot(model).fusions["audio"].standardize.measure(
        torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(3)) * 4 + 1
    )
    save_patch(model, folder, processor=processor)
    batch = CASE.batch(processor)
    with torch.no_grad():
        return folder, batch, model(**batch, side_channels={"audio": side_tokens()}).logits


@pytest.mark.parametrize("seed", [0, 5])
def test_a_wider_patch_begins_as_the_one_it_goes_on_from(parent, seed):
    folder, batch, expected = parent
    model, processor = CASE.build()
    record = continue_patch(model, wider(small_config(standardize=True)), folder, processor=processor, seed=seed)
    assert list(record.patch.side_channels) == ["audio"]
    depth = side_tokens(per_step=1, width=3)
    for sides in ({"audio": side_tokens()}, {"audio": side_tokens(), "depth": depth}):
        with torch.no_grad():
            assert torch.equal(model(**batch, side_channels=sides).logits, expected)
    saved = safetensors.torch.load_file(folder / "patch.safetensors")
    own = patch_slot(model).fusions.state_dict()
    assert {key for key in own if key.startswith("audio.")} == set(saved)
    assert all(torch.equal(own[key], value) for key, value in saved.items())
    assert float(own["audio.standardize.deviation_C"].min()) > 2 and float(own["depth.standardize.deviation_C"].max()) == 1
    assert float(own["depth.side_embed.weight"].abs().max()) > 0 and all(p.requires_grad for p in patch_parameters(model))


def test_what_may_differ(parent):
    folder, batch, expected = parent
    config = small_config(standardize=True, dropout=0.2)
    config = replace(config, lora=replace(config.lora, dropout=0.3), missing_channel="lora_only", storage_dtype="bfloat16")
    model, _ = CASE.build()
    continue_patch(model.eval(), config, folder)
    with torch.no_grad():
        assert torch.equal(model(**batch, side_channels={"audio": side_tokens()}).logits, expected)


def test_lora_may_be_new(tmp_path):
    model, processor = patched(CASE, small_config(lora=False))
    save_patch(model, tmp_path)
    batch = CASE.batch(processor)
    fresh, _ = CASE.build()
    continue_patch(fresh, small_config(), tmp_path)
    with torch.no_grad():
        expected = model(**batch, side_channels={"audio": side_tokens()}).logits
        assert torch.equal(fresh(**batch, side_channels={"audio": side_tokens()}).logits, expected)


def test_what_does_not_fit_is_refused_in_a_sentence_and_the_model_is_as_it_was(parent, tmp_path):
    folder, _, _ = parent
    same = small_config(standardize=True)
    other = CASE.build()[0]
    with torch.no_grad():
        other.get_input_embeddings().weight.add_(1)
    for model, config, message in (
        (other, same, r"trained on another base \(.*\), from which this one differs in: other weights; go on from it on its own base"),
        (None, replace(wider(same), side_channels={"depth": wider(same).side_channels["depth"]}), "the side channel 'audio', which this one lacks"),
        (None, replace(same, lora=None), "has LoRA, and this one has none"),
        (None, replace(same, lora=LoraSettings(rank=4)), r"is no part of this one: lora\.alpha is 4\.0 there and 32\.0 here"),
        (None, small_config(standardize=True, num_layers=1), r"side_channels\.audio\.fusion\.num_layers is 2 there and 1 here"),
        (None, replace(same, missing_channel="lora_only", vocabulary=10), r"vocabulary is None there and 10 here"),
    ):  # fmt: skip
        model = CASE.build()[0] if model is None else model
        with pytest.raises(ValueError, match=message):
            continue_patch(model, config, folder)
        assert not is_patched(model)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "lora").symlink_to(folder / "lora")
    shutil.copy(folder / "patch_config.json", damaged)
    tensors = safetensors.torch.load_file(folder / "patch.safetensors")
    safetensors.torch.save_file({k: v for k, v in tensors.items() if "mean_C" not in k}, damaged / "patch.safetensors")
    resign(damaged)
    model = CASE.build()[0]
    with pytest.raises(ValueError, match=r"1 tensor\(s\) missing, the first is audio\.standardize\.mean_C"):
        continue_patch(model, same, damaged)
    assert not is_patched(model)


def test_the_digest_is_that_of_the_tensors(parent, tmp_path):
    folder, _, _ = parent
    model, _ = CASE.build()
    continue_patch(model, small_config(standardize=True), folder)
    save_patch(model, tmp_path / "copy", provenance={"another": "record"})
    assert patch_digest(tmp_path / "copy") == patch_digest(folder)
    with torch.no_grad():
        patch_parameters(model)[-1].add_(1)
    save_patch(model, tmp_path / "other")
    assert patch_digest(tmp_path / "other") != patch_digest(folder)
