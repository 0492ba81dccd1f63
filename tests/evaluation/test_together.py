"""Patches together on the playground's base: clips with sound and sensor, with one of them, and with none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cases import shake
from pave import attach_patch, load_patch, save_patch
from pave.data.media import FrameSampling
from pave.data.samples import Sample
from pave.evaluation.metrics import compare_paired
from pave.evaluation.together import BASE, MERGED, TOGETHER, Together, find_weights
from pave.patching import patch_parameter_groups
from pave.patching.compose import compose_patches, write_composed
from pave.playground.clips import clip_name, render_clips
from pave.playground.sensors import draw_sensed, write_readings
from pave.training.recipe import read_recipe
from pave.utils.embedded import PLAYGROUND
from pave.video_llms.loading import load_base

CLIPS = 4
FRAMES = FrameSampling(num_frames=4)
RECIPES = Path(__file__).parents[2] / "recipes"
KINDS = {"sound": "what sound is heard ?", "sensor": "does the sensor reading increase ?"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(folder of clips with sound and logs of a sensor, patches by name). The patches say other things than the base."""
    folder = tmp_path_factory.mktemp("together")
    assert list(render_clips(folder, "test", CLIPS, processes=0))[-1] == CLIPS
    for index in range(CLIPS):
        write_readings(folder / f"{index}.csv", draw_sensed(0, "test", index))
    patches = {}
    for seed, (name, recipe) in enumerate((("hearing", "audio"), ("feeling", "sensor"))):
        model, processor = load_base(PLAYGROUND)
        config = replace(read_recipe(RECIPES / f"playground_{recipe}.yaml").patch, storage_dtype="float32")
        attach_patch(model, config)
        shake(model, seed, 0.4)
        with torch.no_grad():  # a residual of about the size of the tokens, so that a patch's words are not one word
            for parameter in patch_parameter_groups(model)["output_norm"]:
                parameter.mul_(2.0)
        patches[name] = save_patch(model, folder / name, processor=processor)
    return folder, patches


def samples(folder, sides=("audio", "sensor")):
    """Questions of two types on every clip, which has the channels named."""
    out = []
    for index in range(CLIPS):
        own = {
            "audio": "none" if "audio" in sides else None,
            "sensor": str(folder / f"{index}.csv") if "sensor" in sides else None,
        }
        own = {name: path for name, path in own.items() if path != "none"}
        for kind, question in KINDS.items():
            out.append(
                Sample(
                    id=f"{index}-{kind}-{'+'.join(sides)}",
                    video=str(folder / clip_name("test", index)),
                    type=kind,
                    question=question,
                    answer="bell",
                    side_channels=own,
                )
            )
    return out


@pytest.fixture(scope="module")
def together(world):
    _, patches = world
    model, processor = load_base(PLAYGROUND)
    for name, folder in patches.items():
        load_patch(model, folder, name=name, processor=processor)
    return Together(model.eval(), processor, compose_patches(patches), sampling=FRAMES)


@pytest.fixture(scope="module")
def result(world, together):
    folder, _ = world
    asked = [s for sides in (("audio", "sensor"), ("audio",), ("sensor",), ()) for s in samples(folder, sides)]
    return together.evaluate(asked, batch_size=8, max_new_tokens=4, progress=False)


def said(result, run, ids):
    return [p.prediction for p in result.runs[run].predictions if p.id in set(ids)]


def test_where_a_channel_is_missing_nothing_is_lost(result):
    """In batches that mix all four sets of channels: the answers are those of the one patch, or of the base, word for word."""
    groups = result.groups()
    assert {names: len(ids) for names, ids in groups.items()} == {
        ("hearing", "feeling"): 8,
        ("hearing",): 8,
        ("feeling",): 8,
        (): 8,
    }
    assert not [p for run in result.runs.values() for p in run.predictions if p.error]
    for names, run in ((("hearing",), "hearing"), (("feeling",), "feeling"), ((), BASE)):
        ids = groups[names]
        assert result.differing(run, TOGETHER, ids) == 0 and said(result, TOGETHER, ids) == said(result, run, ids)
        assert all(kind.added.difference == 0 for kind in result.kinds(ids) if kind.best == run)
    both = groups["hearing", "feeling"]
    for run in (BASE, "hearing", "feeling"):
        assert result.differing(run, TOGETHER, both) > 0  # where both channels are there, adding does change what is said
    assert result.differing("hearing", BASE, groups["feeling",]) == 0 < result.differing("hearing", BASE, groups["hearing",])


def test_the_merged_patch_loses_where_a_channel_is_missing_and_nowhere_else(world, result):
    folder, patches = world
    model, processor = load_base(PLAYGROUND)
    composed = compose_patches(patches)
    for name, where in {**patches, MERGED: write_composed(composed, folder / "merged")}.items():
        load_patch(model, where, name=name, processor=processor)
    asked = [s for sides in (("audio", "sensor"), ("audio",)) for s in samples(folder, sides)]
    found = Together(model.eval(), processor, composed, sampling=FRAMES).evaluate(asked, max_new_tokens=4, progress=False)
    groups = found.groups()
    assert found.differing(TOGETHER, MERGED, groups["hearing", "feeling"]) == 0
    assert found.differing(TOGETHER, MERGED, groups["hearing",]) > 0
    assert said(found, TOGETHER, groups["hearing",]) == said(result, TOGETHER, groups["hearing",])


def test_the_answers_alone_are_those_of_one_patch_on_a_base(world, together):
    from pave.evaluation.runner import evaluate
    from pave.inference import VideoQA

    folder, patches = world
    asked = samples(folder)
    found = together.evaluate(asked, max_new_tokens=4, progress=False, batch_size=1)
    for name in (None, *patches):
        qa = VideoQA.from_pretrained(PLAYGROUND, patches.get(name), sampling=FRAMES, device="cpu")
        alone = evaluate(qa, asked, batch_size=1, max_new_tokens=4, progress=False)
        assert [p.prediction for p in alone.predictions] == [p.prediction for p in found.runs[name or BASE].predictions]


def test_accuracies_differences_and_words(world, together):
    """The truths are what a run said, so that every number is known."""
    folder, _ = world
    asked = samples(folder)
    before = together.evaluate(asked, max_new_tokens=4, progress=False)
    hearing, both = ([p.prediction for p in before.runs[run].predictions] for run in ("hearing", TOGETHER))
    truths = [a if s.type == "sound" else b for s, a, b in zip(asked, hearing, both, strict=True)]
    judged = [replace(s, answer=truth or "?") for s, truth in zip(asked, truths, strict=True)]
    result = together.evaluate(judged, max_new_tokens=4, progress=False)
    kinds = {kind.kind: kind for kind in result.kinds(s.id for s in judged)}
    assert list(kinds) == ["sound", "sensor", "all"]
    sound, sensor = kinds["sound"], kinds["sensor"]
    assert (sound.accuracy["hearing"], sound.best) == (1.0, "hearing") and sensor.accuracy[TOGETHER] == 1.0
    right = [a == b for s, a, b in zip(asked, hearing, both, strict=True) if s.type == "sound"]
    assert not all(right)
    clusters = [s.video for s in asked if s.type == "sound"]
    assert sound.added == compare_paired([True] * len(right), right, clusters)
    assert sound.to_dict()["runs"]["hearing"]["n_correct"] == CLIPS
    words = [line for line in result.sentences() if ", sound: hearing alone 100.0 %, together" in line]
    assert len(words) == 1 and f"{100 * sound.added.difference:+.1f} points" in words[0]


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (-0.05, -0.01, "lost"),
        (0.01, 0.05, "won"),
        (-0.019, 0.03, "kept"),
        (0.0, 0.0, "kept"),
        (-0.02, 0.0, "undecided"),
        (-0.1, 0.2, "undecided"),
    ],
)
def test_the_word_goes_by_the_interval(result, low, high, word):
    kind = result.kinds(result.groups()["hearing", "feeling"])[0]
    interval = replace(kind.added.interval, low=low, high=high)
    assert replace(kind, added=replace(kind.added, interval=interval)).verdict == word


@pytest.mark.parametrize("name", [BASE, TOGETHER, MERGED])
def test_a_patch_cannot_be_called_as_another_run(world, together, name):
    composed = compose_patches({name: world[1]["hearing"], "feeling": world[1]["feeling"]})
    with pytest.raises(ValueError, match=f"a patch cannot be called '{name}'"):
        Together(together.model, together.processor, composed, sampling=FRAMES)


def test_weights_are_found_where_they_help(world, together):
    """The truth is what the patches say with LoRA of one at a quarter: the search must come back with weights that say so."""
    folder, _ = world
    asked = samples(folder)
    wanted = {"hearing": (1.0, 0.25), "feeling": (1.0, 1.0)}
    answers = together.evaluate(asked, weights=wanted, max_new_tokens=4, progress=False).runs[TOGETHER].predictions
    judged = [replace(s, answer=p.prediction or "?") for s, p in zip(asked, answers, strict=True)]
    plain = together.evaluate(judged, max_new_tokens=4, progress=False).runs[TOGETHER].overall.accuracy
    weights, accuracy = find_weights(together, judged, grid=(0.25, 1.0), max_new_tokens=4)
    assert plain < 1.0 == accuracy and weights["hearing"][1] == 0.25


def test_one_sample_that_cannot_be_read_fails_alone(world, together):
    folder, _ = world
    asked = samples(folder)
    asked[1] = replace(asked[1], side_channels={"sensor": str(folder / "gone.csv")})
    result = together.evaluate(asked, max_new_tokens=4, progress=False)
    for run in result.runs.values():
        assert [p.id for p in run.predictions if p.error] == [asked[1].id]
        assert "gone.csv" in run.failures[0][1]
    assert result.there[asked[1].id] == ()
