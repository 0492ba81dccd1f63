"""Generation from a collated batch, on two real architectures."""

import numpy as np
import pytest
import torch

from cases import CASES, WIDTH, small_config
from pave import attach_patch
from pave.data.collator import PatchCollator
from pave.data.items import PatchItem
from pave.evaluation.generation import generate_ids, generate_texts
from pave.patching import patch_parameters
from pave.side_channels.base import SideFeatures

QUESTIONS = ("what sound is heard?", "which object was moving when the bell rang?", "red?")


def items(heard=True):
    made = []
    for number, question in enumerate(QUESTIONS):
        rng = np.random.default_rng(number)
        frames = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
        generator = torch.Generator().manual_seed(number)
        side = SideFeatures(torch.randn(9, 2, WIDTH, generator=generator), torch.arange(9).double() / 2)
        made.append(
            PatchItem(f"s{number}", frames, np.arange(4) + 0.5, ((question, None),), {"audio": side if heard else None})
        )
    return made


@pytest.fixture(scope="module", params=sorted(CASES))
def trained(request):
    """A base with a patch that is no longer the identity."""
    model, processor = CASES[request.param].build()
    attach_patch(model, small_config(dropout=0.5, missing_channel="lora_only"))
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(20)  # a random tiny base says the same to everything otherwise
        for number, parameter in enumerate(patch_parameters(model)):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.7)
    return model, processor


def batch_of(trained, some, channels=True):
    model, processor = trained
    return PatchCollator(processor, model.config, model.patch_config.side_channels if channels else {}, train=False)(some)


def ids(trained, batch, **options):
    """Generated ids per row, without what follows the end token."""
    model, processor = trained
    return [until_end(row, processor) for row in generate_ids(model, batch, **options).tolist()]


def until_end(row, processor):
    end = processor.tokenizer.eos_token_id
    return row[: row.index(end)] if end in row else row


def greedy_by_hand(model, processor, batch, steps):
    """Token by token with full forward passes and no cache."""
    batch = dict(batch)
    length = batch["input_ids"].shape[1]
    for _ in range(steps):
        with torch.no_grad():
            last = model(**batch, use_cache=False).logits[:, -1].argmax(-1)
        if "position_ids" in batch:
            position_ids = batch["position_ids"]
            batch["position_ids"] = torch.cat([position_ids, position_ids[..., -1:] + 1], -1)
        batch["input_ids"] = torch.cat([batch["input_ids"], last[:, None]], 1)
        batch["attention_mask"] = torch.cat([batch["attention_mask"], torch.ones_like(last)[:, None]], 1)
        for key in ("mm_token_type_ids", "token_type_ids"):
            if key in batch:
                batch[key] = torch.cat([batch[key], torch.zeros_like(last)[:, None]], 1)
    return [until_end(row, processor) for row in batch["input_ids"][:, length:].tolist()]


def test_greedy_decoding_equals_full_forward_passes(trained):
    model, processor = trained
    batch = batch_of(trained, items()[:1])
    assert ids((model, processor), batch, max_new_tokens=6) == greedy_by_hand(model, processor, batch, 6)


def test_a_batch_answers_like_one_by_one(trained):
    together = ids(trained, batch_of(trained, items()), max_new_tokens=8)
    alone = [ids(trained, batch_of(trained, [item]), max_new_tokens=8)[0] for item in items()]
    assert together == alone
    assert len({tuple(row) for row in together}) > 1
    texts = generate_texts(*trained, batch_of(trained, items()), max_new_tokens=8)
    assert texts == [trained[1].tokenizer.decode(row, skip_special_tokens=True).strip() for row in together]


def test_without_the_patch_the_base_answers(trained):
    model, processor = trained
    with_patch = ids((model, processor), batch_of(trained, items()), max_new_tokens=8)
    without = ids((model, processor), batch_of(trained, items()), patch=False, max_new_tokens=8)
    no_sound = ids((model, processor), batch_of(trained, items(), channels=False), patch=False, max_new_tokens=8)
    missing = ids((model, processor), batch_of(trained, items(heard=False)), max_new_tokens=8)
    assert with_patch != without
    assert without == no_sound
    assert missing not in (with_patch, without)  # this patch's LoRA acts without sound too; patch=False turns it off


def test_a_base_without_a_patch_takes_the_same_batch():
    model, processor = CASES["llava_onevision"].build()
    config = small_config()
    batch = PatchCollator(processor, model.config, config.side_channels, train=False)(items())
    plain = ids((model, processor), batch, max_new_tokens=8)
    attach_patch(model, config)
    assert ids((model, processor), batch, max_new_tokens=8) == plain


def test_the_mode_of_the_model_comes_back_and_answers_ignore_dropout(trained):
    model, processor = trained
    batch = batch_of(trained, items())
    before = ids((model, processor), batch, max_new_tokens=4)
    model.train()
    assert ids((model, processor), batch, max_new_tokens=4) == before
    assert model.training
    model.eval()
    assert not any(p.grad is not None for p in model.parameters())


def test_generation_arguments_are_passed_on(trained):
    batch = batch_of(trained, items())
    short = ids(trained, batch, max_new_tokens=1)
    long = ids(trained, batch, max_new_tokens=8)
    assert all(b[:1] == a for a, b in zip(short, long))
    torch.manual_seed(0)
    sampled = ids(trained, batch, max_new_tokens=8, do_sample=True, temperature=5.0)
    assert sampled != long
