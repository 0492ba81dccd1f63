"""Channel dropout: what is taken away, how often, never twice otherwise, and never in evaluation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pave.config import PatchConfig
from pave.tokens import SideTokens
from pave.training.channel_dropout import drop_channels, dropout_rates
from tiny_trainers import Items, build, patch_config, weights

IDS = [f"s{i}" for i in range(2000)]


def sides(rows, lacking=()):
    made = {}
    for name in ("audio", "depth"):
        valid = torch.ones(rows, 3, dtype=torch.bool)
        valid[:, 2] = torch.arange(rows) % 2 == 0  # ragged
        if name in lacking:
            valid[: rows // 2] = False
        made[name] = SideTokens(torch.randn(rows, 3, 1, 2), valid, torch.arange(3.0).expand(rows, -1))
    return made


def test_each_channel_is_taken_away_as_often_as_it_says():
    given = sides(len(IDS))
    out = drop_channels(given, {"audio": 0.3}, IDS, seed=0, step=4, keep_one=False)
    assert out["depth"] is given["depth"]
    here = out["audio"].present_B()
    assert float(here.float().mean()) == pytest.approx(0.7, abs=0.03)
    assert torch.equal(out["audio"].valid_BK, given["audio"].valid_BK & here[:, None])  # whole rows, the others as they were
    assert torch.equal(out["audio"].embeds_BKMC, given["audio"].embeds_BKMC)
    assert bool(given["audio"].present_B().all())


def test_channels_are_taken_away_independently_of_each_other():
    out = drop_channels(sides(len(IDS)), {"audio": 0.4, "depth": 0.5}, IDS, seed=0, step=0, keep_one=False)
    gone = {name: ~side.present_B() for name, side in out.items()}
    assert float((gone["audio"] & gone["depth"]).float().mean()) == pytest.approx(0.2, abs=0.03)


def test_where_the_base_is_all_that_is_left_one_channel_stays():
    out = drop_channels(sides(len(IDS)), {"audio": 0.4, "depth": 0.5}, IDS, seed=0, step=0, keep_one=True)
    here = {name: side.present_B() for name, side in out.items()}
    assert bool((here["audio"] | here["depth"]).all())
    for name, rate in (("audio", 0.4), ("depth", 0.5)):  # each stays in half of the 20 % where both would have gone
        assert 1 - float(here[name].float().mean()) == pytest.approx(rate - 0.1, abs=0.03)
    lacking = drop_channels(sides(len(IDS), lacking=("depth",)), {"audio": 0.9}, IDS, seed=0, step=0, keep_one=True)
    half = len(IDS) // 2
    audio = lacking["audio"].present_B()
    assert bool(audio[:half].all())  # the only one they have
    assert float(audio[half:].float().mean()) == pytest.approx(0.1, abs=0.03)


def test_the_choice_goes_with_the_sample_and_not_with_its_batch():
    whole = drop_channels(sides(40), {"audio": 0.5}, IDS[:40], seed=1, step=3, keep_one=False)["audio"].present_B()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    ids = [IDS[i] for i in order]
    parts = [drop_channels(sides(8), {"audio": 0.5}, ids[n : n + 8], seed=1, step=3, keep_one=False) for n in range(0, 40, 8)]
    assert torch.equal(torch.cat([part["audio"].present_B() for part in parts]), whole[order])
    for other in ({"seed": 2, "step": 3}, {"seed": 1, "step": 4}):
        again = drop_channels(sides(40), {"audio": 0.5}, IDS[:40], keep_one=False, **other)["audio"].present_B()
        assert not torch.equal(again, whole)


def test_rates_are_checked():
    one = patch_config(missing_channel="lora_only")
    assert dropout_rates(0.2, one) == {"audio": 0.2} and dropout_rates({"audio": 0.3}, one) == {"audio": 0.3}
    assert dropout_rates(0.0, patch_config()) == {} == dropout_rates({"audio": 0.0}, patch_config())
    two = replace(patch_config(), side_channels={"audio": one.side_channels["audio"], "depth": one.side_channels["audio"]})
    assert dropout_rates(0.2, two) == {"audio": 0.2, "depth": 0.2}
    for given, patch, message in (
        ({"sound": 0.1}, one, "the patch has no side channel 'sound'; it has: audio"),
        (1.0, one, "at least 0 and below 1, got 1.0"),
        (float("nan"), one, "at least 0 and below 1, got nan"),
        (0.1, PatchConfig(side_channels={}), "the patch has none"),
        (0.1, patch_config(), "'audio', the only channel, and under missing_channel 'base' such a video is exactly the base"),
    ):
        with pytest.raises(ValueError, match=message):
            dropout_rates(given, patch)


def test_a_dropped_row_under_lora_only_trains_lora_alone(tmp_path):
    """All rows lose their channel: the fusion gets a gradient of zero (and not none), LoRA gets that of the bare video."""
    common = {"config": patch_config(missing_channel="lora_only"), "steps": 1}
    dropped = build(tmp_path / "a", channel_dropout=0.999999, **common)
    bare = build(tmp_path / "b", dataset=Items(missing=range(16)), **common)
    for trainer in (dropped, bare):
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        items = trainer.train_dataset.items[:4]
        trainer.model.train()
        trainer.compute_loss(trainer.model, trainer.data_collator(items)).backward()
    fusion = dict(dropped.model.named_parameters())
    for name, parameter in bare.model.named_parameters():
        if parameter.requires_grad:
            assert fusion[name].grad is not None
            torch.testing.assert_close(fusion[name].grad, parameter.grad, rtol=1e-5, atol=1e-7)
    assert any(float(p.grad.abs().max()) > 1e-5 for n, p in fusion.items() if ".lora_B" in n)
    assert all(float(p.grad.abs().max()) == 0 for n, p in fusion.items() if "pave_patches" in n and p.requires_grad)


def test_evaluation_sees_every_channel(tmp_path):
    config = patch_config(missing_channel="lora_only")
    losses = []
    for rate in (0.0, 0.9):
        trainer = build(tmp_path / str(rate), config=config, eval_dataset=Items(6), channel_dropout=rate)
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses[0] == losses[1]


def test_accumulation_with_channel_dropout_equals_the_larger_batch_and_resumes(tmp_path):
    from pave.training.sampler import Stage

    common = {
        "config": patch_config(missing_channel="lora_only"),
        "steps": 4,
        "stages": [Stage(steps=4)],
        "channel_dropout": 0.5,
    }
    large = build(tmp_path / "large", batch_size=8, **common)
    small = build(tmp_path / "small", batch_size=2, accumulation=4, save_every=2, keep_checkpoints=None, **common)
    again = build(tmp_path / "again", batch_size=2, accumulation=4, **common)
    without = build(tmp_path / "without", batch_size=8, **{**common, "channel_dropout": 0.0})
    large.train(), small.train(), without.train()
    again.train(resume_from_checkpoint=str(tmp_path / "small" / "checkpoint-2"))
    for a, b in zip(weights(large.model), weights(small.model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5)
    assert all(torch.equal(a, b) for a, b in zip(weights(small.model), weights(again.model), strict=True))
    assert not all(torch.allclose(a, b, rtol=1e-2) for a, b in zip(weights(large.model), weights(without.model), strict=True))


@pytest.mark.parametrize(("missing_channel", "stays"), [("base", True), ("lora_only", False)])
def test_the_trainer_leaves_the_last_channel_where_the_base_would_be_left(tmp_path, missing_channel, stays):
    one = patch_config(missing_channel=missing_channel)
    config = replace(one, side_channels={"audio": one.side_channels["audio"], "depth": one.side_channels["audio"]})
    trainer = build(tmp_path, config=config, channel_dropout={"audio": 0.999999})
    seen = []
    trainer.model.register_forward_pre_hook(lambda m, a, kwargs: seen.append(kwargs["side_channels"]), with_kwargs=True)
    trainer.model.train()
    trainer.compute_loss(trainer.model, trainer.data_collator(Items().items[:8]))
    assert seen[0]["audio"].present_B().tolist() == [stays and i != 5 for i in range(8)]  # nobody has depth
    assert not bool(seen[0]["depth"].present_B().any())
