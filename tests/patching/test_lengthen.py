"""The concat and interleave baselines: the prompt grows by the side tokens, and everything else follows."""

from __future__ import annotations

import pytest
import torch

from cases import CASES, WIDTH, patched, shake, side_tokens, small_config
from pave import SideTokens
from pave.video_llms import get_interface


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def ragged_side() -> SideTokens:
    """Two videos of 7 and 3 steps, 2 tokens each."""
    side = side_tokens(steps=7, per_step=2)
    valid = side.valid_BK.clone()
    valid[1, 3:] = False
    return SideTokens(side.embeds_BKMC, valid, side.times_BK)


def seen_by_the_llm(model, batch, **more):
    """(embeddings, mask, positions) that reach the language model."""
    seen = {}
    handle = model.model.language_model.register_forward_pre_hook(lambda _, __, kwargs: seen.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        output = model(**batch, **more)
    handle.remove()
    return seen["inputs_embeds"], seen["attention_mask"], seen["position_ids"], output


@pytest.mark.parametrize("kind", ["concat", "interleave"])
def test_side_tokens_stand_in_the_prompt_at_their_place(case, kind):
    model, processor = patched(case, small_config(lora=False, kind=kind))
    batch = case.batch(processor)
    side = ragged_side()
    fusion = model.pave_patches["default"].fusions["audio"]
    plain, _mask, _, base = seen_by_the_llm(model, batch)
    longer, long_mask, positions, output = seen_by_the_llm(model, batch, side_channels={"audio": side})
    assert output.logits.shape == base.logits.shape  # logits are given back at the prompt's own positions
    own = fusion.output(fusion.activation(fusion.hidden(side.embeds_BKMC)))
    frames = [n // (2 if "qwen" in model.config.model_type else 1) for n in case.frames]
    for row, K in enumerate((7, 3)):
        ids = batch["input_ids"][row]
        kept = batch["attention_mask"][row].bool()
        expected, inserted = [], set()
        video = 0
        for token, embed in zip(ids[kept], plain[row][kept], strict=True):
            expected.append(embed)
            if token != model.config.video_token_id:
                continue
            video += 1
            if video % 4 or video // 4 > frames[row]:
                continue
            frame = video // 4 - 1  # the last token of this frame
            if kind == "concat":
                steps = range(K) if frame == frames[row] - 1 else ()
            else:
                edges = [
                    -9.0,
                    *((torch.arange(1, frames[row])) * (2 if "qwen" in model.config.model_type else 1)).tolist(),
                    99.0,
                ]
                steps = [k for k in range(K) if edges[frame] <= 0.5 * k + 0.25 < edges[frame + 1]]
            extra = [own[row, k, m] for k in steps for m in range(2)]
            inserted |= set(range(len(expected), len(expected) + len(extra)))
            expected += extra
        got = longer[row][long_mask[row].bool()]
        torch.testing.assert_close(got, torch.stack(expected), atol=1e-6, rtol=1e-6)
        got_positions = (positions if positions.ndim == 3 else positions[None])[:, row][:, long_mask[row].bool()]
        assert torch.equal(got_positions, expected_positions(model, batch, row, expected, inserted))


def expected_positions(model, batch, row, everything, inserted):
    """The base's own position plus the number of tokens inserted before; an inserted token goes one past all before it."""
    kept = batch["attention_mask"][row].bool()
    own = get_interface(model.config).position_ids(model.config, batch)
    own = torch.arange(int(kept.sum()))[None] if own is None else own[:, row][:, kept]
    columns, moved = [], 0
    originals = iter(own.unbind(1))
    for index in range(len(everything)):
        if index in inserted:
            top = max(int(c.max()) for c in columns) + 1
            columns.append(torch.full((len(own),), top))
            moved += 1
        else:
            columns.append(next(originals) + moved)
    return torch.stack(columns, 1)


@pytest.mark.parametrize("kind", ["concat", "interleave"])
def test_the_baseline_acts_trains_and_generates(case, kind):
    model, processor = patched(case, small_config(kind=kind))
    batch = case.batch(processor)
    side = ragged_side()
    with torch.no_grad():
        one = model(**batch, side_channels={"audio": side}).logits
        other = model(**batch, side_channels={"audio": side_tokens(steps=7, per_step=2, seed=9)}).logits
    assert not torch.allclose(one, other, atol=1e-3)
    tokens = model.generate(**batch, side_channels={"audio": side}, max_new_tokens=5, do_sample=False)
    prompt = batch["input_ids"].shape[1]
    assert torch.equal(tokens[:, :prompt], batch["input_ids"]) and tokens.shape[1] <= prompt + 5
    assert torch.equal(tokens[:, prompt], one[:, -1].argmax(-1))
    whole = model.generate(
        **batch, side_channels={"audio": side}, max_new_tokens=5, do_sample=False, return_dict_in_generate=True
    )
    assert torch.equal(whole.sequences, tokens)
    uncached = model.generate(**batch, side_channels={"audio": side}, max_new_tokens=5, do_sample=False, use_cache=False)
    assert torch.equal(tokens, uncached)
    beams = model.generate(
        **batch, side_channels={"audio": side}, max_new_tokens=3, num_beams=2, num_return_sequences=2, do_sample=False
    )
    assert torch.equal(beams[:, :prompt], batch["input_ids"].repeat_interleave(2, dim=0))
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, -2:] = batch["input_ids"][:, -2:]
    loss = model(**batch, labels=labels, side_channels={"audio": side}).loss
    loss.backward()
    expected = torch.nn.functional.cross_entropy(one[:, -3:-1].flatten(0, 1), labels[:, -2:].flatten())
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.pave_patches.parameters())


def test_ragged_rows_equal_one_by_one():
    case = CASES["llava_onevision"]
    model, processor = patched(case, small_config(kind="interleave"))
    batch = case.batch(processor)
    side = ragged_side()
    with torch.no_grad():
        together = model(**batch, side_channels={"audio": side}).logits
        for row in range(2):
            alone = model(**{k: v[row : row + 1] for k, v in batch.items()}, side_channels={"audio": side.select([row])}).logits
            keep = batch["attention_mask"][row].bool()
            torch.testing.assert_close(alone[0][keep], together[row][keep], atol=2e-5, rtol=1e-4)


def test_without_the_channel_or_disabled_it_is_the_base(case):
    model, processor = case.build()
    batch = case.batch(processor)
    times = batch.pop("frame_times")
    with torch.no_grad():
        expected = model(**batch).logits
        from pave import attach_patch

        shake(attach_patch(model, small_config(kind="concat")))
        side = side_tokens()
        assert torch.equal(model(**batch).logits, expected)
        none = SideTokens(torch.zeros(2, 3, 4, WIDTH), torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 3))
        assert torch.equal(model(**batch, frame_times=times, side_channels={"audio": none}).logits, expected)
        with model.patch_disabled():
            assert torch.equal(model(**batch, frame_times=times, side_channels={"audio": side}).logits, expected)
        with model.patch_scaled(0.5), pytest.raises(ValueError, match="cannot act at strength 0.5"):
            model(**batch, frame_times=times, side_channels={"audio": side})


@pytest.mark.parametrize("kind", ["concat", "interleave"])
def test_logits_stand_at_the_given_positions_or_are_refused(case, kind):
    model, processor = patched(case, small_config(kind=kind))
    batch = case.batch(processor)
    given = {**batch, "side_channels": {"audio": ragged_side()}}
    labels = torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)
    with torch.no_grad():
        full = model(**given).logits
        assert torch.equal(model(**given, return_dict=False)[0], full)
        loss, logits = model(**given, labels=labels, return_dict=False)[:2]
        assert loss.ndim == 0 and torch.equal(logits, full)
        torch.testing.assert_close(model(**given, logits_to_keep=3).logits, full[:, -3:])
        for keep in (batch["input_ids"].shape[1], torch.tensor([0, 5])):
            with pytest.raises(ValueError, match="logits_to_keep: the side tokens lengthen the prompt"):
                model(**given, logits_to_keep=keep)
