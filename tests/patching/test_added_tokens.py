"""The concat and interleave baselines: side tokens stand in the prompt, and everything else follows."""

from __future__ import annotations

import pytest
import torch

from cases import CASES, WIDTH, laid_out, patched, shake, side_tokens, small_config
from pave import SideTokens, attach_patch, lay_out_prompt
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
    """(embeddings, mask, positions) that reach the language model, and the output."""
    batch, seen = laid_out(model, batch, **more), {}
    handle = model.model.language_model.register_forward_pre_hook(lambda _, __, kwargs: seen.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        output = model(**batch)
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
    assert output.logits.shape[:2] == longer.shape[:2] and output.logits.shape[1] > base.logits.shape[1]
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
        if positions is not None:  # else they count the tokens
            got_positions = positions[:, row][:, long_mask[row].bool()]
            assert torch.equal(got_positions, expected_positions(model, batch, row, expected, inserted))


def expected_positions(model, batch, row, everything, inserted):
    """The base's own position plus the number of tokens inserted before; an inserted token goes one past all before it."""
    kept = batch["attention_mask"][row].bool()
    own = get_interface(model.config).position_ids(model.config, batch)[:, row][:, kept]
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
    plain = case.batch(processor)
    batch = laid_out(model, plain, side_channels={"audio": ragged_side()})
    other = laid_out(model, plain, side_channels={"audio": side_tokens(steps=7, per_step=2, seed=9)})
    with torch.no_grad():
        one = model(**batch).logits
        assert not torch.allclose(one[:, -1], model(**other).logits[:, -1], atol=1e-3)
        assert torch.equal(model(**batch, return_dict=False)[0], one)
        torch.testing.assert_close(model(**batch, logits_to_keep=3).logits, one[:, -3:])
    greedy = {"max_new_tokens": 5, "do_sample": False}
    tokens = model.generate(**batch, **greedy)
    prompt = batch["input_ids"].shape[1]
    assert torch.equal(tokens[:, :prompt], batch["input_ids"]) and tokens.shape[1] <= prompt + 5
    assert torch.equal(tokens[:, prompt], one[:, -1].argmax(-1))
    assert torch.equal(tokens, model.generate(**batch, **greedy, use_cache=False))
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, -2:] = batch["input_ids"][:, -2:]
    loss = model(**batch, labels=labels).loss
    loss.backward()
    expected = torch.nn.functional.cross_entropy(one[:, -3:-1].flatten(0, 1), labels[:, -2:].flatten())
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.pave_patches.parameters())


def batch_with_positions(case, model, processor):
    """A batch as the collator makes it: with the positions that the base was trained with, where its own are others."""
    batch = case.batch(processor)
    positions = get_interface(model.config).position_ids(model.config, batch)
    return batch if positions is None else {**batch, "position_ids": positions}


def row_of(batch, row):
    """One row of such a batch with its video."""
    patches = batch["video_grid_thw"].prod(dim=1).tolist() if "video_grid_thw" in batch else 1
    sizes = {"pixel_values_videos": (patches, 0), "position_ids": (1, 1)}
    out = {}
    for key, value in batch.items():
        size, dim = sizes.get(key, (1, 0))
        out[key] = value.split(size, dim)[row]
    return out


@pytest.mark.parametrize("kind", ["concat", "interleave"])
def test_rows_with_and_without_the_patch_equal_themselves_alone(case, kind):
    """Videos get unequal numbers of tokens, and a row of the base none: logits, greedy decoding and beams."""
    model, processor = patched(case, small_config(kind=kind))
    batch = batch_with_positions(case, model, processor)
    side = ragged_side()
    for acting in ([True, True], [True, False], [False, True]):
        patches = ["default" if acts else None for acts in acting]
        given = {**batch, "side_channels": {"audio": side}}
        mixed = lay_out_prompt(given, model.config, model.patch_config, rows=acting)
        kept = mixed["attention_mask"].bool()
        with torch.no_grad():
            together = model(**mixed, patches=patches).logits
        beams = {"max_new_tokens": 4, "num_beams": 3, "num_return_sequences": 2, "do_sample": False, "eos_token_id": None}
        sequences = model.generate(**mixed, patches=patches, **beams)[:, kept.shape[1] :]
        for row in range(2):
            one = {**row_of(batch, row), "side_channels": {"audio": side.select([row])}}
            alone = lay_out_prompt(one, model.config, model.patch_config, rows=[acting[row]])
            mask = alone["attention_mask"].bool()[0]
            assert torch.equal(alone["input_ids"][0][mask], mixed["input_ids"][row][kept[row]])
            with torch.no_grad():
                logits = model(**alone, patches=patches[row : row + 1]).logits[0]
            torch.testing.assert_close(logits[mask], together[row][kept[row]], atol=2e-5, rtol=1e-4)
            wanted = model.generate(**alone, patches=patches[row : row + 1], **beams)[:, len(mask) :]
            assert torch.equal(sequences[2 * row : 2 * row + 2], wanted)


def test_a_row_of_the_base_is_the_base(case):
    """Beside a row whose prompt grew, and bit for bit in a call of its own."""
    model, processor = patched(case, small_config(kind="concat"))
    batch, side = batch_with_positions(case, model, processor), ragged_side()
    mixed = lay_out_prompt({**batch, "side_channels": {"audio": side}}, model.config, model.patch_config, rows=[False, True])
    own = {key: value for key, value in mixed.items() if key not in ("side_channels", "frame_times", "added_tokens")}
    base, _ = case.build()
    with torch.no_grad():
        together = model(**mixed, patches=[None, "default"]).logits[0]
        torch.testing.assert_close(together, base(**row_of(own, 0)).logits[0], atol=1e-6, rtol=1e-5)
        one = row_of(batch, 0)
        given = {**one, "side_channels": {"audio": side.select([0])}}
        alone = lay_out_prompt(given, model.config, model.patch_config, rows=[False])
        assert "added_tokens" not in alone
        del one["frame_times"]
        assert torch.equal(model(**alone, patches=[None]).logits, base(**one).logits)


def test_without_the_channel_or_disabled_it_is_the_base(case):
    model, processor = case.build()
    batch = case.batch(processor)
    times = batch.pop("frame_times")
    with torch.no_grad():
        expected = model(**batch).logits
        shake(attach_patch(model, small_config(kind="concat")))
        call = {"frame_times": times, "side_channels": {"audio": side_tokens()}}
        assert torch.equal(model(**batch).logits, expected)
        none = SideTokens(torch.zeros(2, 3, 4, WIDTH), torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 3))
        assert torch.equal(model(**laid_out(model, batch, frame_times=times, side_channels={"audio": none})).logits, expected)
        with model.patch_disabled():
            assert torch.equal(model(**batch, **call).logits, expected)
        with model.patch_scaled(0.5), pytest.raises(ValueError, match="cannot act at strength 0.5"):
            model(**laid_out(model, batch, **call))


def test_a_prompt_that_was_laid_out_otherwise_is_refused(case):
    """One sentence, naming the helper, whatever does not fit."""
    model, processor = patched(case, small_config(kind="interleave"))
    plain = case.batch(processor)
    side = ragged_side()
    call = {"side_channels": {"audio": side}}
    batch = laid_out(model, plain, **call)
    later = SideTokens(side.embeds_BKMC, side.valid_BK, side.times_BK + 1.5)
    longer = {"side_channels": {"audio": side_tokens(steps=8, per_step=2)}}
    helper = r"by pave\.lay_out_prompt\(batch, model\.config, model\.patch_config\)"
    for given, message in (
        ({**plain, **call}, f"'default' adds 20 tokens to the prompt, which has room for 0 .*{helper}"),
        ({**batch, "side_channels": {"audio": later}}, f"adds 20 tokens .* room for 20 .*, elsewhere: .*{helper}"),
        ({**batch, **longer}, f"adds 32 tokens to the prompt, which has room for 20 .*{helper}"),
        ({**batch, "patches": None, "side_channels": None}, "add 0 tokens .* room for 20 .*: give it the prompt as the base's"),
        ({**batch, "added_tokens": batch["added_tokens"][:1]}, "added_tokens: 1 videos, but the call has 2 videos"),
        ({**batch, "added_tokens": torch.zeros(2)}, "added_tokens: expected integers of shape"),
    ):
        with pytest.raises(ValueError, match=message), torch.no_grad():
            model(**given)
    with model.patch_disabled(), pytest.raises(ValueError, match="add 0 tokens .* room for 20"):
        model.generate(**batch, max_new_tokens=1)
