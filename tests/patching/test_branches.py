"""Questions that share a video's tokens in one row: loss, gradients and logits are those of the questions one by one."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cases import shake
from pave import FusionConfig, PatchConfig, SideChannelConfig, attach_patch
from pave.data.collator import PatchCollator
from pave.data.items import PatchItem
from pave.patching import patch_parameters
from pave.training.loss import answer_loss
from pave.video_llms.branches import branch_mask
from tiny_models import SIDE, tiny_llava_onevision, tiny_qwen2_5_vl
from tiny_trainers import WIDTH, patch_config

TURNS = (
    ("what sound is heard?", "a bell"),
    ("which object was moving when the bell rang?", "the red circle"),
    ("yes or no?", "yes"),
)
FAMILIES = (tiny_llava_onevision, tiny_qwen2_5_vl)


def items(ragged, channel=(True, True, False)):
    """Three videos with three, one and two questions; the last has no side channel."""
    made = []
    for video, count in enumerate((3, 1, 2)):
        rng = np.random.default_rng(video)
        frames = rng.integers(0, 256, (4 + 2 * video * ragged, SIDE, SIDE, 3), dtype=np.uint8)
        values = rng.standard_normal((6, 1, WIDTH)).astype(np.float32)
        side = SimpleNamespace(features_KMC=values, times_K=0.1 + 0.3 * np.arange(6)) if channel[video] else None
        times = 0.5 * np.arange(len(frames))
        made += [
            PatchItem(f"{video}-{n}", frames, times, (TURNS[n],), {"audio": side}, source=str(video)) for n in range(count)
        ]
    return made


def patched(family, **text):
    model, processor = family(**text)
    attach_patch(model, patch_config())
    return shake(model), processor


def collator(processor, model, share=None):
    return PatchCollator(processor, model.config, model.patch_config.side_channels, share_videos=share)


def loss_and_gradients(model, batches, num_items):
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss, _ = answer_loss(model, model.get_output_embeddings(), batch, num_items)
        loss.backward()
        total += loss.detach()
    return total, [p.grad.clone() for p in patch_parameters(model)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("share", [2, 4])
def test_loss_and_every_gradient_are_those_of_the_questions_one_by_one(family, share):
    model, processor = patched(family)
    questions = items(ragged=family is tiny_qwen2_5_vl)
    single = [collator(processor, model)([item]) for item in questions]
    shared = collator(processor, model, share)([questions[i] for i in (0, 3, 4, 1, 5, 2)])  # not together in the batch
    assert len(shared["input_ids"]) == {2: 4, 4: 3}[share] and (shared["branches"] == -1).any()  # padded
    num_items = sum(int((batch["labels"] != -100).sum()) for batch in single)
    assert int((shared["labels"] != -100).sum()) == num_items
    expected, gradients = loss_and_gradients(model, single, num_items)
    actual, others = loss_and_gradients(model, [shared], num_items)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
    noise = 1e-7 * max(float(one.abs().max()) for one in gradients)  # biases of keys have no gradient but rounding
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=max(noise, 1e-5 * float(one.abs().max())))
    assert sum(float(one.abs().max()) > 100 * noise for one in gradients) > 0.8 * len(gradients)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_another_question_in_one_branch_changes_nothing_in_the_others(family, attention):
    model, processor = patched(family)
    model.set_attn_implementation(attention)
    questions = items(ragged=False)[:3]
    batch = collator(processor, model, 4)(questions)
    second = batch["branches"][0] == 2
    other = {**batch, "input_ids": torch.where(second[None], (batch["input_ids"] + 1) % 100 + 20, batch["input_ids"])}
    with torch.no_grad():
        before, after = model(**batch).logits[0], model(**other).logits[0]
    assert torch.equal(before[~second], after[~second])
    assert not torch.isclose(before[second], after[second]).all(dim=-1).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_both_attentions_and_half_precision_agree(family):
    model, processor = patched(family)
    batch = collator(processor, model, 4)(items(ragged=False))
    real = batch["attention_mask"].bool()

    def run():
        with torch.no_grad():
            return model(**batch).logits.float()

    sdpa = run()
    model.set_attn_implementation("eager")
    torch.testing.assert_close(run()[real], sdpa[real], rtol=1e-4, atol=1e-5)
    model.bfloat16()
    eager = run()
    model.set_attn_implementation("sdpa")
    assert torch.isfinite(eager[real]).all()
    torch.testing.assert_close(run()[real], eager[real], rtol=0.1, atol=0.05)


def test_the_mask():
    branches = torch.tensor([[0, 0, 1, 2, 2, -1]])
    expected = torch.tensor(
        [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0], [1, 1, 0, 1, 1, 0], [1, 1, 0, 0, 0, 1]]
    ).bool()[None, None]
    assert torch.equal(branch_mask(branches, "sdpa", torch.float32), expected)
    added = branch_mask(branches, "eager", torch.float16)
    assert added.dtype == torch.float16 and torch.equal(added == 0, expected) and added.min() == torch.finfo(torch.float16).min


def test_a_video_without_a_channel_is_still_the_base():
    model, processor = patched(tiny_llava_onevision)
    batch = collator(processor, model, 4)(items(False, channel=(False, True, False)))
    with torch.no_grad():
        logits = model(**batch).logits
        with model.patch_disabled():
            base = model(**batch).logits
    assert torch.equal(logits[0], base[0]) and torch.equal(logits[2], base[2]) and not torch.equal(logits[1], base[1])


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (patch_config(gate=True), "the gate of channel 'audio' reads the question"),
        (patch_config(kind="concat"), "'concat', which lengthens the prompt"),
        (patch_config(kind="interleave"), "'interleave', which lengthens the prompt"),
        (
            PatchConfig(
                side_channels={"audio": SideChannelConfig(width=WIDTH, fusion=FusionConfig(width=16))},
                newline="grid",
                missing_channel="lora_only",
            ),
            "newline 'grid' lengthens the prompt",
        ),
    ],
)
def test_a_patch_that_cannot_is_refused(config, complaint):
    model, processor = tiny_llava_onevision()
    attach_patch(model, config)
    batch = collator(processor, model, 4)(items(ragged=False))
    with pytest.raises(ValueError, match=rf"cannot share a video's tokens \(data.share_videos\): .*{complaint}"):
        model(**batch)


def test_a_base_that_cannot_is_refused():
    sliding = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    model, processor = patched(tiny_llava_onevision, **sliding)
    batch = collator(processor, model, 4)(items(ragged=False))
    with pytest.raises(ValueError, match="layers of sliding_attention"):
        model(**batch)
    model, processor = patched(tiny_llava_onevision)
    with pytest.raises(ValueError, match="branches need position_ids"):
        model(**{**batch, "position_ids": None})
    model.config.get_text_config()._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="'flash_attention_2' takes no such mask; load the base with sdpa or eager"):
        model(**batch)
