"""How the base model learns the silent world: first the vision tower, then projector and language model.

Learning both at once stays on a plateau for a very long time. A tower that first learns to say of every patch what covers it,
whether that moves and which light is on gives the language model something to read within minutes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import LlavaOnevisionForConditionalGeneration

from pave.playground.base_model import GRID, PATCH, TURN_END, TURN_START, vocabulary
from pave.playground.questions import SILENT_TYPES, Question, ask, ask_each_light, converse
from pave.playground.render import coverage, place
from pave.playground.world import COLOURS, LIGHTS, SHAPES, Scene
from pave.utils.console import track

logger = logging.getLogger(__name__)

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
    """For every patch of every frame: what covers it (0 nothing), its motion (0 rests, 1 moves), the light (0 none): (F, GRID**2, 3)."""
    labels = np.zeros((len(times_F), GRID, GRID, 3), dtype=np.int64)
    for index, thing in enumerate(scene.things):
        x_F, y_F, moving_F = place(scene, index, times_F)
        covered = coverage(thing.shape, x_F, y_F).reshape(len(times_F), GRID, PATCH, GRID, PATCH).mean(axis=(2, 4)) > 0.2
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


def normalised(frames_NHWC: NDArray[np.uint8]) -> Tensor:
    """What the base's processor makes of frames of its own size: (N, C, H, W) from -1 to 1."""
    return torch.from_numpy(frames_NHWC).permute(0, 3, 1, 2).float() / 127.5 - 1


def vision_features(model: LlavaOnevisionForConditionalGeneration, frames_NHWC: NDArray[np.uint8]) -> Tensor:
    """What the projector gets: (N, GRID**2, vision width)."""
    return model.model.vision_tower(normalised(frames_NHWC), output_hidden_states=True).hidden_states[-1]


def train_tower(
    model: LlavaOnevisionForConditionalGeneration,
    clips: SilentClips,
    *,
    steps: int,
    batch: int = 64,
    rate: float = 2e-3,
    seed: int,
) -> dict[str, float]:
    """Train the vision tower on labels of patches; returns the accuracies over the last tenth of the steps."""
    rng = np.random.default_rng(seed)
    labels_VFP3 = torch.from_numpy(np.stack([patch_labels(s, t) for s, t in zip(clips.scenes, clips.times_VF, strict=True)]))
    sizes = (1 + len(_LOOKS), 2, 1 + len(LIGHTS))
    head = nn.Linear(model.model.vision_tower.config.hidden_size, sum(sizes))
    weights = torch.ones(sizes[0])
    weights[0] = 0.1  # most patches are empty
    parameters = [*model.model.vision_tower.parameters(), *head.parameters()]
    optimizer, schedule = _fit(parameters, steps, rate)
    hits: list[list[float]] = []
    for _ in track(range(steps), "vision tower"):
        v, f = rng.integers(0, len(clips), batch), rng.integers(0, clips.times_VF.shape[1], batch)
        look, motion, light = head(vision_features(model, clips.frames_VFHWC[v, f])).flatten(0, 1).split(sizes, dim=1)
        target = labels_VFP3[v, f].flatten(0, 1)
        on = target[:, 0] > 0
        loss = F.cross_entropy(look, target[:, 0], weight=weights)
        loss = loss + F.cross_entropy(motion[on], target[on, 1]) + F.cross_entropy(light, target[:, 2])
        _step(loss, parameters, optimizer, schedule)
        right = (look.argmax(1) == target[:, 0])[on], (motion.argmax(1) == target[:, 1])[on], light.argmax(1) == target[:, 2]
        hits.append([float(r.float().mean()) for r in right])
    last = np.mean(hits[-max(1, steps // 10) :], axis=0)
    return dict(zip(("look of object patches", "motion of object patches", "light"), map(float, last), strict=True))


def cached_features(model: LlavaOnevisionForConditionalGeneration, clips: SilentClips) -> Tensor:
    """Vision features of every frame, in float16: (V, F, GRID**2, vision width)."""
    with torch.no_grad():
        parts = (clips.frames_VFHWC[v : v + 16] for v in range(0, len(clips), 16))
        return torch.cat([vision_features(model, p.reshape(-1, *p.shape[2:])).half().unflatten(0, p.shape[:2]) for p in parts])


def video_tokens(model: LlavaOnevisionForConditionalGeneration, features_VFPC: Tensor) -> Tensor:
    """From vision features to what the language model reads, newline token last: (V, F * tokens + 1, E)."""
    inner = model.model
    projected = inner.multi_modal_projector(features_VFPC.float().flatten(0, 1))
    tokens = inner.apply_pooling(projected).reshape(len(features_VFPC), -1, projected.shape[-1])
    return torch.cat([tokens, inner.image_newline.expand(len(tokens), 1, -1)], dim=1)


_WORD = {word: index for index, word in enumerate(vocabulary())}
_PREFIX = [_WORD[TURN_START], _WORD["user"]]


def _talk_ids(questions: Sequence[Question]) -> tuple[list[int], list[int]]:
    """Token ids of a conversation from behind the video on, as the chat template writes it, and the labels of its answers."""
    ids: list[int] = []
    labels: list[int] = []
    for number, question in enumerate(questions):
        asked = [*(_PREFIX if number else []), *(_WORD[w] for w in question.text.split())]
        asked += [_WORD[TURN_END], _WORD[TURN_START], _WORD["assistant"]]
        answer = [*(_WORD[w] for w in question.answer.split()), _WORD[TURN_END]]
        ids += asked + answer
        labels += [_IGNORE] * len(asked) + answer
    return ids, labels


def _packed(model: LlavaOnevisionForConditionalGeneration, tokens_VNE: Tensor, talks: Sequence[Sequence[Sequence[Question]]]):  # type: ignore[no-untyped-def]
    """Several conversations behind one video, each blind to the others: embeddings, mask, positions and labels."""
    rows = [[_talk_ids(talk) for talk in row] for row in talks]
    V, count, length = len(rows), max(map(len, rows)), max(len(ids) for row in rows for ids, _ in row)
    ids_VKL, labels_VKL = torch.zeros(V, count, length, dtype=torch.long), torch.full((V, count, length), _IGNORE)
    for v, row in enumerate(rows):
        for k, (ids, labels) in enumerate(row):
            ids_VKL[v, k, : len(ids)], labels_VKL[v, k, : len(ids)] = torch.tensor(ids), torch.tensor(labels)
    embed = model.get_input_embeddings()
    prefix = embed(torch.tensor(_PREFIX)).expand(V, -1, -1)
    embeds = torch.cat([prefix, tokens_VNE, embed(ids_VKL.flatten(1))], dim=1)
    start, total = embeds.shape[1] - count * length, embeds.shape[1]
    block = torch.cat([torch.zeros(start, dtype=torch.long), torch.arange(1, count + 1).repeat_interleave(length)])
    causal = torch.ones(total, total, dtype=torch.bool).tril()
    mask = causal & ((block[:, None] == block[None]) | (block[None] == 0))
    positions = torch.cat([torch.arange(start), torch.arange(start, start + length).repeat(count)])
    labels_VL = F.pad(labels_VKL.flatten(1), (start, 0), value=_IGNORE)
    return embeds, mask.expand(V, 1, -1, -1), positions.expand(V, -1), labels_VL


def _loss(
    model: LlavaOnevisionForConditionalGeneration, embeds: Tensor, mask: Tensor, positions: Tensor, labels: Tensor
) -> Tensor:
    hidden = model.model.language_model(
        inputs_embeds=embeds, attention_mask={"full_attention": mask}, position_ids=positions, use_cache=False
    ).last_hidden_state
    following = F.pad(labels, (0, 1), value=_IGNORE)[:, 1:]
    keep = following != _IGNORE
    return F.cross_entropy(model.lm_head(hidden[keep]), following[keep])


def _lessons(scene: Scene, rng: np.random.Generator, together: bool) -> list[list[Question]]:
    """What is asked on one clip: each type alone and every light, or pairs that may share a conversation."""
    if not together:
        return [[ask(scene, kind, rng)] for kind in SILENT_TYPES if kind != "light_vision"] + [
            [q] for q in ask_each_light(scene)
        ]
    pairs = [["first_mover", "light"], ["colour", "light"], ["shape", "light"]]
    return [converse(scene, [str(k) for k in rng.permutation(pair)], rng) for pair in pairs]


def train_language(
    model: LlavaOnevisionForConditionalGeneration,
    features_RVFPC: Sequence[Tensor],
    scenes: Sequence[Scene],
    *,
    steps: int,
    batch: int = 16,
    rate: float = 2e-3,
    seed: int,
) -> list[float]:
    """Train projector, newline and language model on frozen vision features; returns the losses.

    Args:
        features_RVFPC: features of the same V scenes, sampled in R ways; every step draws one.
    """
    rng = np.random.default_rng(seed)
    inner = model.model
    parameters = [*inner.multi_modal_projector.parameters(), inner.image_newline, *inner.language_model.parameters()]
    optimizer, schedule = _fit(parameters, steps, rate)
    losses = []
    for _ in track(range(steps), "language model"):
        chosen, together = rng.integers(0, len(scenes), batch), bool(rng.random() < 0.2)
        talks = [_lessons(scenes[v], rng, together) for v in chosen]
        features = features_RVFPC[int(rng.integers(len(features_RVFPC)))][chosen]
        loss = _loss(model, *_packed(model, video_tokens(model, features), talks))
        _step(loss, parameters, optimizer, schedule)
        losses.append(loss.item())
    return losses
