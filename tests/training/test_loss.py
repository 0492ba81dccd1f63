"""The loss on answers only equals the plain loss of the model, in value and in every gradient."""

from __future__ import annotations

import pytest
import torch

from pave.training.loss import answer_loss
from tiny_models import SIDE, tiny_llava_onevision, tiny_qwen2_5_vl


def _batch(processor):
    frames = torch.randint(0, 256, (4, SIDE, SIDE, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    texts = []
    for question in ("what sound is heard?", "which object was moving when the bell rang?"):
        messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]
        texts.append(
            processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + "a red bell<|im_end|>"
        )
    metadata = [{"total_num_frames": 4, "fps": 1.0, "frames_indices": [0, 1, 2, 3]}] * 2
    batch = processor(
        text=texts,
        videos=[frames, frames[::-1].copy()],
        video_metadata=metadata,
        do_sample_frames=False,
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    labels = torch.full_like(batch["input_ids"], -100)
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        labels[row, length - 3 : length] = batch["input_ids"][row, length - 3 : length]
    labels[0, 5:7] = batch["input_ids"][0, 5:7]  # several spans
    return {**batch, "labels": labels}


def _gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("build", [tiny_llava_onevision, tiny_qwen2_5_vl])
@pytest.mark.parametrize("num_items", [None, 23, torch.tensor(23)])
def test_equals_the_plain_loss_and_its_gradients(build, num_items):
    model, processor = build()
    batch = _batch(processor)
    plain = model(**batch, **({} if num_items is None else {"num_items_in_batch": num_items})).loss
    expected = _gradients(model, plain)
    loss, outputs = answer_loss(model, model.get_output_embeddings(), batch, num_items)
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=1e-7)
    actual = _gradients(model, loss)
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-4, atol=1e-7, msg=name)
    assert outputs.logits.shape == (8, model.get_output_embeddings().weight.shape[0])


def test_logits_are_those_of_the_positions_before_the_labels():
    model, processor = tiny_llava_onevision()
    batch = _batch(processor)
    _, outputs = answer_loss(model, model.get_output_embeddings(), batch)
    whole = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    rows = [whole[row, at - 1] for row in range(2) for at in (batch["labels"][row] != -100).nonzero().flatten()]
    torch.testing.assert_close(outputs.logits, torch.stack(rows))


def test_head_is_whole_again_afterwards_even_after_an_error():
    model, processor = tiny_llava_onevision()
    batch = _batch(processor)
    before = model(**batch).logits
    answer_loss(model, model.get_output_embeddings(), batch)
    with pytest.raises(ValueError, match="do not match"):
        answer_loss(
            model,
            model.get_output_embeddings(),
            {**batch, "pixel_values_videos": batch["pixel_values_videos"][:, :2].contiguous()},
        )
    assert torch.equal(model(**batch).logits, before)


def test_no_label_is_an_error():
    model, processor = tiny_llava_onevision()
    batch = _batch(processor)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    with pytest.raises(ValueError, match="no label"):
        answer_loss(model, model.get_output_embeddings(), batch)
