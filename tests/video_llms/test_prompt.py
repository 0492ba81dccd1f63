"""Prompts with room for the tokens that a patch adds: how they are laid out, and taken back."""

from __future__ import annotations

import pytest
import torch

from cases import CASES, side_tokens, small_config
from pave import SideTokens, lay_out_prompt
from pave.video_llms import get_interface
from pave.video_llms.prompt import plain_prompt, rows_of_videos

KINDS = ("concat", "interleave")


def test_videos_are_counted_into_rows():
    ids = torch.tensor([[7, 7, 7, 1], [1, 2, 3, 4], [7, 7, 1, 7]])
    assert rows_of_videos(ids == 7, [3, 2, 1]) == [0, 2, 2]
    assert rows_of_videos(ids == 7, [1, 2, 3]) == [0, 0, 2]
    with pytest.raises(ValueError, match="6 video placeholders .*make 5 tokens"):
        rows_of_videos(ids == 7, [3, 2])
    with pytest.raises(ValueError, match="row 0 has room for 3"):
        rows_of_videos(ids == 7, [4, 2])


def batch_and_config(name, **more):
    """A batch of two questions of unequal length with labels on the last three tokens, and the base's config."""
    case = CASES[name]
    model, processor = case.build()
    batch = case.batch(processor, ("what sound?", "which object was moving when?"))
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, -3:] = batch["input_ids"][:, -3:]
    side = side_tokens(steps=5, per_step=2)
    side.valid_BK[0, 2] = False
    return {**batch, "labels": labels, "side_channels": {"audio": side}, **more}, model.config


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_everything_that_goes_with_a_token_goes_with_it(name, kind, side):
    batch, config = batch_and_config(name)
    out = lay_out_prompt(batch, config, small_config(kind=kind), padding_side=side)
    mask, was = out["attention_mask"].bool(), batch["attention_mask"].bool()
    assert mask.sum(dim=1).tolist() == [int(was[0].sum()) + 8, int(was[1].sum()) + 10]
    assert [[p for p in row if p >= 0] for row in out["added_tokens"].tolist()] == [
        row[: 8 + 2 * number] for number, row in enumerate(out["added_tokens"].tolist())
    ]
    for row in range(2):
        ids, own = out["input_ids"][row][mask[row]], batch["input_ids"][row][was[row]]
        video = ids == config.video_token_id
        assert torch.equal(ids[~video], own[own != config.video_token_id])
        assert int(video.sum()) == int((own == config.video_token_id).sum()) + 8 + 2 * row
        labels = out["labels"][row]
        assert torch.equal(labels[labels != -100], batch["labels"][row, -3:])
        assert torch.equal(out["input_ids"][row][labels != -100], batch["input_ids"][row, -3:])
        if "mm_token_type_ids" in batch:
            assert torch.equal(out["mm_token_type_ids"][row] == 2, out["input_ids"][row] == config.video_token_id)
    assert ("position_ids" in out) == (name == "qwen2_5_vl")
    assert mask.shape[1] == int(mask.sum(dim=1).max()) and bool(mask[:, -1 if side == "left" else 0].all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_a_prompt_is_laid_out_anew_and_given_back(name, kind):
    batch, config = batch_and_config(name)
    patch, side = small_config(kind=kind), batch["side_channels"]["audio"]
    other = SideTokens(side.embeds_BKMC, torch.tensor([[False] * 5, [True] * 5]), side.times_BK)
    back = plain_prompt(lay_out_prompt(batch, config, patch), config)
    positions = back.pop("position_ids", None)
    assert (positions is None) == (name == "llava_onevision")
    assert back.keys() == batch.keys()
    for key in ("input_ids", "attention_mask", "labels"):
        assert torch.equal(back[key], batch[key])
    if positions is not None:
        assert torch.equal(positions, get_interface(config).position_ids(config, batch))
    for padding in ("left", "right"):
        once = lay_out_prompt(batch, config, patch, padding_side=padding)
        anew = lay_out_prompt({**once, "side_channels": {"audio": other}}, config, patch, padding_side=padding)
        fresh = lay_out_prompt({**batch, "side_channels": {"audio": other}}, config, patch, padding_side=padding)
        assert anew.keys() == fresh.keys()
        for key in ("input_ids", "attention_mask", "labels", "added_tokens", "position_ids"):
            assert key not in fresh or torch.equal(anew[key], fresh[key])


def test_a_patch_that_adds_nothing_leaves_the_batch_as_it_is():
    batch, config = batch_and_config("llava_onevision")
    assert lay_out_prompt(batch, config, small_config()) == batch
    text = {"input_ids": torch.tensor([[1, 2]])}
    assert lay_out_prompt(text, config, small_config(kind="concat")) == text


def test_what_cannot_be_laid_out_is_refused():
    batch, config = batch_and_config("llava_onevision")
    patch = small_config(kind="interleave")
    for changes, message in (
        ({"input_ids": None}, "pass input_ids, not inputs_embeds"),
        ({"branches": batch["labels"]}, "leave no room"),
        ({"side_channels": {"audio": {"x": 1}}}, "expected SideTokens of this patch alone, got dict"),
        ({"side_channels": {"audio": side_tokens(videos=3)}}, "side_channels hold 3 videos, but the call has 2"),
        ({"frame_times": None}, "needs the time of every video frame"),
        ({"frame_times": batch["frame_times"][:, :2]}, "has times for 2 time steps of the model, but 4 steps"),
    ):
        with pytest.raises(ValueError, match=message):
            lay_out_prompt({**batch, **changes}, config, patch)
