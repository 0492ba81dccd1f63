"""``newline: grid``: the base's newline embedding behind every row of every frame, and nobody has to do anything for it."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch

from cases import CASES, patched, side_tokens, small_config
from pave import PatchConfig, attach_patch, detach_patch, load_patch, save_patch
from pave.evaluation.generation import generate_ids
from pave.training.loss import answer_loss

CASE = CASES["llava_onevision"]


def grid_config(**changes) -> PatchConfig:
    return dataclasses.replace(small_config(missing_channel="lora_only"), newline="grid", **changes)


def seen_by_the_llm(model, batch, **more):
    """What reaches the language model at prefill, and the output."""
    seen = {}
    handle = model.model.language_model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.update(kwargs) if kwargs["inputs_embeds"].shape[1] > 1 else None, with_kwargs=True
    )
    with torch.no_grad():
        output = model(**batch, **more)
    handle.remove()
    return seen["inputs_embeds"], seen["attention_mask"], seen["position_ids"], output


def gridded(model, ids, embeds, mask):
    """The expected prompt, written out: a newline behind every second video token (frames are 2 x 2 here)."""
    out, video = [], 0
    for token, embed in zip(ids[mask], embeds[mask], strict=True):
        out.append(embed)
        if token != model.config.video_token_id:
            video = 0
            continue
        video += 1
        if video % 2 == 0 and video < 16:
            out.append(model.model.image_newline)
    return torch.stack(out)


@pytest.mark.parametrize("with_side", [True, False])
def test_every_row_ends_in_the_bases_newline(with_side):
    """Residuals are added before the newlines stand there; the prompt's own length and positions come back."""
    model, processor = patched(CASE, grid_config())
    reference, _ = patched(CASE, small_config(missing_channel="lora_only"))
    batch = CASE.batch(processor, ("what sound?", "which object was moving when?"))
    more = {"side_channels": {"audio": side_tokens()}} if with_side else {}
    embeds, mask, positions, output = seen_by_the_llm(model, batch, **more)
    plain, _, _, plain_output = seen_by_the_llm(reference, batch, **more)
    assert output.logits.shape == plain_output.logits.shape
    for row in range(2):
        kept = batch["attention_mask"][row].bool()
        expected = gridded(model, batch["input_ids"][row], plain[row], kept)
        assert len(expected) == int(kept.sum()) + 4 * 2 - 1
        assert torch.equal(embeds[row][mask[row].bool()], expected)
        assert torch.equal(positions[row][mask[row].bool()], torch.arange(len(expected)))
    assert not torch.allclose(output.logits, plain_output.logits, atol=1e-3)


def test_disabled_and_detached_it_is_the_base():
    model, processor = CASE.build()
    batch = CASE.batch(processor)
    times = batch.pop("frame_times")
    with torch.no_grad():
        base = model(**batch).logits
        attach_patch(model, grid_config())
        assert not torch.allclose(model(**batch).logits, base, atol=1e-3)
        with model.patch_disabled():
            assert torch.equal(model(**batch, frame_times=times, side_channels={"audio": side_tokens()}).logits, base)
        assert torch.equal(detach_patch(model)(**batch).logits, base)


def test_text_without_video_is_untouched():
    model, processor = patched(CASE, dataclasses.replace(grid_config(), lora=None))
    ids = processor.tokenizer("what sound is heard?", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        assert torch.equal(logits, detach_patch(model)(input_ids=ids).logits)


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_equals_the_gridded_prompt_fed_to_the_language_model(beams):
    model, processor = patched(CASE, grid_config())
    batch = CASE.batch(processor)
    side = side_tokens()
    got = generate_ids(model, {**batch, "side_channels": {"audio": side}}, max_new_tokens=6, num_beams=beams, eos_token_id=None)
    assert got.shape == (2, 6)
    embeds, mask, _, _ = seen_by_the_llm(model, batch, side_channels={"audio": side})
    with torch.no_grad():
        wanted = model.generate(
            inputs_embeds=embeds, attention_mask=mask, max_new_tokens=6, num_beams=beams, do_sample=False, eos_token_id=None
        )
    assert torch.equal(got, wanted)


def test_loss_on_answers_only_is_the_models_own_loss():
    model, processor = patched(CASE, grid_config())
    batch = CASE.batch(processor, ("what sound?", "which object was moving when?"))
    labels = torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)
    labels[:, :-6] = -100
    inputs = {**batch, "labels": labels, "side_channels": {"audio": side_tokens()}}
    loss, output = answer_loss(model, model.lm_head, inputs)
    assert output.logits.ndim == 2
    torch.testing.assert_close(loss, model(**inputs).loss)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, b: m(**{**b, "input_ids": None}, inputs_embeds=torch.zeros(2, 3, 32)), "pass input_ids, not inputs_embeds"),
        (
            lambda m, b: m(input_ids=b["input_ids"], mm_encoder_outputs={"video": object()}),
            "pass pixel_values_videos, not mm_encoder_outputs",
        ),
    ],
)
def test_calls_that_cannot_be_lengthened_are_refused(call, message):
    model, processor = patched(CASE, grid_config())
    batch = CASE.batch(processor)
    with pytest.raises(ValueError, match=message):
        call(model, batch)


def test_an_inner_call_gets_the_longer_prompt():
    model, processor = patched(CASE, grid_config())
    batch = CASE.batch(processor)
    times = batch.pop("frame_times")
    embeds, *_ = seen_by_the_llm(model, batch)
    with torch.no_grad(), model.patch_call(batch, frame_times=times) as inputs:
        assert model.model(**inputs).last_hidden_state.shape == embeds.shape
        assert inputs["input_ids"].shape[1] == embeds.shape[1] > batch["input_ids"].shape[1]


def test_settings_that_contradict_are_refused():
    with pytest.raises(ValueError, match="set missing_channel to 'lora_only'"):
        dataclasses.replace(grid_config(), missing_channel="base")
    with pytest.raises(ValueError, match="set missing_channel to 'lora_only'"):
        dataclasses.replace(small_config(), vocabulary=5)
    with pytest.raises(ValueError, match="cannot be combined with a channel fused by"):
        dataclasses.replace(small_config(missing_channel="lora_only", kind="concat"), newline="grid")
    with pytest.raises(ValueError, match="vocabulary must be at least 1"):
        dataclasses.replace(grid_config(), vocabulary=0)
    model, _ = CASES["qwen2_5_vl"].build()
    with pytest.raises(ValueError, match="'qwen2_5_vl' have no newline embedding"):
        attach_patch(model, grid_config())
    model, _ = CASE.build()
    with pytest.raises(ValueError, match="chooses from 100000 ids, but the base's head has"):
        attach_patch(model, grid_config(vocabulary=100000))


def test_vocabulary_is_a_softmax_over_fewer_ids():
    """Loss and logits are those of a head that was really cut; the weights stay whole."""
    model, processor = patched(CASE, grid_config(vocabulary=300))
    whole, _ = patched(CASE, grid_config())
    batch = {**CASE.batch(processor), "side_channels": {"audio": side_tokens()}}
    labels = torch.where(batch["input_ids"] < 300, batch["input_ids"], -100)
    labels[:, :-6] = -100
    assert int((labels != -100).sum()) > 6
    output, expected = model(**batch, labels=labels), whole(**batch)
    rows = model.lm_head.weight.shape[0]
    assert rows > 300
    assert torch.equal(output.logits[..., :300], expected.logits[..., :300])
    assert bool((output.logits[..., 300:] == float("-inf")).all())
    shifted = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
    cut = torch.nn.functional.cross_entropy(expected.logits[..., :300].flatten(0, 1), shifted.flatten())
    torch.testing.assert_close(output.loss, cut)
    loss, _ = answer_loss(model, model.lm_head, {**batch, "labels": labels})
    torch.testing.assert_close(loss, cut)
    gradient = torch.autograd.grad(output.loss, [p for p in model.parameters() if p.requires_grad])
    wanted = torch.autograd.grad(cut, [p for p in whole.parameters() if p.requires_grad])
    for got, want in zip(gradient, wanted, strict=True):
        torch.testing.assert_close(got, want)
    with torch.no_grad(), model.patch_disabled():
        assert bool(torch.isfinite(model(**batch).logits).all())
    with torch.no_grad():
        plain = {key: value for key, value in batch.items() if key not in ("side_channels", "frame_times")}
        assert bool(torch.isfinite(detach_patch(model)(**plain).logits).all())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_lay_out_and_choose_alike(copied):
    model, processor = patched(CASE, grid_config(vocabulary=300))
    batch = {**CASE.batch(processor), "side_channels": {"audio": side_tokens()}}
    twin = copied(model)
    with torch.no_grad():
        wanted = model(**batch).logits
        assert torch.equal(twin(**batch).logits, wanted)
        detach_patch(model)
        assert torch.equal(twin(**batch).logits, wanted)
        detach_patch(twin)
        plain = {key: value for key, value in batch.items() if key not in ("side_channels", "frame_times")}
        assert torch.equal(twin(**plain).logits, model(**plain).logits)
        assert bool(torch.isfinite(twin(**plain).logits).all())


def test_save_and_load_keep_both_settings(tmp_path):
    model, processor = patched(CASE, grid_config(vocabulary=300))
    batch = {**CASE.batch(processor), "side_channels": {"audio": side_tokens()}}
    save_patch(model, tmp_path / "patch")
    again, _ = CASE.build()
    load_patch(again, tmp_path / "patch")
    assert (again.patch_config.newline, again.patch_config.vocabulary) == ("grid", 300)
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)
