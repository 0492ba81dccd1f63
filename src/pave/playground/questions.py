"""Questions on a scene, and which of them may stand in one conversation.

========================= ======================================================= ==================== =========
type                      question                                                answer               needs
========================= ======================================================= ==================== =========
``colour``                what colour is the circle ?                             a colour             frames
``shape``                 what shape is the red object ?                          a shape              frames
``first_mover``           which object moves first ?                              colour and shape     frames
``light``                 which light flashes first ?                             a light              frames
``light_vision``          which object moves when the white light flashes ?       colour and shape     frames
``sound``                 what sound is heard ?                                   a sound              sound
``sound_vision``          which object moves when the bell sounds ?               colour and shape     both
========================= ======================================================= ==================== =========

A question may give away something of another one: "what colour is the circle ?" says that there is a circle, and "which
object moves when the bell sounds ?" says what is heard. ``REVEALS`` names what each type gives away; two questions
stand in one conversation only if they give away different things, so that having read one is no help with the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pave.playground.world import COLOURS, LIGHTS, SHAPES, SOUNDS, Scene


@dataclass(frozen=True)
class Question:
    """One question on one scene, with its answer."""

    type: str
    text: str
    answer: str
    choices: tuple[str, ...]
    """The answers a judge may choose from, in a fixed order; for questions on objects the two objects of the scene."""


def objects(scene: Scene) -> tuple[str, ...]:
    """Names of the scene's objects, in a fixed order that says nothing about them."""
    return tuple(sorted(thing.name for thing in scene.things))


def _colour(scene: Scene, rng: np.random.Generator) -> Question:
    thing = scene.things[int(rng.integers(2))]
    return Question("colour", f"what colour is the {thing.shape} ?", thing.colour, COLOURS)


def _shape(scene: Scene, rng: np.random.Generator) -> Question:
    thing = scene.things[int(rng.integers(2))]
    return Question("shape", f"what shape is the {thing.colour} object ?", thing.shape, SHAPES)


def _first_mover(scene: Scene, rng: np.random.Generator) -> Question:
    return Question("first_mover", "which object moves first ?", scene.mover_at(0).name, objects(scene))


def _light(scene: Scene, rng: np.random.Generator) -> Question:
    return Question("light", "which light flashes first ?", scene.flashes[0].kind, LIGHTS)


def ask_each_light(scene: Scene) -> list[Question]:
    """A question of type ``light_vision`` on every flash of the scene."""
    texts = [f"which object moves when the {flash.kind} light flashes ?" for flash in scene.flashes]
    answers = [scene.mover_during(flash).name for flash in scene.flashes]
    return [Question("light_vision", text, answer, objects(scene)) for text, answer in zip(texts, answers, strict=True)]


def _light_vision(scene: Scene, rng: np.random.Generator) -> Question:
    return ask_each_light(scene)[int(rng.integers(len(scene.flashes)))]


def _sound(scene: Scene, rng: np.random.Generator) -> Question:
    return Question("sound", "what sound is heard ?", scene.sounds[0].kind, SOUNDS)


def _sound_vision(scene: Scene, rng: np.random.Generator) -> Question:
    sound = scene.sounds[int(rng.integers(len(scene.sounds)))]
    text = f"which object moves when the {sound.kind} sounds ?"
    return Question("sound_vision", text, scene.mover_during(sound).name, objects(scene))


_MAKERS: dict[str, Callable[[Scene, np.random.Generator], Question]] = {
    "colour": _colour,
    "shape": _shape,
    "first_mover": _first_mover,
    "light": _light,
    "light_vision": _light_vision,
    "sound": _sound,
    "sound_vision": _sound_vision,
}
SILENT_TYPES = ("colour", "shape", "first_mover", "light", "light_vision")
SOUND_TYPES = ("sound", "sound_vision")
REVEALS = {
    "colour": {"objects"},
    "shape": {"objects"},
    "first_mover": {"objects"},
    "light": {"lights"},
    "light_vision": {"objects", "lights"},
    "sound": {"sounds"},
    "sound_vision": {"objects", "sounds"},
}


def ask(scene: Scene, kind: str, rng: np.random.Generator) -> Question:
    """A question of one type; ``rng`` draws what it asks about where there is a choice.

    Raises:
        ValueError: if the type is unknown, or it asks for a sound in a silent scene.
    """
    if kind not in _MAKERS:
        raise ValueError(f"unknown type of question {kind!r}; known: {', '.join(_MAKERS)}")
    if kind in SOUND_TYPES and not scene.sounds:
        raise ValueError(f"a question of type {kind!r} needs a scene with a sound; this scene is silent")
    return _MAKERS[kind](scene, rng)


def converse(scene: Scene, kinds: Sequence[str], rng: np.random.Generator) -> list[Question]:
    """Questions for one conversation, in the given order.

    Raises:
        ValueError: if two of the types give away the same thing (see ``REVEALS``), so that one could give away the
            other.
    """
    questions = [ask(scene, kind, rng) for kind in kinds]
    check_apart(kinds, REVEALS)
    return questions


def check_apart(kinds: Sequence[str], reveals: Mapping[str, set[str]]) -> None:
    """Whether questions of these types may stand in one conversation.

    Raises:
        ValueError: if two of them give away the same thing.
    """
    told_by: dict[str, str] = {}
    for kind in kinds:
        for thing in sorted(reveals[kind]):
            if thing in told_by:
                raise ValueError(
                    f"questions of types {told_by[thing]!r} and {kind!r} both give away the {thing} and cannot share a "
                    "conversation"
                )
            told_by[thing] = kind
