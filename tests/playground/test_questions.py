"""Answers are right, and neither the text, nor the frames, nor another turn of a conversation gives them away."""

from itertools import permutations

import numpy as np
import pytest

from leaks import fitted, learnt_table, limit, visible
from pave.playground.questions import REVEALS, SILENT_TYPES, SOUND_TYPES, ask, converse
from pave.playground.world import COLOURS, LIGHTS, SHAPES, SOUNDS, Event, Scene, Thing, draw_scene

N = 4000
SCENES = [draw_scene(11, "train", i) for i in range(N)]
SCENE = Scene(
    seed=1,
    things=(Thing("red", "circle", 0, 0.2, 1), Thing("blue", "square", 1, 0.7, -1)),
    lanes="rows",
    movers=(1, 0, 0, 1),
    background=(30, 30, 30),
    flashes=(Event("cyan", 2.2, 3.7), Event("white", 6.2, 7.7)),
    sounds=(Event("drum", 4.7, 5.2),),
)


@pytest.mark.parametrize(
    ("kind", "texts", "answers"),
    [
        ("colour", {"what colour is the circle ?", "what colour is the square ?"}, {"red", "blue"}),
        ("shape", {"what shape is the red object ?", "what shape is the blue object ?"}, {"circle", "square"}),
        ("first_mover", {"which object moves first ?"}, {"blue square"}),
        ("light", {"which light flashes first ?"}, {"cyan"}),
        ("sound", {"what sound is heard ?"}, {"drum"}),
        ("sound_vision", {"which object moves when the drum sounds ?"}, {"red circle"}),
    ],
)
def test_answers_of_a_known_scene(kind, texts, answers):
    asked = [ask(SCENE, kind, np.random.default_rng(i)) for i in range(20)]
    assert {q.text for q in asked} == texts and {q.answer for q in asked} == answers
    assert all(q.type == kind and q.answer in q.choices for q in asked)


def test_each_light_asks_for_the_object_of_its_own_moment():
    asked = {ask(SCENE, "light_vision", np.random.default_rng(i)) for i in range(20)}
    assert {(q.text.split()[5], q.answer) for q in asked} == {("cyan", "red circle"), ("white", "blue square")}


@pytest.mark.parametrize("kind", SILENT_TYPES + SOUND_TYPES)
def test_the_text_alone_leaves_the_answer_at_chance(kind):
    chance = {"colour": 1 / 4, "shape": 1 / 3, "light": 1 / 4, "sound": 1 / 4}.get(kind, 1 / 12)
    rng = np.random.default_rng(0)
    asked = [ask(scene, kind, rng) for scene in SCENES]
    assert learnt_table([(q.text, q.answer) for q in asked]) < limit(chance, N // 2)
    chosen = [(q.text + "|".join(q.choices), str(q.choices.index(q.answer))) for q in asked]
    assert learnt_table(chosen) < limit(1 / len(asked[0].choices), N // 2)


@pytest.mark.parametrize("kind", SOUND_TYPES)
def test_everything_visible_leaves_the_answers_on_sound_at_chance(kind):
    asked = [ask(scene, kind, np.random.default_rng(0)) for scene in SCENES]
    labels = np.array([q.choices.index(q.answer) for q in asked])
    features = np.stack([visible(scene) for scene in SCENES])
    chance = 1 / len(asked[0].choices)
    assert fitted(features, labels, len(asked[0].choices)) < limit(chance, N // 2)
    pattern = [(scene.movers, scene.flashes and scene.flashes[0].segment) for scene in SCENES]
    first = [q.choices.index(scene.mover_at(0).name) if kind == "sound_vision" else 0 for q, scene in zip(asked, SCENES)]
    assert learnt_table([((p, f), str(label)) for p, f, label in zip(pattern, first, labels)]) < limit(chance, N // 2)


def test_the_probe_finds_an_answer_that_is_visible():
    asked = [ask(scene, "first_mover", np.random.default_rng(0)) for scene in SCENES]
    labels = np.array([q.choices.index(q.answer) for q in asked])
    assert fitted(np.stack([visible(scene) for scene in SCENES]), labels, 2) > 0.99


@pytest.mark.parametrize(
    ("first", "second"), [p for p in permutations(REVEALS, 2) if not REVEALS[p[0]] & REVEALS[p[1]]], ids="-".join
)
def test_an_earlier_turn_is_no_help(first, second):
    rng = np.random.default_rng(0)
    talks = [converse(scene, (first, second), rng) for scene in SCENES]
    alone = learnt_table([(b.text, b.answer) for _, b in talks])
    told = learnt_table([((a.text, a.answer, b.text), b.answer) for a, b in talks])
    assert told < limit(max(alone, 1 / 12), N // 2)


def test_turns_that_would_give_each_other_away_are_refused():
    for first, second in permutations(REVEALS, 2):
        if REVEALS[first] & REVEALS[second]:
            with pytest.raises(ValueError, match="cannot share a conversation"):
                converse(SCENE, (first, second), np.random.default_rng(0))


def test_a_refused_pair_is_a_leak_indeed():
    rng = np.random.default_rng(0)
    pairs = [(ask(scene, "sound_vision", rng), ask(scene, "sound", rng)) for scene in SCENES]
    assert learnt_table([(a.text, b.answer) for a, b in pairs]) == 1.0


def test_bad_types_are_named():
    with pytest.raises(ValueError, match="unknown type of question 'smell'; known: colour"):
        ask(SCENE, "smell", np.random.default_rng(0))
    with pytest.raises(ValueError, match="'sound' needs a scene with a sound"):
        ask(draw_scene(0, "train", 0, silent=True), "sound", np.random.default_rng(0))


def test_sounds_and_lights_share_no_word():
    assert not set(SOUNDS) & {*LIGHTS, *COLOURS, *SHAPES}
