"""How the base model learns the silent world: first the vision tower, then projector and language model.

Learning both at once stays on a plateau for a very long time. A tower that first learns to say of every patch what
covers it, whether that moves and which light is on gives the language model something to read within minutes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from evidence.small_bases.families import BaseInTraining
from evidence.small_bases.models import GRID, PATCH
from pave.playground.questions import SILENT_TYPES, Question, ask, ask_each_light, converse
from pave.playground.render import coverage, place
from pave.playground.world import COLOURS, LIGHTS, SHAPES, Scene
from pave.utils.console import track

logger = logging.getLogger(f"pave.{__name__}")

_IGNORE = -100
_LOOKS = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]  # class 0 is: nothing


@dataclass(frozen=True)
class SilentClips:
    """Decoded frames of many scenes, V of them."""

    scenes: list[Scene]
    frames_VFHWC: NDArray[np.uint8]
    """RGB, F frames of each."""
    times_VF: NDArray[np.float64]
    """Seconds."""

    def __len__(self) -> int:
        return len(self.scenes)


def patch_labels(scene: Scene, times_F: NDArray[np.float64]) -> NDArray[np.int64]:
    """For every patch of every frame: what covers it (0 nothing), its motion (0 rests, 1 moves), the light (0 none):
    (F, GRID**2, 3)."""
    labels = np.zeros((len(times_F), GRID, GRID, 3), dtype=np.int64)
    for index, thing in enumerate(scene.things):
        x_F, y_F, moving_F = place(scene, index, times_F)
        covered = (
            coverage(thing.shape, x_F, y_F).reshape(len(times_F), GRID, PATCH, GRID, PATCH).mean(axis=(2, 4)) > 0.2
        )
        labels[covered, 0] = 1 + _LOOKS.index(thing.name)
        labels[..., 1] = np.where(covered, moving_F[:, None, None], labels[..., 1])
    for flash in scene.flashes:
        labels[(flash.start <= times_F) & (times_F < flash.end), ..., 2] = 1 + LIGHTS.index(flash.kind)
    return labels.reshape(len(times_F), GRID**2, 3)


def _fit(parameters: list[nn.Parameter], steps: int, rate: float) -> tuple[torch.optim.Optimizer, Any]:
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)


def _step(loss: Tensor, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, schedule: Any) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    schedule.step()


def descend(
    parameters: list[nn.Parameter], steps: Iterable[Any], rate: float, count: int, loss: Callable[[], Tensor]
) -> list[float]:
    """Take a step for each entry of ``steps``, ``count`` of them; returns the losses."""
    optimizer, schedule = _fit(parameters, count, rate)
    losses = []
    for _ in steps:
        value = loss()
        _step(value, parameters, optimizer, schedule)
        losses.append(value.item())
    return losses


def train_tower(
    base: BaseInTraining,
    clips: SilentClips,
    *,
    steps: int,
    batch: int = 64,
    rate: float = 2e-3,
    seed: int,
) -> dict[str, float]:
    """Train the vision tower on labels of patches; returns the accuracies over the last tenth of the steps."""
    rng = np.random.default_rng(seed)
    labels_VFP3 = np.stack([patch_labels(s, t) for s, t in zip(clips.scenes, clips.times_VF, strict=True)])
    frames, labels = base.steps(clips.frames_VFHWC), base.steps(labels_VFP3)
    sizes = (1 + len(_LOOKS), 2, 1 + len(LIGHTS))
    head = nn.Linear(base.vision_width, sum(sizes))
    weights = torch.ones(sizes[0])
    weights[0] = 0.1  # most patches are empty
    parameters = [*base.tower.parameters(), *head.parameters()]
    optimizer, schedule = _fit(parameters, steps, rate)
    hits: list[list[float]] = []
    for _ in track(range(steps), "vision tower"):
        v, s = rng.integers(0, len(clips), batch), rng.integers(0, frames.shape[1], batch)
        look, motion, light = head(base.features(frames[v, s])).flatten(0, 1).split(sizes, dim=1)
        target = torch.from_numpy(base.labels(labels[v, s])).flatten(0, 1)
        on = target[:, 0] > 0
        loss = F.cross_entropy(look, target[:, 0], weight=weights)
        loss = loss + F.cross_entropy(motion[on], target[on, 1]) + F.cross_entropy(light, target[:, 2])
        _step(loss, parameters, optimizer, schedule)
        right = (
            (look.argmax(1) == target[:, 0])[on],
            (motion.argmax(1) == target[:, 1])[on],
            light.argmax(1) == target[:, 2],
        )
        hits.append([float(r.float().mean()) for r in right])
    last = np.mean(hits[-max(1, steps // 10) :], axis=0)
    return dict(zip(("look of object patches", "motion of object patches", "light"), map(float, last), strict=True))


def cached_features(base: BaseInTraining, clips: SilentClips) -> Tensor:
    """Vision features of every step of frames, in float16: (V, S, P, vision width)."""
    frames = base.steps(clips.frames_VFHWC)
    with torch.no_grad():
        parts = (frames[v : v + 16] for v in range(0, len(clips), 16))
        return torch.cat([base.features(p.reshape(-1, *p.shape[2:])).half().unflatten(0, p.shape[:2]) for p in parts])


def _talk_ids(base: BaseInTraining, questions: Sequence[Question]) -> tuple[list[int], list[int]]:
    """Token ids of a conversation from behind the video on, as the chat template writes it, and the labels of its
    answers."""
    ids: list[int] = []
    labels: list[int] = []
    words = base.wording
    for number, question in enumerate(questions):
        asked = [*base.ids(words.turn if number else ""), *base.ids(question.text), *base.ids(words.asked)]
        answer = [*base.ids(question.answer), *base.ids(words.ended)]
        ids += asked + answer
        labels += [_IGNORE] * len(asked) + answer
    return ids, labels


def packed(
    base: BaseInTraining, tokens_VNE: Tensor, talks: Sequence[Sequence[Sequence[Question]]]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Several conversations behind one video, each blind to the others.

    Args:
        base: whose words and positions they get.
        tokens_VNE: of each video.
        talks: about each video.

    Returns:
        Embeddings (V, L, E), mask (V, 1, L, L), positions (V, L), or (3, V, L) where they have three dimensions, and
        labels (V, L).
    """
    rows = [[_talk_ids(base, talk) for talk in row] for row in talks]
    V, count, length = len(rows), max(map(len, rows)), max(len(ids) for row in rows for ids, _ in row)
    ids_VKL, labels_VKL = torch.zeros(V, count, length, dtype=torch.long), torch.full((V, count, length), _IGNORE)
    for v, row in enumerate(rows):
        for k, (ids, labels) in enumerate(row):
            ids_VKL[v, k, : len(ids)], labels_VKL[v, k, : len(ids)] = torch.tensor(ids), torch.tensor(labels)
    embed = base.model.get_input_embeddings()
    before, behind = base.ids(base.wording.start), base.ids(base.wording.behind)
    shared = [embed(torch.tensor(before)).expand(V, -1, -1), tokens_VNE]
    if behind:
        shared.append(embed(torch.tensor(behind)).expand(V, -1, -1))
    embeds = torch.cat([*shared, embed(ids_VKL.flatten(1))], dim=1)
    start, total = embeds.shape[1] - count * length, embeds.shape[1]
    block = torch.cat([torch.zeros(start, dtype=torch.long), torch.arange(1, count + 1).repeat_interleave(length)])
    causal = torch.ones(total, total, dtype=torch.bool).tril()
    mask = causal & ((block[:, None] == block[None]) | (block[None] == 0))
    video_AL = base.positions(len(before), tokens_VNE.shape[1], len(behind))
    talk = torch.arange(length).repeat(count) + int(video_AL.max()) + 1
    positions_AL = torch.cat([video_AL, talk.expand(len(video_AL), -1)], dim=1)
    positions = positions_AL.expand(V, -1) if len(positions_AL) == 1 else positions_AL[:, None].expand(-1, V, -1)
    labels_VL = F.pad(labels_VKL.flatten(1), (start, 0), value=_IGNORE)
    return embeds, mask.expand(V, 1, -1, -1), positions, labels_VL


def _loss(base: BaseInTraining, embeds: Tensor, mask: Tensor, positions: Tensor, labels: Tensor) -> Tensor:
    hidden = base.model.model.language_model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
    ).last_hidden_state
    following = F.pad(labels, (0, 1), value=_IGNORE)[:, 1:]
    keep = following != _IGNORE
    return F.cross_entropy(base.model.lm_head(hidden[keep]), following[keep])


def _lessons(scene: Scene, rng: np.random.Generator, together: bool) -> list[list[Question]]:
    """What is asked on one clip: each type alone and every light, or pairs that may share a conversation."""
    if not together:
        return [[ask(scene, kind, rng)] for kind in SILENT_TYPES if kind != "light_vision"] + [
            [q] for q in ask_each_light(scene)
        ]
    pairs = [["first_mover", "light"], ["colour", "light"], ["shape", "light"]]
    return [converse(scene, [str(k) for k in rng.permutation(pair)], rng) for pair in pairs]


def train_language(
    base: BaseInTraining,
    features_RVSPW: Sequence[Tensor],
    scenes: Sequence[Scene],
    *,
    steps: int,
    batch: int = 16,
    rate: float = 2e-3,
    seed: int,
    frozen: bool = False,
) -> list[float]:
    """Train projector and language model on frozen vision features; returns the losses.

    Args:
        base: what is trained.
        features_RVSPW: features of the same V scenes, sampled in R ways; every step draws one.
        scenes: of the features.
        steps: how many.
        batch: clips in a step.
        rate: the highest learning rate.
        seed: of what is drawn.
        frozen: train the projector alone.
    """
    rng = np.random.default_rng(seed)
    language = base.model.model.language_model
    language.requires_grad_(not frozen)
    parameters = [p for p in (*base.projector, *language.parameters()) if p.requires_grad]

    def loss() -> Tensor:
        chosen, together = rng.integers(0, len(scenes), batch), bool(rng.random() < 0.2)
        talks = [_lessons(scenes[v], rng, together) for v in chosen]
        features = features_RVSPW[int(rng.integers(len(features_RVSPW)))][chosen]
        return _loss(base, *packed(base, base.video_tokens(features), talks))

    return descend(parameters, track(range(steps), "language model"), rate, steps, loss)
