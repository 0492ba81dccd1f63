"""LoRA layers inside a base: the mode they are in, ranks by kind of layer, rsLoRA and DoRA, against formulas and against PEFT."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import peft
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file

from cases import CASES, patched, shake, side_tokens, small_config
from pave import LoraSettings, PatchConfig, attach_patch, detach_patch, load_patch, save_patch
from pave.patching import lora, patch_parameters
from pave.patching.convert import export_patch
from pave.patching.cost import patch_cost
from signing import resign

CONFIG = PatchConfig(side_channels={}, lora=LoraSettings(rank=2, dropout=0.9), storage_dtype="float32")
TARGETS = ("q_proj", "v_proj", "down_proj")
BY_KIND = LoraSettings(
    rank=4, ranks={"q_proj": 1, "down_proj": 6}, alpha=4.0, alphas={"down_proj": 9.0}, targets=TARGETS
)  # fmt: skip
VARIANTS = {
    "ranks": BY_KIND,
    "rslora": replace(BY_KIND, use_rslora=True),
    "dora": replace(BY_KIND, use_dora=True),
    "dora and rslora": replace(BY_KIND, use_dora=True, use_rslora=True),
    "gaussian": replace(BY_KIND, init="gaussian"),
}


@pytest.fixture(params=VARIANTS)
def settings(request):
    return VARIANTS[request.param]


def config_of(settings, missing_channel="base"):
    return replace(small_config(missing_channel=missing_channel), lora=settings)


def logits(model, batch, side=None, **more):
    with torch.no_grad():
        return model(**batch, **({} if side is None else {"side_channels": {"audio": side}}), **more).logits


def test_dropout_follows_the_mode_of_the_model_that_is_patched():
    """A patch attached to a model in eval mode must not drop anything; one in training mode must."""
    case = CASES["llava_onevision"]
    for training in (False, True):
        model, processor = case.build()
        batch = case.batch(processor)
        shake(attach_patch(model.train(training), CONFIG))
        with torch.no_grad():
            assert torch.equal(model(**batch).logits, model(**batch).logits) != training


# --- what a layer computes


def effective_weights(model, settings):
    """The weight of every updated layer, by the formulas of LoRA, rsLoRA and DoRA, from the tensors as they are saved."""
    tensors = {key: value.double() for key, value in lora.state_dict(model, "default").items()}
    out = {}
    for key in [k for k in tensors if k.endswith("lora_A.weight")]:
        path = key.removesuffix(".lora_A.weight").removeprefix("base_model.model.")
        kind = path.rsplit(".", 1)[-1]
        rank = {"q_proj": 1, "v_proj": 4, "down_proj": 6}[kind]
        alpha = {"q_proj": 4.0, "v_proj": 4.0, "down_proj": 9.0}[kind]
        down, up = tensors[key], tensors[key.replace("lora_A", "lora_B")]
        assert down.shape[0] == rank == up.shape[1]
        scale = alpha / (math.sqrt(rank) if settings.use_rslora else rank)
        weight = model.get_submodule(path).get_base_layer().weight.double() + scale * up @ down
        if settings.use_dora:
            length = tensors[key.replace("lora_A.weight", "lora_magnitude_vector")]
            weight = weight * (length / weight.norm(dim=1))[:, None]
        out[path] = weight
    return out


def plain_with(case, weights, strength=1.0):
    """The base with these weights instead, moved there by a share ``strength`` of the way."""
    plain, _ = case.build()
    with torch.no_grad():
        for path, weight in weights.items():
            own = plain.get_submodule(path).weight
            own.copy_(own.double() + strength * (weight - own.double()))
    return plain


@pytest.mark.parametrize("strength", [1.0, 0.35, 1.6])
def test_every_layer_is_the_formula_at_every_strength(settings, strength):
    """Strength moves every weight along the straight line from the base's to the patch's, also where the update is no sum (DoRA)."""
    case = CASES["llava_onevision"]
    model, processor = patched(case, config_of(settings, "lora_only"))
    batch = case.batch(processor)
    model.patch_strength = strength
    found = logits(model, batch)
    batch.pop("frame_times")
    expected = logits(plain_with(case, effective_weights(model, settings), strength), batch)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)
    assert not torch.allclose(found, logits(case.build()[0], batch), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_patch_is_the_base_bit_for_bit(settings, dtype):
    case = CASES["qwen2_5_vl"]
    model, processor = case.build()
    model = model.to(dtype)
    batch = case.batch(processor)
    times = batch.pop("frame_times")
    batch["pixel_values_videos"] = batch["pixel_values_videos"].to(dtype)
    base = logits(model, batch)
    attach_patch(model, config_of(settings, "lora_only"))
    assert torch.equal(logits(model, batch), base)
    assert torch.equal(logits(model, batch, side_tokens(), frame_times=times), base)
    assert {p.dtype for p in patch_parameters(model)} == {torch.float32}


def test_a_row_without_its_side_channel_is_the_base_and_the_others_are_themselves(settings):
    case = CASES["llava_onevision"]
    model, processor = patched(case, config_of(settings))
    batch = case.batch(processor, ("what sound?", "what sound?"))
    side = side_tokens()
    side.valid_BK[1] = False
    mixed = logits(model, batch, side)
    alone = logits(model, batch, side_tokens())
    times = batch.pop("frame_times")
    base = logits(case.build()[0], batch)
    assert torch.equal(mixed[1], base[1])
    torch.testing.assert_close(mixed[0], alone[0], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(alone[0], base[0], atol=1e-3)
    with model.patch_disabled():
        assert torch.equal(logits(model, batch, side_tokens(), frame_times=times), base)
    model.patch_strength = 0.0
    assert torch.equal(logits(model, batch, side_tokens(), frame_times=times), base)
    detach_patch(model)
    assert torch.equal(logits(model, batch), base)


def test_a_mixed_batch_of_half_strength_is_the_calls_apart(settings):
    case = CASES["qwen2_5_vl"]
    model, processor = patched(case, config_of(settings))
    model.patch_strength = 0.5
    side = side_tokens()
    batch = case.batch(processor, ("what sound?", "what sound?"))
    lengths = batch["attention_mask"].sum(1)
    side.valid_BK[1] = False
    mixed = logits(model, batch, side)
    single = case.batch(processor, ("what sound?",))
    apart = logits(model, single, side.select(torch.tensor([0])))
    torch.testing.assert_close(mixed[0, -lengths[0] :], apart[0], atol=2e-5, rtol=2e-5)


def test_gradients_reach_every_parameter_of_the_update(settings):
    case = CASES["llava_onevision"]
    model, processor = patched(case, config_of(settings))
    batch = case.batch(processor)
    model.train()(**batch, side_channels={"audio": side_tokens()}, labels=batch["input_ids"]).loss.backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in lora.parameters(model, "default"))
    kinds = {key.rsplit("lora_", 1)[1] for key in lora.state_dict(model, "default")}
    assert kinds == {"A.weight", "B.weight"} | ({"magnitude_vector"} if settings.use_dora else set())


# --- on disk, in PEFT, in numbers


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_it_comes_back_from_disk_and_a_copy_is_itself(settings, storage, tmp_path):
    case = CASES["llava_onevision"]
    model, processor = patched(case, replace(config_of(settings), storage_dtype=storage))
    batch = case.batch(processor)
    own = {key: value.clone() for key, value in lora.state_dict(model, "default").items()}
    expected = logits(model, batch, side_tokens())
    assert torch.equal(logits(copy.deepcopy(model), batch, side_tokens()), expected)
    save_patch(model, tmp_path / "patch", processor=processor)
    fresh, _ = case.build()
    load_patch(fresh, tmp_path / "patch", processor=processor)
    for key, value in lora.state_dict(fresh, "default").items():
        exact = storage == "float32" or key.endswith("lora_magnitude_vector")
        assert torch.equal(value, own[key] if exact else own[key].bfloat16().float()), key
    if storage == "float32":
        assert torch.equal(logits(fresh, batch, side_tokens()), expected)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("exported", [False, True])
def test_peft_alone_computes_the_same(settings, merged, exported, tmp_path):
    case = CASES["llava_onevision"]
    model, processor = patched(case, config_of(settings, "lora_only"))
    batch = case.batch(processor)
    expected = logits(model, batch)
    folder = save_patch(model, tmp_path / "patch") / "lora"
    if exported:
        folder = export_patch(tmp_path / "patch", tmp_path / "out").folder
    batch.pop("frame_times")
    plain = peft.PeftModel.from_pretrained(case.build()[0], folder).eval()
    found = logits(plain.merge_and_unload() if merged else plain, batch)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_save_pretrained_writes_the_base_alone(settings, tmp_path):
    case = CASES["llava_onevision"]
    model, _ = case.build()
    model.save_pretrained(tmp_path / "plain")
    shake(attach_patch(model, config_of(settings)))
    model.save_pretrained(tmp_path / "patched")
    plain, saved = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "patched"))
    assert plain.keys() == saved.keys() and all(torch.equal(plain[key], saved[key]) for key in plain)


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_the_cost_is_what_lies_in_the_files(name, settings, storage, tmp_path):
    model, _ = patched(CASES[name], replace(config_of(settings), storage_dtype=storage))
    save_patch(model, tmp_path)
    cost = patch_cost(model.config, replace(config_of(settings), storage_dtype=storage))
    for found, parameters, file in (
        (cost.fusion_bytes, cost.fusion_parameters, "patch.safetensors"),
        (cost.lora_bytes, cost.lora_parameters, "lora/adapter_model.safetensors"),
    ):
        tensors = safetensors.torch.load_file(tmp_path / file).values()
        assert (found, parameters) == (sum(t.nbytes for t in tensors), sum(t.numel() for t in tensors))


def test_dora_with_one_tensor_less_is_refused(tmp_path):
    case = CASES["llava_onevision"]
    model, _ = patched(case, config_of(VARIANTS["dora"]))
    file = save_patch(model, tmp_path) / "lora" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.pop(next(key for key in tensors if key.endswith("magnitude_vector")))
    safetensors.torch.save_file(tensors, file)
    resign(tmp_path)
    with pytest.raises(ValueError, match=r"1 tensor.s. missing, the first is .*lora_magnitude_vector"):
        load_patch(case.build()[0], tmp_path)


def test_a_rank_of_one_kind_that_does_not_go_with_the_tensors_is_refused(tmp_path):
    case = CASES["llava_onevision"]
    model, _ = patched(case, config_of(BY_KIND))
    folder = save_patch(model, tmp_path)
    for name, change in (
        ("patch_config.json", lambda v: v["patch"]["lora"]["ranks"].update(down_proj=5)),
        ("lora/adapter_config.json", lambda v: v["rank_pattern"].update(down_proj=5)),
    ):
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))
    resign(folder)
    with pytest.raises(ValueError, match=r"down_proj\.lora_A\.weight has shape \(6, 64\), patch_config\.json says rank 5"):
        load_patch(case.build()[0], folder)


def test_a_kind_that_is_named_but_not_there_is_refused_before_memory_is_taken_for_it(tmp_path):
    case = CASES["llava_onevision"]
    model, _ = patched(case, config_of(BY_KIND))
    folder = save_patch(model, tmp_path)
    for name, change in (
        (
            "patch_config.json",
            lambda v: v["patch"]["lora"].update(targets=[*TARGETS, "k_proj"], ranks={**BY_KIND.ranks, "k_proj": 4000}),
        ),
        ("lora/adapter_config.json", lambda v: v["rank_pattern"].update(k_proj=4000)),
    ):
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))
    resign(folder)
    with pytest.raises(
        ValueError, match=r"adapter_model\.safetensors: no tensor is for k_proj, which patch_config\.json names"
    ):
        load_patch(case.build()[0], folder)


# --- settings that are refused


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_initialisations_that_move_the_base_are_refused_with_the_reason(init):
    with pytest.raises(
        ValueError, match=rf"init '{init}' subtracts the first update from the base's weights, which a patch never"
    ):
        LoraSettings(init=init)


def test_what_ranks_and_alphas_refuse():
    for values, message in (
        ({"ranks": {"o_proj": 4}}, r"ranks names 'o_proj', which is not in targets \(q_proj, v_proj\)"),
        ({"ranks": {"q_proj": 0}}, "ranks.q_proj must be positive and finite, got 0"),
        ({"alphas": {"q_proj": float("inf")}}, "alphas.q_proj must be positive and finite, got inf"),
        ({"init": "orthogonal"}, "init is 'uniform' or 'gaussian', which start exactly at the base, got 'orthogonal'"),
    ):
        with pytest.raises(ValueError, match=message):
            LoraSettings.from_dict(values)
