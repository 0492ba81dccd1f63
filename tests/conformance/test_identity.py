"""A patch that must not act leaves the base's logits bit for bit, on every family; one that acts changes them."""

from __future__ import annotations

import copy
import io
import pickle
import threading

import pytest
import torch

from cases import CASES, patched, shake, side_tokens, small_config
from pave import SideTokens, attach_patch, detach_patch
from pave.patching import is_patched, patch_parameters


@pytest.fixture(params=CASES, scope="module")
def case(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def base(case):
    """(logits, greedy tokens) of the unpatched base on the case's batch."""
    model, processor = case.build()
    batch = case.batch(processor)
    times = batch.pop("frame_times")
    with torch.no_grad():
        logits = model(**batch).logits
        tokens = model.generate(**batch, max_new_tokens=6, do_sample=False)
    return logits, tokens, times


def logits(model, batch, **more):
    with torch.no_grad():
        return model(**batch, **more).logits


CONFIGS = {
    "plain": small_config(),
    "index": small_config(alignment="index"),
    "pre_projector": small_config(query_source="pre_projector"),
    "gate": small_config(gate=True),
    "rope": small_config(rope=True),
    "no_lora": small_config(lora=False),
    "lora_only": small_config(missing_channel="lora_only"),
    "shared": small_config(share_key_value_projection=True, alignment="index"),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_fresh_patch_is_the_base_and_a_trained_one_is_not(case, base, config):
    model, processor = patched(case, config, trained=False)
    batch = case.batch(processor)
    assert torch.equal(logits(model, batch, side_channels={"audio": side_tokens()}), base[0])
    shake(model)
    acting = logits(model, batch, side_channels={"audio": side_tokens()})
    assert acting.shape == base[0].shape
    assert not torch.allclose(acting, base[0], atol=1e-3)
    assert not torch.allclose(acting, logits(model, batch, side_channels={"audio": side_tokens(seed=2)}), atol=1e-3)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_disabled_scaled_to_zero_and_detached_are_the_base(case, base, config):
    model, processor = patched(case, config)
    batch = case.batch(processor)
    given = {"side_channels": {"audio": side_tokens()}}
    runs = []
    handle = model.pave_patches["default"].fusions["audio"].register_forward_hook(lambda *_: runs.append(1))
    with model.patch_disabled():
        assert torch.equal(logits(model, batch, **given), base[0]) and not runs
    handle.remove()
    model.disable_patch()
    assert torch.equal(logits(model, batch, **given), base[0])
    model.enable_patch()
    with model.patch_scaled(0.0):
        assert torch.equal(logits(model, batch, **given), base[0])
    full = logits(model, batch, **given)
    with model.patch_scaled(0.95):
        assert not torch.equal(logits(model, batch, **given), full)
    with model.patch_scaled(0.5):
        half = logits(model, batch, **given)
    model.patch_strength = 0.5
    assert torch.equal(logits(model, batch, **given), half)
    assert not torch.allclose(half, full, atol=1e-3)
    assert not torch.allclose(half, base[0], atol=1e-3)
    detach_patch(model)
    batch.pop("frame_times")
    assert torch.equal(logits(model, batch), base[0])


def test_overrides_of_several_models_nest(case, base):
    first, processor = patched(case)
    second, _ = patched(case)
    batch = case.batch(processor)
    given = {"side_channels": {"audio": side_tokens()}}
    with first.patch_disabled():
        with second.patch_scaled(0.5):
            assert (first.patch_strength, second.patch_strength) == (0.0, 0.5)
            assert torch.equal(logits(first, batch, **given), base[0])
            assert not torch.allclose(logits(second, batch, **given), base[0], atol=1e-3)
            with first.patch_scaled(2.0):
                assert (first.patch_strength, second.patch_strength) == (2.0, 0.5)
        assert (first.patch_strength, second.patch_strength) == (0.0, 1.0)
    assert first.patch_strength == 1.0


def test_detaching_restores_the_very_base(case):
    model, _processor = case.build()
    model.get_input_embeddings().requires_grad_(False)
    before = (type(model), type(model.base_model), list(model.state_dict()), set(model.__dict__), repr(model))
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    modules = {n: id(m) for n, m in model.named_modules()}
    attach_patch(model, small_config(query_source="pre_projector"))
    assert type(model) is not before[0] and isinstance(model, before[0])
    assert type(model).__name__ == before[0].__name__
    detach_patch(model)
    assert (type(model), type(model.base_model), list(model.state_dict()), set(model.__dict__), repr(model)) == before
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    assert {n: id(m) for n, m in model.named_modules()} == modules
    assert not any(m._forward_pre_hooks for m in model.modules())
    attach_patch(model, small_config())  # and it can be patched again
    assert is_patched(model)


@pytest.mark.parametrize("training", [False, True])
def test_a_patch_takes_the_mode_of_its_base_and_checkpointing_is_unwrapped(case, training):
    model, _ = case.build()
    model.train(training)
    model.gradient_checkpointing_enable()
    functions = {
        n: m._gradient_checkpointing_func for n, m in model.named_modules() if hasattr(m, "_gradient_checkpointing_func")
    }
    attach_patch(model, small_config())
    assert {m.training for m in model.pave_patches.modules()} == {training}
    detach_patch(model)
    assert functions and all(model.get_submodule(n)._gradient_checkpointing_func is f for n, f in functions.items())


def test_calls_within_calls_know_whose_they_are(case, base):
    """A forward with side channels inside ``patch_call`` is a call of its own; another patched model's forward sees none of it."""
    first, processor = patched(case)
    second, _ = patched(case)
    batch = case.batch(processor)
    times = batch.pop("frame_times")
    given = {"side_channels": {"audio": side_tokens()}, "frame_times": times}
    expected = logits(first, batch, **given)
    with first.patch_call(batch):
        assert torch.equal(logits(first, batch, **given), expected)
        assert torch.equal(logits(first, batch), base[0])
    with torch.no_grad(), first.patch_call(batch, **given) as inputs:
        assert torch.equal(logits(second, batch), base[0])
        hidden = first.base_model(**inputs).last_hidden_state
        assert torch.equal(first.get_output_embeddings()(hidden), expected)
        assert torch.equal(logits(second, batch), base[0])


def test_a_missing_channel_is_the_base_row_by_row(case, base):
    model, processor = patched(case)
    batch = case.batch(processor)
    side = side_tokens()
    none = SideTokens(side.embeds_BKMC, torch.zeros_like(side.valid_BK), side.times_BK)
    assert torch.equal(logits(model, batch, side_channels={"audio": none}), base[0])
    assert torch.equal(logits(model, batch), base[0])
    both = logits(model, batch, side_channels={"audio": side})
    for missing in (0, 1):
        valid = side.valid_BK.clone()
        valid[missing] = False
        mixed = logits(model, batch, side_channels={"audio": SideTokens(side.embeds_BKMC, valid, side.times_BK)})
        assert torch.equal(mixed[missing], base[0][missing])
        torch.testing.assert_close(mixed[1 - missing], both[1 - missing], atol=1e-5, rtol=1e-5)


def test_the_authors_policy_keeps_lora_without_the_channel(case, base):
    model, processor = patched(case, small_config(missing_channel="lora_only"))
    batch = case.batch(processor)
    without = logits(model, batch)
    assert not torch.allclose(without, base[0], atol=1e-3)
    side = side_tokens()
    none = SideTokens(side.embeds_BKMC, torch.zeros_like(side.valid_BK), side.times_BK)
    assert torch.equal(logits(model, batch, side_channels={"audio": none}), without)
    assert not torch.allclose(logits(model, batch, side_channels={"audio": side}), without, atol=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_steps_count_as_missing(case, base, bad, caplog):
    model, processor = patched(case)
    batch = case.batch(processor)
    side = side_tokens()
    embeds = side.embeds_BKMC.clone()
    embeds[0, 3, 1, 5] = bad
    valid = side.valid_BK.clone()
    valid[0, 3] = False
    got = logits(model, batch, side_channels={"audio": SideTokens(embeds, times_BK=side.times_BK)})
    assert "1 steps hold NaN or infinity" in caplog.text
    assert torch.equal(got, logits(model, batch, side_channels={"audio": SideTokens(side.embeds_BKMC, valid, side.times_BK)}))
    everything = SideTokens(torch.full_like(embeds, bad), times_BK=side.times_BK)
    fresh, _ = patched(case, trained=False)
    assert torch.equal(logits(fresh, batch, side_channels={"audio": everything}), base[0])
    assert torch.equal(logits(model, batch, side_channels={"audio": everything}), base[0])


def test_a_text_prompt_through_a_patched_model_is_the_base(case):
    model, processor = case.build()
    ids = processor.tokenizer(["what sound is heard?"], return_tensors="pt")
    with torch.no_grad():
        expected = model(**ids).logits
        shake(attach_patch(model, small_config()))
        assert torch.equal(model(**ids).logits, expected)


def test_generation_fuses_once_and_agrees_with_and_without_cache(case, base, monkeypatch):
    model, processor = patched(case)
    batch = case.batch(processor)
    given = {"side_channels": {"audio": side_tokens()}}
    calls = []
    fusion = model.pave_patches["default"].fusions["audio"]
    fusion.register_forward_hook(lambda *_: calls.append(1))
    cached = model.generate(**batch, **given, max_new_tokens=6, do_sample=False)
    assert len(calls) == 1
    uncached = model.generate(**batch, **given, max_new_tokens=6, do_sample=False, use_cache=False)
    assert torch.equal(cached, uncached)
    prompt = batch["input_ids"].shape[1]
    # the first token is the arg max of the forward pass, so generation sees the same fused prompt
    assert torch.equal(cached[:, prompt], logits(model, batch, **given)[:, -1].argmax(-1))
    calls.clear()
    beams = model.generate(**batch, **given, max_new_tokens=4, num_beams=3, num_return_sequences=2, do_sample=False)
    assert len(calls) == 1 and beams.shape[0] == 4
    torch.manual_seed(0)
    sampled = model.generate(**batch, **given, max_new_tokens=4, do_sample=True)
    torch.manual_seed(0)
    assert torch.equal(sampled, model.generate(**batch, **given, max_new_tokens=4, do_sample=True))
    with model.patch_disabled():
        assert torch.equal(model.generate(**batch, **given, max_new_tokens=6, do_sample=False), base[1])
    assert torch.equal(model.generate(**batch, max_new_tokens=6, do_sample=False), base[1])


def test_generation_with_a_missing_row_in_the_batch(case, base):
    model, processor = patched(case)
    batch = case.batch(processor)
    side = side_tokens()
    valid = side.valid_BK.clone()
    valid[1] = False
    mixed = {"audio": SideTokens(side.embeds_BKMC, valid, side.times_BK)}
    got = model.generate(**batch, side_channels=mixed, max_new_tokens=6, do_sample=False)
    full = model.generate(**batch, side_channels={"audio": side}, max_new_tokens=6, do_sample=False)
    assert torch.equal(got[1], base[1][1])
    assert torch.equal(got[0], full[0])
    assert not torch.equal(full, base[1])


def test_beams_and_samples_of_a_row_without_its_channel_are_the_base(case):
    """Both repeat every row, which the weights of the rows must follow."""
    model, processor = patched(case)
    plain, _ = case.build()
    batch = case.batch(processor)
    times = batch.pop("frame_times")
    side = side_tokens()
    valid = side.valid_BK.clone()
    valid[1] = False
    mixed = {"audio": SideTokens(side.embeds_BKMC, valid, side.times_BK)}
    for how in ({"num_beams": 3, "num_return_sequences": 3}, {"do_sample": True, "num_return_sequences": 3}):
        rows = []
        for call in (
            lambda how: model.generate(**batch, side_channels=mixed, frame_times=times, **how),
            lambda how: model.generate(**batch, side_channels={"audio": side}, frame_times=times, **how),
            lambda how: plain.generate(**batch, **how),
        ):
            torch.manual_seed(0)
            rows.append(call({"do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5, **how}).split(3))
        assert torch.equal(rows[0][1], rows[2][1]) and torch.equal(rows[0][0], rows[1][0])
        assert not torch.equal(rows[1][0], rows[2][0])


def test_rows_with_two_videos_and_with_none(case):
    """A row without a video is the base; one of two videos with its channel is enough for the row to be patched."""
    model, processor = patched(case)
    fresh, _ = patched(case, trained=False)
    content = [
        [{"type": "video"}, {"type": "video"}, {"type": "text", "text": "what sound?"}],
        [{"type": "text", "text": "hi"}],
    ]
    texts = [
        processor.apply_chat_template([{"role": "user", "content": c}], add_generation_prompt=True, tokenize=False)
        for c in content
    ]
    generator = torch.Generator().manual_seed(0)
    videos = [torch.randint(0, 256, (4, case.side, case.side, 3), generator=generator).byte().numpy() for _ in range(2)]
    metadata = [{"fps": 1.0, "total_num_frames": 4, "frames_indices": list(range(4))}] * 2
    batch = processor(
        text=texts, videos=videos, do_sample_frames=False, padding=True, padding_side="left", return_tensors="pt",
        video_metadata=metadata,
    )  # fmt: skip
    given = {"frame_times": torch.arange(4).double().expand(2, -1) + 0.5}
    base = logits(case.build()[0], batch)
    side = side_tokens()
    assert torch.equal(logits(fresh, batch, side_channels={"audio": side}, **given), base)
    seen = [logits(model, batch, side_channels={"audio": side}, **given)]
    for missing in (0, 1):
        valid = side.valid_BK.clone()
        valid[missing] = False
        seen.append(logits(model, batch, side_channels={"audio": SideTokens(side.embeds_BKMC, valid, side.times_BK)}, **given))
    assert all(torch.equal(one[1], base[1]) for one in seen)
    kept = batch["attention_mask"][0].bool()
    different = [base, *seen]
    for index, one in enumerate(different):
        assert not any(torch.allclose(one[0][kept], other[0][kept], atol=1e-3) for other in different[:index])


def test_only_the_patch_gets_gradients(case):
    model, processor = patched(case)
    batch = case.batch(processor)
    labels = torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)
    labels[batch["input_ids"] == model.config.video_token_id] = -100
    model(**batch, labels=labels, side_channels={"audio": side_tokens()}).loss.backward()
    own = {id(p) for p in patch_parameters(model)}
    for name, parameter in model.named_parameters():
        if id(parameter) in own:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None and not parameter.requires_grad, name


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients_with_a_missing_row(case, reentrant):
    """The recomputation in backward happens outside the call, yet acts on the same rows."""
    side = side_tokens()
    valid = side.valid_BK.clone()
    valid[0] = False
    grads = []
    for checkpointing in (False, True):
        model, processor = patched(case)
        batch = case.batch(processor)
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        labels = batch["input_ids"].clone()
        labels[labels == model.config.video_token_id] = -100
        given = {"audio": SideTokens(side.embeds_BKMC, valid, side.times_BK)}
        first = model(**batch, labels=labels, side_channels=given).loss
        with torch.no_grad():  # another call in between must not disturb the recomputation
            model(**batch, side_channels={"audio": side_tokens(seed=5)})
        first.backward()
        grads.append([p.grad.clone() for p in patch_parameters(model)])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, checkpointed, atol=1e-6, rtol=1e-5)


def test_deepcopy_and_pickle_make_independent_patched_models(case):
    model, processor = patched(case, small_config(query_source="pre_projector"))
    batch = case.batch(processor)
    given = {"side_channels": {"audio": side_tokens()}}
    buffer = io.BytesIO()
    pickle.dump(model, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(model), pickle.load(buffer)]
    expected = logits(model, batch, **given)
    with torch.no_grad():
        for parameter in patch_parameters(model):
            parameter.zero_()
    for twin in copies:
        assert torch.equal(logits(twin, batch, **given), expected)
        detach_patch(twin)
    assert not torch.equal(logits(model, batch, **given), expected)


def test_threads_with_different_side_channels_do_not_mix(case):
    model, processor = patched(case)
    batch = case.batch(processor)
    sides = [{"audio": side_tokens(seed=s)} for s in range(3)] + [None]
    expected = [logits(model, batch, side_channels=s) for s in sides]
    wrong = []

    def work(index):
        for _ in range(6):
            if not torch.equal(logits(model, batch, side_channels=sides[index]), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_bfloat16_base_with_a_float32_patch(case):
    model, processor = case.build()
    model.to(torch.bfloat16)
    batch = {k: v.bfloat16() if v.dtype == torch.float32 else v for k, v in case.batch(processor).items()}
    times = batch.pop("frame_times")
    base_logits = logits(model, batch)
    attach_patch(model, small_config())
    batch["frame_times"] = times
    given = {"side_channels": {"audio": side_tokens()}}
    assert {p.dtype for p in patch_parameters(model)} == {torch.float32}
    assert torch.equal(logits(model, batch, **given), base_logits)
    shake(model)
    acting = logits(model, batch, **given)
    assert acting.dtype == torch.bfloat16 and not torch.allclose(acting, base_logits, atol=1e-2)


def test_batched_equals_one_by_one(case):
    model, processor = patched(case)
    questions = ("what sound?", "which object was it?")
    batch = case.batch(processor, questions)
    side = side_tokens()
    together = logits(model, batch, side_channels={"audio": side})
    for row in range(2):
        single = {"input_ids": batch["input_ids"][row : row + 1], "attention_mask": batch["attention_mask"][row : row + 1]}
        if "mm_token_type_ids" in batch:
            single["mm_token_type_ids"] = batch["mm_token_type_ids"][row : row + 1]
        grid = batch.get("video_grid_thw")
        if grid is None:
            single["pixel_values_videos"] = batch["pixel_values_videos"][row : row + 1]
        else:
            parts = batch["pixel_values_videos"].split(grid.prod(-1).tolist())
            single |= {"pixel_values_videos": parts[row], "video_grid_thw": grid[row : row + 1]}
            if "second_per_grid_ts" in batch:
                single["second_per_grid_ts"] = batch["second_per_grid_ts"][row : row + 1]
        alone = logits(
            model, single, side_channels={"audio": side.select([row])}, frame_times=batch["frame_times"][row : row + 1]
        )
        keep = batch["attention_mask"][row].bool()
        torch.testing.assert_close(alone[0][keep], together[row][keep], atol=2e-5, rtol=1e-4)
