"""What is said of a training at its end, on models whose behaviour is built, and pictures that are swapped."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pave.cli import main
from pave.data.collator import PatchCollator
from pave.data.dataset import PatchDataset
from pave.data.media import FrameSampling, write_video
from pave.data.samples import Sample
from pave.patching import load_patch, read_record
from pave.playground.questions import ask
from pave.playground.world import draw_scene
from pave.side_channels import build_encoder
from pave.training.recipe import read_recipe
from pave.training.swapped_pictures import SwappedPictures
from pave.training.verdict import LEARNT_BELOW, MEMORISED_FROM, Verdict, _chosen, _right, _word
from pave.utils.embedded import AUDIO_PATCH, WHISTLE, embedded_path
from pave.video_llms.loading import load_base


@pytest.mark.parametrize(
    ("right", "kept", "base", "word"),
    [
        (1.0, 0.05, 0.0, "learnt"),
        (1.0, 0.5, 0.0, "half learnt"),
        (1.0, 0.9, 0.0, "memorised"),
        (0.4, 0.3, 0.0, "nothing yet"),  # within the interval of guessing
        (0.95, 0.95, 0.97, None),  # the base answers as well
        (0.9, 0.5, 0.42, "learnt"),  # one of two objects that are seen: with another sound the other half of the time
        (0.9, 0.85, 0.42, "memorised"),
        (0.7, 0.68, 0.0, "memorised"),
        (1.0, LEARNT_BELOW, 0.0, "half learnt"),
        (1.0, MEMORISED_FROM, 0.0, "memorised"),
    ],
)
def test_the_word(right, kept, base, word):
    assert _word(30, right=right, kept=kept, base=base, guessing=1 / 3) == word


def test_a_lender_has_another_answer_and_a_channel():
    samples = [
        Sample(id=str(i), video=f"{i}.mp4", question="?", answer="ab"[i % 2], type="t", side_channels={} if i else {"x": None})
        for i in range(12)
    ]
    (pairs,) = _chosen(samples, ["x"], 8, seed=0).values()
    assert len(pairs) == 8 and all(own.answer != lender.answer for own, lender in pairs)
    assert "0" not in {sample.id for pair in pairs for sample in pair}  # which lacks the channel
    assert _chosen([replace(sample, answer="a") for sample in samples], ["x"], 8, seed=0) == {}


def test_a_lender_is_asked_the_same_about_another_video():
    """Else a right answer with its channel would go with the question, or with a clip that is the same."""

    def sample(name, video, question, answer, kind="t"):
        return Sample(id=name, video=video, question=question, answer=answer, type=kind, side_channels={})

    samples = [
        sample("how a", "a.mp4", "How?", "a"),
        sample("how b", "b.mp4", "how?", "b"),
        sample("who a", "a.mp4", "who?", "c"),
        sample("who b", "b.mp4", "who?", "d"),
        sample("once", "c.mp4", "whose?", "e"),  # nobody else is asked that
        sample("how c", "c.mp4", "how?", "a"),
        sample("one x", "x.mp4", "first?", "y", "alone"),  # two answers, about one video
        sample("one z", "x.mp4", "first?", "z", "alone"),
    ]
    for seed in range(5):
        chosen = _chosen(samples, ["x"], 8, seed)
        assert list(chosen) == ["t"]
        pairs = {own.id: lender.id for own, lender in chosen["t"]}
        assert pairs["how a"] == pairs["how c"] == "how b" and pairs["how b"] in ("how a", "how c")
        assert (pairs["who a"], pairs["who b"]) == ("who b", "who a") and "once" not in pairs
    assert len(_chosen(samples, ["x"], 2, seed=0)["t"]) == 2


def test_the_sentence_says_all_numbers_and_what_to_do():
    verdict = Verdict(type="shake", word="memorised", questions=30, right=1.0, kept=0.9, base=0.42, guessing=0.4)
    assert verdict.sentence.startswith(
        "'shake' memorised: 100 % of 30 training questions right (guessing 40 %, the base alone 42 %), 90 % still with another clip's channel; "
    )
    assert "data.swap_pictures" in verdict.sentence and verdict.to_dict()["sentence"] == verdict.sentence


@pytest.fixture
def clips(tmp_path):
    """Three clips of a grey of their own; two samples on the first."""
    samples = []
    for i, name in enumerate(["a", "b", "c"]):
        write_video(tmp_path / f"{name}.mp4", np.full((8, 32, 32, 3), 60 * i + 30, np.uint8), fps=8 if i < 2 else 4)
        samples.append(Sample(id=name, video=str(tmp_path / f"{name}.mp4"), question="?", answer="yes", type="own"))
    return [*samples, replace(samples[0], id="a2", type="silent")]


def test_pictures_are_those_of_the_next_clip_in_the_batch_and_times_stay(clips):
    data = SwappedPictures(clips, FrameSampling(num_frames=4), {}, {}, types=["own"])
    greys = {item.id: float(item.frames_FHWC.mean()) for item in data.read(clips)}
    times = {item.id: item.times_F.tolist() for item in data.read(clips)}
    assert abs(greys["a"] - greys["b"]) > 30

    def shown(*places):
        return [(item.id, item.times_F.tolist(), float(item.frames_FHWC.mean())) for item in data.__getitems__(places)]

    assert shown(0, 1, 2) == [("a", times["a"], greys["b"]), ("b", times["b"], greys["c"]), ("c", times["c"], greys["a"])]
    assert shown(0, 3, 2) == [("a", times["a"], greys["c"]), ("a2", times["a2"], greys["a"]), ("c", times["c"], greys["a"])]
    assert shown(0) == [("a", times["a"], greys["a"])] and shown(0, 3)[0] == ("a", times["a"], greys["a"])
    with pytest.raises(
        ValueError, match=r"data\.swap_pictures: no training sample is of the type 'owl'; there are own, silent"
    ):
        SwappedPictures(clips, FrameSampling(num_frames=4), {}, {}, types=["owl"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["data.swap_pictures=true", "training.batch_size=1"], "set training.batch_size to at least 2"),
        (
            ["data.swap_pictures=[sound]", "data.share_videos=2", "patch.side_channels.audio.fusion.gate=false"],
            "data.swap_pictures gives every question another picture",
        ),
        (["evaluation.verdict_questions=-1"], "verdict_questions must not be negative"),
    ],
)
def test_settings_that_do_not_go_together(tmp_path, changes, words):
    assert main(["init", str(tmp_path / "a")]) == 0
    with pytest.raises(ValueError, match=words):
        read_recipe(tmp_path / "a" / "recipe.yaml", changes)


def test_an_answer_is_right_where_it_would_be_generated():
    """By the patch inside pave, whose gate reads the prompt up to the answer; the answer given must not reach it."""
    model, processor = load_base("playground", dtype="float32")
    load_patch(model, AUDIO_PATCH, processor=processor)
    model.eval()
    channels = model.patch_config.side_channels
    encoders = {"audio": build_encoder(channels["audio"].encoder)}
    data = PatchDataset((), FrameSampling(num_frames=8), encoders, channels)
    scene = draw_scene(0, "test", 0)
    asked = [ask(scene, kind, np.random.default_rng(0)) for kind in ("sound", "sound_vision")]
    (other,) = set(asked[1].choices) - {asked[1].answer} if len(asked[1].choices) == 2 else ("bell",)
    told = [(asked[0].text, asked[0].answer), (asked[0].text, "bell"), (asked[1].text, asked[1].answer), (asked[1].text, other)]
    samples = [
        Sample(id=str(i), video=embedded_path(WHISTLE), question=text, answer=answer) for i, (text, answer) in enumerate(told)
    ]
    collator = PatchCollator(processor, model.config, channels)
    items = data.read(samples)
    assert _right(model, collator, items) == [True, False, True, False]
    with model.patch_disabled():
        assert _right(model, collator, items)[0] is False


@pytest.mark.slow
def test_a_short_run_ends_with_a_verdict_in_output_record_and_card(tmp_path, capsys):
    folder = tmp_path / "start"
    assert main(["init", str(folder), "--channel", "sensor"]) == 0
    capsys.readouterr()
    changes = ["data.stages.0.steps=2", "training.save_every=null", "evaluation.generate=false"]
    assert main(["train", str(folder / "recipe.yaml"), *changes, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    (verdict,) = result["verdicts"]  # the base answers the silent questions itself
    assert (verdict["type"], verdict["word"], verdict["questions"]) == ("shake", "nothing yet", 30)
    assert read_record(result["patch"]).provenance["verdicts"] == [verdict]
    card = (folder / "run" / "patch" / "README.md").read_text()
    assert f"- verdict: {verdict['sentence']}" in card
    none = [*changes, "evaluation.verdict_questions=0", f"output={tmp_path / 'none'}"]
    assert main(["train", str(folder / "recipe.yaml"), *none, "--json"]) == 0
    assert "verdicts" not in json.loads(capsys.readouterr().out)
