"""The linear probe: what it finds, what it does not find, and how sure it is, on features whose truth is known."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pave.cli import main
from pave.cli.probe import probe_text
from pave.config import EncoderConfig, SideChannelConfig
from pave.data.answer_probe import ProbeScore, cross_validated, fit_probe, probe_samples, summarise
from pave.data.dataset import PatchDataset
from pave.data.media import FrameSampling
from pave.data.samples import Sample
from pave.playground.shakes import SHAKE, draw_log
from pave.side_channels import SideFeatures, build_encoder
from pave.utils.proportions import wilson

ANSWERS = ("slow", "steady", "fast")
WITH_FREQUENCIES = ["mean", "std", "min", "max", "slope", "last", "share", "crossings", "centroid", "peak", "bands"]


def logs(folder, count, shuffled=False):
    """Samples on logs alone: the probe never opens a video."""
    rng = np.random.default_rng(3)
    answers = [ANSWERS[i % 3] for i in range(count)]
    samples = []
    for i, answer in enumerate(answers):
        rows = "".join(f"{t:.4f},{v:.4f}\n" for t, v in draw_log(answer, 5.0, np.random.default_rng([7, i])))
        (folder / f"{i}.csv").write_text("time,shake\n" + rows)
        told = ANSWERS[int(rng.integers(3))] if shuffled else answer
        sides = {"shake": str(folder / f"{i}.csv")}
        samples.append(Sample(id=str(i), video=f"{i}.mp4", question="?", answer=told, type=SHAKE, side_channels=sides))
    return samples


def dataset(**settings):
    config = EncoderConfig(name="sensor_windows", settings={"columns": ["shake"], "stride_seconds": 0.5, **settings})
    encoder = build_encoder(config)
    channels = {"shake": SideChannelConfig(kind="sensor", width=encoder.width, encoder=config)}
    return PatchDataset((), FrameSampling(num_frames=8), {"shake": encoder}, channels)


def test_single_values_do_not_hold_a_frequency_and_frequencies_do(tmp_path):
    samples = logs(tmp_path, 40)
    (blind,) = probe_samples(samples, dataset(statistics=["last"]))
    (seeing,) = probe_samples(samples, dataset(window_seconds=2.0, statistics=WITH_FREQUENCIES))
    assert (blind.channel, blind.type, blind.streams, blind.answers) == ("shake", SHAKE, 40, 3)
    assert blind.chance == pytest.approx(14 / 40)
    assert (blind.near_chance or blind.unsure) and not blind.holds
    assert seeing.holds and seeing.accuracy >= 0.95 and seeing.low > 0.8


def test_near_chance_goes_by_the_interval_and_held_by_what_guessing_gets_wrong():
    def score(accuracy, streams):
        low, high = wilson(accuracy, streams)
        facts = {"channel": "c", "type": "t", "streams": streams, "answers": 3}
        return ProbeScore(**facts, accuracy=accuracy, low=low, high=high, chance=1 / 3)

    words = {(a, n): score(a, n).verdict.removeprefix("these features ") for a in (0.3, 0.45, 0.6, 0.7) for n in (10, 40, 300)}
    assert words == {
        **{(0.3, n): "do not hold the answer" for n in (10, 40, 300)},
        (0.45, 10): "too few streams to tell",
        (0.45, 40): "too few streams to tell",
        (0.45, 300): "hold little of the answer",
        (0.6, 10): "too few streams to tell",
        (0.6, 40): "hold little of the answer",
        (0.6, 300): "hold little of the answer",
        (0.7, 10): "hold the answer",
        (0.7, 40): "hold the answer",
        (0.7, 300): "hold the answer",
    }


def test_answers_drawn_at_random_are_not_held_by_any_features(tmp_path):
    (score,) = probe_samples(logs(tmp_path, 60, shuffled=True), dataset(window_seconds=2.0, statistics=WITH_FREQUENCIES))
    assert not score.holds


def test_a_stream_with_many_questions_counts_once_and_is_in_one_fold():
    """Rows that are alike within a group and random between: a fold that split groups would read them."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 4)
    features = np.repeat(rng.normal(size=(30, 20)), 4, axis=0)
    answers = np.repeat(rng.integers(0, 2, 30), 4)
    right, chance = cross_validated(features, [str(a) for a in answers], groups.tolist())
    assert right < 0.75 and chance == max(np.bincount(answers)) / len(answers)
    uneven = [0] * 90 + list(range(1, 11))  # 90 rows of one stream weigh as much as one row of another
    _, chance = cross_validated(np.zeros((100, 1)), ["a"] * 90 + ["b"] * 10, uneven)
    assert chance == pytest.approx(10 / 11)


def test_the_fit_is_the_minimum_of_its_loss():
    """Against plain gradient descent, run until nothing moves."""
    rng = np.random.default_rng(1)
    features, labels = rng.normal(size=(50, 3)), rng.integers(0, 3, 50)
    features[:, 2] = 5.0  # does not vary, and must not divide by zero
    x = torch.from_numpy((features - features.mean(0)) / np.where(features.std(0) > 1e-9, features.std(0), np.inf))
    weight = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    for _ in range(4000):
        loss = torch.nn.functional.cross_entropy(x @ weight + bias, torch.from_numpy(labels)) + 1e-2 * weight.square().sum()
        gradients = torch.autograd.grad(loss, (weight, bias))
        with torch.no_grad():
            weight -= 0.5 * gradients[0]
            bias -= 0.5 * gradients[1]
    asked = rng.normal(size=(200, 3)) + np.array([0, 0, 5])
    scaled = torch.from_numpy((asked - features.mean(0)) / np.where(features.std(0) > 1e-9, features.std(0), np.inf))
    expected = (scaled @ weight + bias).argmax(dim=1).detach().numpy()
    assert (fit_probe(features, labels, 3)(asked) == expected).mean() > 0.98


def test_a_summary_leaves_out_what_is_not_finite():
    features = torch.tensor([[[1.0, 2.0]], [[3.0, 6.0]], [[torch.nan, 0.0]]])
    found = summarise(SideFeatures(features, torch.arange(3, dtype=torch.float64)))
    np.testing.assert_allclose(found, [2, 4, 1, 2])
    assert summarise(None) is None
    assert summarise(SideFeatures(features[2:], torch.zeros(1, dtype=torch.float64))) is None


def test_what_cannot_be_judged_is_left_out(tmp_path):
    samples = logs(tmp_path, 12)
    assert probe_samples(samples[:9], dataset()) == []  # too few streams
    same = [Sample(**{**s.to_dict(), "answer": "slow"}) for s in samples]
    assert probe_samples(same, dataset()) == []  # nothing to tell apart
    unique = [Sample(**{**s.to_dict(), "answer": f"a{i}"}) for i, s in enumerate(samples)]
    assert probe_samples(unique, dataset()) == []
    missing = [Sample(**{**s.to_dict(), "side_channels": {"shake": None}}) for s in samples]
    assert probe_samples(missing, dataset()) == []


def asked_of_all(samples, *texts):
    """Every question of every stream; of the second text on the answers are turned by one."""
    turned = [{answer: ANSWERS[(i + n) % 3] for i, answer in enumerate(ANSWERS)} for n in range(len(texts))]
    return [
        replace(s, id=f"{s.id}-{n}", question=text, answer=turned[n][s.answer]) for s in samples for n, text in enumerate(texts)
    ]


def test_several_questions_about_one_stream_are_probed_one_by_one(tmp_path):
    """Together they contradict each other: of one stream three answers are right, by the question."""
    samples = logs(tmp_path, 40)
    data = dataset(window_seconds=2.0, statistics=WITH_FREQUENCIES)
    scores = probe_samples(asked_of_all(samples, "how?", "how not?", "else?"), data)
    assert [score.question for score in scores] == ["how?", "how not?", "else?"]
    assert all(score.holds and score.accuracy >= 0.95 and score.streams == 40 for score in scores)
    assert [score.name for score in scores][1] == f"{SHAKE}: how not?"


def test_texts_that_are_asked_too_seldom_are_not_told(tmp_path):
    samples = logs(tmp_path, 12)
    asked = [replace(s, id=f"{s.id}-{n}", question=f"{n} of {s.id}?") for s in samples for n in range(2)]
    (score,) = probe_samples(asked, dataset())
    assert score.verdict == "several questions about one stream: not told" and (score.streams, score.answers) == (12, 3)
    assert not score.near_chance and not score.unsure and not score.holds
    assert json.loads(json.dumps(score.to_dict(), allow_nan=False))["accuracy"] is None
    assert "not told" in probe_text([score]) and "nan" not in probe_text([score])


def test_an_answer_comes_up_twice_where_two_streams_have_it(tmp_path):
    """Twice on one stream tells nothing of another."""
    samples = [replace(s, answer=f"a{i}" if i < 2 else "slow") for i, s in enumerate(logs(tmp_path, 12))]
    twice = [replace(samples[i], id=f"again {i}") for i in range(2)]
    assert probe_samples([*samples, *twice], dataset()) == []


def test_a_stream_that_cannot_be_read_is_named(tmp_path):
    samples = logs(tmp_path, 12)
    (tmp_path / "3.csv").write_text("time,shake\n0.1,wet\n")
    with pytest.raises(ValueError, match=r"sample '3', side channel 'shake': .*3\.csv"):
        probe_samples(samples, dataset())


def test_the_command_prints_a_table_and_json(tmp_path, capsys):
    folder = tmp_path / "start"
    assert main(["init", str(folder), "--channel", "sensor"]) == 0
    capsys.readouterr()
    recipe = str(folder / "recipe.yaml")
    assert main(["probe", recipe, "--json"]) == 0
    scores = {score["type"]: score for score in json.loads(capsys.readouterr().out)["scores"]}
    assert scores["shake"]["holds"] and not scores["colour"]["holds"] and not scores["first_mover"]["holds"]
    changes = ["patch.side_channels.shake.encoder.settings.statistics=[share]", "patch.side_channels.shake.width=1"]
    assert main(["probe", recipe, *changes]) == 0
    out = capsys.readouterr().out
    assert "these features do not hold the answer" in out and "these features hold" not in out
    assert main(["train", recipe, "--dry-run"]) == 0
    assert "linear probe" not in capsys.readouterr().out  # the shakes are held, whatever the silent questions are
    assert main(["train", recipe, *changes, "--dry-run"]) == 0
    assert "a linear probe on 40 streams reads no answer for sure from its features: shake" in capsys.readouterr().out
    assert main(["probe", recipe, "patch.side_channels={}"]) == 2
    assert "the patch has no side channel" in capsys.readouterr().err
