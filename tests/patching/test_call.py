"""What a call refuses, and which rows of a batch its videos stand in."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cases import CASES, patched, side_tokens, small_config
from pave import PatchConfig, SideTokens, attach_patch, detach_patch
from pave.patching import patch_parameters
from pave.patching.slot import rows_of_videos

NAN = float("nan")


@pytest.fixture(scope="module")
def model_and_batch():
    case = CASES["llava_onevision"]
    model, processor = patched(case)
    return model, case.batch(processor), processor


def test_videos_are_counted_into_rows():
    ids = torch.tensor([[7, 7, 7, 1], [1, 2, 3, 4], [7, 7, 1, 7]])
    assert rows_of_videos(ids == 7, [3, 2, 1]) == [0, 2, 2]
    assert rows_of_videos(ids == 7, [1, 2, 3]) == [0, 0, 2]
    with pytest.raises(ValueError, match="6 video placeholders .*make 5 tokens"):
        rows_of_videos(ids == 7, [3, 2])
    with pytest.raises(ValueError, match="row 0 has room for 3"):
        rows_of_videos(ids == 7, [4, 2])


def test_side_channels_without_a_video_raise(model_and_batch):
    model, batch, processor = model_and_batch
    ids = processor.tokenizer(["what sound?"] * 2, return_tensors="pt")
    given = {"side_channels": {"audio": side_tokens()}, "frame_times": batch["frame_times"]}
    with pytest.raises(ValueError, match=r"side_channels \(audio\) were given, but no video was encoded"):
        model(**ids, **given)
    with pytest.raises(ValueError, match="no video was encoded"):
        model.generate(**ids, **given, max_new_tokens=2)
    side = side_tokens()
    none = SideTokens(side.embeds_BKMC, torch.zeros_like(side.valid_BK), side.times_BK)
    model(**ids, side_channels={"audio": none}, frame_times=batch["frame_times"])  # nothing is lost here


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"side_channels": {"depth": side_tokens()}}, "no channel 'depth'; it has: audio"),
        ({"side_channels": {"audio": side_tokens(width=5)}}, "5 wide, but the patch was made for width 12"),
        ({"side_channels": {"audio": torch.zeros(2, 3, 1, 12)}}, "expected SideTokens, got Tensor"),
        ({"side_channels": {"audio": side_tokens(videos=3)}}, "hold 3 videos, but the call has 2"),
        ({"side_channels": {"audio": SideTokens(torch.zeros(2, 3, 1, 12))}}, "needs SideTokens with times_BK"),
        ({"frame_times": None}, "frame_times is missing"),
        ({"frame_times": torch.zeros(2, 3)}, "times for 3 time steps of the model, but 4 steps were encoded"),
        ({"frame_times": torch.zeros(2, 5)}, "times for 5 time steps of the model, but 4 steps were encoded"),
        ({"frame_times": torch.zeros(2, 4).bfloat16()}, "frame_times came in bfloat16, too coarse for seconds"),
        ({"frame_times": [[0.0, 1.0, 2.0]] * 2}, "times for 3 time steps of the model"),
        ({"frame_times": [[0.0, NAN, 2.0, 3.0, 4.0]] * 2}, "video 0 has no time for step 1; only padding at the end is NaN"),
        ({"frame_times": torch.zeros(3, 4)}, r"must have shape \(2 videos, frames\)"),
    ],
)
def test_bad_calls_get_one_clear_sentence(model_and_batch, change, message):
    model, batch, _ = model_and_batch
    with pytest.raises(ValueError, match=message):
        model(**{**batch, "side_channels": {"audio": side_tokens()}, **change})
    with torch.no_grad():  # and the failed call left nothing behind
        assert torch.isfinite(model(**batch, side_channels={"audio": side_tokens()}).logits).all()


@pytest.mark.parametrize("name", CASES)
def test_inner_modules_can_be_run_inside_patch_call(name):
    case = CASES[name]
    model, processor = patched(case)
    batch = case.batch(processor)
    given = {"side_channels": {"audio": side_tokens()}, "frame_times": batch.pop("frame_times")}
    with torch.no_grad():
        expected = model(**batch, **given, output_hidden_states=True).hidden_states[-1]
        with model.patch_call(batch, **given) as inputs:
            assert torch.equal(model.base_model(**inputs).last_hidden_state, expected)
        assert not torch.allclose(model.base_model(**batch).last_hidden_state, expected, atol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_tuples_instead_of_dictionaries(name):
    case = CASES[name]
    model, processor = patched(case)
    batch = case.batch(processor)
    given = {"side_channels": {"audio": side_tokens()}}
    with torch.no_grad():
        assert torch.equal(model(**batch, **given, return_dict=False)[0], model(**batch, **given).logits)
    model.train()  # no channel in this batch: every parameter of the patch still has its part in the graph
    labels = torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)
    model(**batch, labels=labels, return_dict=False)[0].backward()
    assert all(p.grad is not None and not p.grad.any() for p in patch_parameters(model))


def test_enabling_gives_back_the_strength_from_before():
    model, _ = patched(CASES["llava_onevision"])
    model.patch_strength = 0.5
    model.disable_patch()
    model.disable_patch()
    assert model.patch_strength == 0.0
    model.enable_patch()
    model.enable_patch()
    assert model.patch_strength == 0.5
    model.disable_patch()
    model.patch_strength = 0.25
    model.enable_patch()
    assert model.patch_strength == 0.25


def test_attaching_refuses_what_cannot_be():
    model, _ = CASES["llava_onevision"].build()
    with pytest.raises(ValueError, match="carries no patch"):
        detach_patch(model)
    with pytest.raises(ValueError, match="must be a Python identifier"):
        attach_patch(model, small_config(), name="my patch")
    with pytest.raises(ValueError, match="is taken by torch, got 'keys'"):
        attach_patch(model, small_config(), name="keys")
    channel = small_config().side_channels["audio"]
    with pytest.raises(ValueError, match="side channel 'type': the name would hide a part of a module"):
        attach_patch(model, replace(small_config(), side_channels={"type": channel}))
    bad = PatchConfig.from_dict({**small_config().to_dict(), "lora": {"targets": ["q_proj", "qkv"]}})
    with pytest.raises(ValueError, match=r"no linear layer named \['qkv'\]; it has .*'q_proj'"):
        attach_patch(model, bad)
    assert all(p.requires_grad for p in model.parameters())  # a failed attach changes nothing
    assert not any(".lora_" in path for path, _ in model.named_parameters()) and not hasattr(model, "peft_config")
    attach_patch(model, small_config(), name="first")
    with pytest.raises(ValueError, match="already carries a patch 'first'"):
        attach_patch(model, small_config(), name="first")
    with pytest.raises(ValueError, match="finite number that is not negative"):
        model.patch_strength = float("nan")


def test_seed_decides_the_fresh_weights_and_leaves_the_global_state():
    weights = []
    for seed in (0, 0, 1):
        model, _ = CASES["llava_onevision"].build()
        state = torch.get_rng_state()
        attach_patch(model, small_config(), seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        weights.append(torch.cat([p.flatten() for n, p in model.named_parameters() if "lora_A" in n or "side_embed" in n]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_lora_touches_the_language_model_only():
    model, _ = patched(CASES["qwen2_5_vl"])
    names = {n.rsplit(".lora_", 1)[0] for n, _ in model.named_parameters() if ".lora_" in n}
    assert len(names) == 2 * 3 and all(n.startswith("model.language_model.layers.") for n in names)


def test_two_channels_add_up():
    config = small_config(lora=False)
    both = replace(config, side_channels={"audio": config.side_channels["audio"], "depth": config.side_channels["audio"]})
    case = CASES["llava_onevision"]
    model, processor = patched(case, both)
    batch = case.batch(processor)
    a, d = side_tokens(seed=3), side_tokens(seed=4)

    def fused(side_channels):
        seen = []
        handle = model.model.language_model.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
        )
        with torch.no_grad():
            model(**batch, side_channels=side_channels)
        handle.remove()
        return seen[0]

    base = fused({})
    alone = fused({"audio": a}) - base, fused({"depth": d}) - base
    torch.testing.assert_close(fused({"audio": a, "depth": d}) - base, alone[0] + alone[1], atol=1e-5, rtol=1e-5)
    assert all(x.abs().max() > 0.1 for x in alone)


def test_the_gate_reads_the_question_but_never_the_answer():
    case = CASES["llava_onevision"]
    model, processor = patched(case, small_config(gate=True, lora=False))
    seen = []
    gate = model.pave_patches["default"].fusions["audio"].gate
    gate.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    batch = case.batch(processor, ("what sound?", "which object was moving?"))
    given = {"side_channels": {"audio": side_tokens()}}
    with torch.no_grad():
        model.generate(**batch, **given, max_new_tokens=1)
        answer = torch.full((2, 3), 9)
        longer = dict(batch, input_ids=torch.cat([batch["input_ids"], answer], 1))
        longer["attention_mask"] = torch.cat([batch["attention_mask"], torch.ones_like(answer)], 1)
        labels = torch.full_like(longer["input_ids"], -100)
        labels[:, -3:] = answer
        model(**longer, labels=labels, **given)
    asked, trained = seen
    embeddings = model.get_input_embeddings()
    for row in range(2):
        ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        ids = ids[ids != model.config.video_token_id]
        for question in (asked, trained):
            assert torch.equal(question.embeds_BLE[row][question.valid_BL[row]], embeddings(ids))
