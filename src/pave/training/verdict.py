"""Did a patch learn to use its channels, or only what it was shown? Told from the training samples alone.

Some training questions are asked again, with their own side channels and with those of another clip that has another answer. What a
patch has learnt from the channel goes with the channel; what it has memorised from the picture or the question stays. Of the right answers
beyond those that the base gives without any channel (one of two objects in the picture is a good guess), the share that stays is near 0
in the one case and near 1 in the other, and between them it is half learnt. Questions that the base answers as well are not judged: they
need no channel.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from pave.data.collator import PatchCollator
from pave.data.dataset import PatchDataset
from pave.data.items import PatchItem
from pave.data.samples import Sample
from pave.data.sharing import IGNORE
from pave.tokens import SideTokens
from pave.training.recipe import Recipe
from pave.utils.proportions import wilson

Word = Literal["learnt", "half learnt", "memorised", "nothing yet"]
LEARNT_BELOW, MEMORISED_FROM = 0.25, 0.6
"""Share of the right answers beyond the base's that stay with another clip's channel. In trials on questions that the base gets wrong it
was at most 0.11 where held-out answers were right, 0.40 to 0.57 where about half were, and 0.65 to 0.97 where they were not."""
_WHAT_NOW = {
    "learnt": "right answers go with the channel",
    "half learnt": "more steps, or data.swap_pictures where no picture is needed",
    "memorised": "right answers stay with another clip's channel: data.swap_pictures where no picture is needed, or more clips",
    "nothing yet": "more steps, if pave probe finds the answer in the features",
}
_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """On the questions of one type."""

    type: str
    word: Word
    questions: int
    """That were asked."""
    right: float
    """Share answered right, with their own channels."""
    kept: float
    """Share answered right still, although the channel was that of another clip where the same question has another answer."""
    base: float
    """Share that the base answers right."""
    guessing: float
    """Share of the most frequent answer."""

    @property
    def sentence(self) -> str:
        """For people."""
        name = f"{self.type!r} " if self.type else ""
        return (
            f"{name}{self.word}: {100 * self.right:.0f} % of {self.questions} training questions right (guessing {100 * self.guessing:.0f} %, the base alone "
            f"{100 * self.base:.0f} %), {100 * self.kept:.0f} % still with another clip's channel; {_WHAT_NOW[self.word]}"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON, and for the patch's record."""
        return {**asdict(self), "sentence": self.sentence}


def verdicts_of(recipe: Recipe, model: Any, processor: Any, data: PatchDataset) -> tuple[Verdict, ...]:
    """At the end of a run; every process comes to the same. None where the recipe wants none, and of a sharded model.

    Args:
        recipe: of the run.
        model: as it was trained.
        processor: the base's.
        data: the training samples.
    """
    questions = recipe.evaluation.verdict_questions
    if not questions or recipe.training.trainer.get("fsdp"):
        return ()
    limit = recipe.data.max_length
    collator = PatchCollator(processor, model.config, recipe.patch.side_channels, max_length=limit, broken_features="missing")
    return tuple(judge_training(model, collator, data, questions=questions, seed=recipe.training.seed))


def judge_training(
    model: Any, collator: PatchCollator, data: PatchDataset, *, questions: int = 30, seed: int = 0
) -> list[Verdict]:
    """Judge each type of question of the training samples that has a channel, and a text that is asked about two videos with two answers.

    Answers are compared token by token behind the right beginning, which is right exactly where greedy generation would be: a forward
    pass for each batch, no generation.

    A patch that puts its channels into the prompt as further tokens is not judged.

    Args:
        model: with the patch attached; put back into the mode that it is in.
        collator: as in training.
        data: the training samples.
        questions: most that are asked of each type.
        seed: of which are asked, and whose channel they get.
    """
    if any(channel.fusion.adds_llm_tokens for channel in collator.channels.values()):
        return []
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return [
                verdict
                for kind, asked in _chosen(data.samples, list(collator.channels), questions, seed).items()
                if (verdict := _judge(model, collator, data, kind, asked)) is not None
            ]
    finally:
        model.train(was_training)


def _chosen(
    samples: Sequence[Sample], channels: Sequence[str], questions: int, seed: int
) -> dict[str, list[tuple[Sample, Sample]]]:
    """By type, samples that have a channel, each with one of another video to which the same question has another answer: that one lends
    it its channels. With another question, or with the channel of the same clip, a right answer would say nothing of the channel."""
    by_type: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if any(sample.side_channels.get(name, "") is not None for name in channels):
            by_type[sample.type].append(sample)
    rng = np.random.default_rng(seed)
    chosen: dict[str, list[tuple[Sample, Sample]]] = {}
    for kind, members in by_type.items():
        by_text: dict[str, list[Sample]] = defaultdict(list)
        for i in rng.permutation(len(members)):
            by_text[_question(members[i])].append(members[i])
        told_apart = {
            text for text, own in by_text.items() if min(len({s.video for s in own}), len(set(map(_answer, own)))) > 1
        }
        pairs: list[tuple[int, Sample]] = []
        for i in rng.permutation(len(members)):
            if len(pairs) == questions:
                break
            if _question(members[i]) not in told_apart:
                continue
            alike = by_text[_question(members[i])]
            begin = len(pairs) % len(alike)
            lender = next((other for other in alike[begin:] + alike[:begin] if _lends(other, members[i])), None)
            if lender is not None:
                pairs.append((int(i), lender))
        if pairs:
            chosen[kind] = [(members[i], lender) for i, lender in sorted(pairs, key=lambda pair: pair[0])]
    return chosen


def _lends(other: Sample, sample: Sample) -> bool:
    return other.video != sample.video and _answer(other) != _answer(sample)


def _question(sample: Sample) -> str:
    return " ".join(sample.turns[-1][0].lower().split())


def _answer(sample: Sample) -> str:
    return " ".join(str(sample.turns[-1][1]).lower().split())


def _judge(
    model: Any, collator: PatchCollator, data: PatchDataset, kind: str, pairs: Sequence[tuple[Sample, Sample]]
) -> Verdict | None:
    right: list[bool] = []
    kept: list[bool] = []
    base: list[bool] = []
    for begin in range(0, len(pairs), _BATCH):
        own = data.read([sample for sample, _ in pairs[begin : begin + _BATCH]])
        lent = data.read([lender for _, lender in pairs[begin : begin + _BATCH]])
        there = [place for place, item in enumerate(own) if _has_channel(item) and _has_channel(lent[place])]
        if not there:
            continue
        own, lent = [own[place] for place in there], [lent[place] for place in there]
        right += _right(model, collator, own)
        kept += _right(model, collator, [replace(item, side=other.side) for item, other in zip(own, lent, strict=True)])
        with model.patch_disabled():
            base += _right(model, collator, own)
    if not right:
        return None
    guessing = Counter(_answer(sample) for sample, _ in pairs).most_common(1)[0][1] / len(pairs)
    shares = {"right": float(np.mean(right)), "kept": float(np.mean(kept)), "base": float(np.mean(base)), "guessing": guessing}
    word = _word(len(right), **shares)
    return None if word is None else Verdict(type=kind, word=word, questions=len(right), **shares)


def _word(questions: int, *, right: float, kept: float, base: float, guessing: float) -> Word | None:
    """None where the base alone answers as well."""
    if wilson(right, questions)[0] <= max(base, guessing):
        return None if wilson(base, questions)[0] > guessing else "nothing yet"
    stays = (kept - base) / (right - base)
    return "learnt" if stays < LEARNT_BELOW else "half learnt" if stays < MEMORISED_FROM else "memorised"


def _has_channel(item: PatchItem) -> bool:
    return any(features is not None and len(features) for features in item.side.values())


def _right(model: Any, collator: PatchCollator, items: Sequence[PatchItem]) -> list[bool]:
    """Whether every token of the answers is the most probable one; items are put into batches of equal numbers of frames."""
    found: dict[str, bool] = {}
    device = model.device
    groups: dict[int, list[PatchItem]] = defaultdict(list)
    for item in items:
        groups[len(item.frames_FHWC)].append(item)
    for group in groups.values():
        batch = _moved(collator(group), device)
        batch.pop("sample_ids", None)
        logits = model(**batch, use_cache=False).logits[
            :, :-1
        ]  # with the labels: a gate reads the prompt up to the first of them
        wanted = batch["labels"][:, 1:]
        hits = (logits.argmax(dim=-1) == wanted) | (wanted == IGNORE)
        for item, hit in zip(group, hits.all(dim=1).tolist(), strict=True):
            found[item.id] = hit
    return [found[item.id] for item in items]


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Mapping):
        return {name: _moved(part, device) for name, part in value.items()}
    return value.to(device) if isinstance(value, (torch.Tensor, SideTokens)) else value
