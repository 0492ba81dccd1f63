"""Changed side streams: each kind does what its line in the table says, and the model sees it."""

import dataclasses

import numpy as np
import pytest
import torch

from pave.data.items import PatchItem
from pave.data.samples import Sample
from pave.evaluation.counterfactuals import DEFAULTS, Counterfactual
from pave.evaluation.inference import VideoQA
from pave.evaluation.runner import evaluate
from pave.side_channels import SideFeatures
from tiny_runs import save_base_and_patch, write_clip


def ramp(steps=8, spacing=0.5, start=0.25):
    """Features that equal their own time, so that interpolation can be read off, and a token that does not."""
    times = start + spacing * torch.arange(steps, dtype=torch.float64)
    features = torch.stack([times.float(), -3 * times.float()], dim=1)[:, None, :].repeat(1, 2, 1)
    return SideFeatures(features, times)


def changed(text, own=None, other=None, meta=None, seed=0, sample="s"):
    own = ramp() if own is None else own
    item = PatchItem(sample, np.zeros((1, 2, 2, 3), np.uint8), np.zeros(1), (("?", None),), {"audio": own, "imu": ramp(3)})
    asked = Sample(id=sample, video="v.mp4", question="?", meta=meta or {})
    return Counterfactual.parse(text, seed).apply(item, asked, {"audio": other, "imu": other}).side


def test_removed_and_swapped_take_the_stream_away_or_another_one():
    other = ramp(5)
    assert changed("removed") == {"audio": None, "imu": None}
    assert changed("audio:removed")["audio"] is None and changed("audio:removed")["imu"] is not None
    assert changed("swapped", other=other) == {"audio": other, "imu": other}
    assert changed("swapped")["audio"] is None  # the other video has no sound


def test_shifted_moves_times_and_nothing_else():
    out = changed("shifted=-1.5")["audio"]
    assert torch.equal(out.times_K, ramp().times_K - 1.5) and torch.equal(out.features_KMC, ramp().features_KMC)


def test_noised_adds_noise_of_the_features_own_size_the_same_every_time():
    long = ramp(4000)
    out = changed("noised=0.5", long)["audio"]
    noise = (out.features_KMC - long.features_KMC).flatten(0, 1)
    spread = long.features_KMC.flatten(0, 1).std(dim=0)
    torch.testing.assert_close(noise.std(dim=0) / spread, torch.full((2,), 0.5), rtol=0.05, atol=0)
    assert abs(float(np.corrcoef(noise.T.numpy())[0, 1])) < 0.05
    again = changed("noised=0.5", long)["audio"].features_KMC
    assert torch.equal(out.features_KMC, again)
    assert not torch.equal(again, changed("noised=0.5", long, sample="t")["audio"].features_KMC)
    assert not torch.equal(again, changed("noised=0.5", long, seed=1)["audio"].features_KMC)


def test_thinned_keeps_that_share_of_steps_in_order():
    out = changed("thinned=0.75", ramp(40))["audio"]
    assert len(out) == 10 and (out.times_K.diff() > 0).all()
    torch.testing.assert_close(out.features_KMC[:, 0, 0].double(), out.times_K)


@pytest.mark.parametrize(("text", "steps"), [("resampled=2", 15), ("resampled=0.5", 5), ("rerated=3", 16)])
def test_another_rate_keeps_span_and_true_values(text, steps):
    own = ramp(8)
    out = changed(text, own)["audio"]
    assert len(out) == steps
    assert out.times_K[0] == own.times_K[0] and out.times_K[-1] == own.times_K[-1]
    torch.testing.assert_close(out.features_KMC[:, 0, 0].double(), out.times_K, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(out.features_KMC[:, 1, 1].double(), -3 * out.times_K, rtol=1e-6, atol=1e-6)
    spacing = out.times_K.diff()
    if text.startswith("rerated"):
        torch.testing.assert_close(spacing[:3], torch.full((3,), 0.5, dtype=torch.float64))
        torch.testing.assert_close(spacing[3:], torch.full((12,), 0.5 / 3, dtype=torch.float64))
    else:
        torch.testing.assert_close(spacing, spacing[:1].expand(len(spacing)))


def test_early_puts_the_end_of_another_stream_in_front():
    own, other = ramp(8), SideFeatures(torch.full((20, 2, 2), 9.0), torch.arange(20, dtype=torch.float64))
    out = changed("early=2.5", own, other)["audio"]
    assert len(out) == 8 + 3 and (out.features_KMC[:3] == 9).all() and torch.equal(out.features_KMC[3:], own.features_KMC)
    assert out.times_K[:4].tolist() == [-2.25, -1.25, -0.25, 0.25] and torch.equal(out.times_K[3:], own.times_K)


def test_a_gap_is_one_stretch_that_keeps_clear_of_events():
    own = ramp(101, 0.1, 0.0)
    for seed in range(20):
        out = changed("gap=0.2", own, seed=seed, meta={"events": [[3.0, 7.0]]})["audio"]
        missing = sorted(set(own.times_K.tolist()) - set(out.times_K.tolist()))
        assert 19 <= len(missing) <= 21 and max(np.diff(missing)) < 0.11
        assert missing[-1] < 3.0 or missing[0] > 7.0
    hit = [changed("gap=0.2", own, seed=seed)["audio"] for seed in range(20)]
    starts = {round(float((set(own.times_K.tolist()) - set(out.times_K.tolist())).pop()), 3) for out in hit}
    assert len(starts) > 5


def test_partners_are_of_another_video_and_each_lends_once():
    samples = [Sample(id=f"{v}-{i}", video=f"{v}.mp4", question="?") for v in range(7) for i in range(2)]
    for seed in range(5):
        lent = Counterfactual("swapped", seed=seed).partners(samples)
        by_video = {s.video: lent[s.id].video for s in samples}
        assert all(lent[s.id].video == by_video[s.video] != s.video for s in samples)
        assert sorted(by_video.values()) == sorted(by_video)
    assert Counterfactual("noised").partners(samples) == {}
    with pytest.raises(ValueError, match="at least 2 videos"):
        Counterfactual("swapped").partners(samples[:2])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mirrored", "there is no counterfactual 'mirrored'; known: removed"),
        ("removed=1", "takes no value"),
        ("gap=1", "share between 0 and 1, got 1"),
        ("noised=-1", "a positive number"),
        ("shifted=inf", "a finite number"),
        ("shifted=0", "a finite number other than 0, got 0"),
        ("thinned=much", "'much' is no number"),
    ],
)
def test_bad_ones_are_named(text, words):
    with pytest.raises(ValueError, match=words):
        Counterfactual.parse(text)


def test_text_and_back():
    assert [str(Counterfactual.parse(kind)) for kind in ("removed", "shifted", "audio:noised=0.25")] == [
        "removed",
        "shifted=2",
        "audio:noised=0.25",
    ]
    assert all(Counterfactual(kind).kind == kind for kind in DEFAULTS)


def test_steps_that_do_not_ascend_are_not_interpolated():
    views = SideFeatures(torch.zeros(4, 1, 2), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    with pytest.raises(ValueError, match="do not ascend"):
        changed("resampled", views)


# --- through a real model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("counterfactuals")
    base, patch = save_base_and_patch(folder)
    samples = [
        Sample(id=f"s{i}", video=str(write_clip(folder / f"{i}.mp4", seed=i)), question="what sound is heard?", answer="bell")
        for i in range(3)
    ]
    return base, patch, samples, folder


def texts(result):
    return {p.id: p.prediction for p in result.predictions}


def test_the_model_answers_what_it_would_answer_to_the_changed_stream(run):
    base, patch, samples, folder = run
    qa = VideoQA.from_pretrained(base, patch, device="cpu")
    plain = texts(evaluate(qa, samples, max_new_tokens=6, progress=False))
    removed = texts(evaluate(qa, samples, counterfactual=Counterfactual("removed"), max_new_tokens=6, progress=False))
    alone = texts(evaluate(qa, samples, patch=False, max_new_tokens=6, progress=False))
    assert removed == alone != plain
    swap = Counterfactual("swapped", seed=1)
    swapped = texts(evaluate(qa, samples, counterfactual=swap, max_new_tokens=6, progress=False))
    lent = swap.partners(samples)
    by_hand = [dataclasses.replace(s, side_channels={"audio": lent[s.id].video}) for s in samples]
    assert swapped == texts(evaluate(qa, by_hand, max_new_tokens=6, progress=False)) != plain
    assert texts(evaluate(qa, samples, max_new_tokens=6, progress=False)) == plain  # it does not stick


def test_predictions_of_another_counterfactual_are_another_run(run):
    base, patch, samples, folder = run
    qa = VideoQA.from_pretrained(base, patch, device="cpu")
    evaluate(qa, samples, predictions=folder / "p.jsonl", max_new_tokens=2, progress=False)
    with pytest.raises(ValueError, match="counterfactual was None, now it is 'removed, seed 0'"):
        evaluate(
            qa,
            samples,
            predictions=folder / "p.jsonl",
            counterfactual=Counterfactual("removed"),
            max_new_tokens=2,
            progress=False,
        )


def test_a_model_without_the_channel_is_refused(run):
    base, patch, samples, _ = run
    with pytest.raises(ValueError, match="no side channel to change"):
        VideoQA.from_pretrained(base, device="cpu").use_counterfactual(Counterfactual("removed"), samples)
    with pytest.raises(ValueError, match="no side channel 'depth', it has audio"):
        VideoQA.from_pretrained(base, patch, device="cpu").use_counterfactual(Counterfactual.parse("depth:removed"), samples)


def test_videos_that_share_a_file_of_a_stream_do_not_lend_it_to_each_other():
    def sample(number, **side):
        return Sample(id=f"s{number}", video=f"v{number}.mp4", question="?", side_channels=side)

    samples = [sample(0, audio="x.wav"), sample(1, audio="./x.wav"), sample(2), sample(3, audio="y.wav", imu="m.csv")]
    samples += [sample(4, imu="m.csv"), sample(5, audio="v2.mp4")]
    for seed in range(10):
        lent = {key: value.id for key, value in Counterfactual("swapped", seed=seed).partners(samples).items()}
        pairs = [{"s0", "s1"}, {"s2", "s5"}, {"s3", "s4"}]
        assert all(lent[one] not in pair and lent[one] == lent[min(pair)] for pair in pairs for one in pair)
    alone = [Counterfactual("swapped", channel="audio", seed=seed).partners(samples)["s3"].id for seed in range(20)]
    assert "s4" in alone  # they share a stream of another channel only
    with pytest.raises(ValueError, match="at least 2 videos"):
        Counterfactual("swapped").partners(samples[:2])
    chain = [sample(0, audio="a"), sample(1, audio="b"), sample(2, audio="a", imu="b")]
    with pytest.raises(ValueError, match="at least 2 videos"):
        Counterfactual("swapped").partners(chain)
