"""Accuracy while a patch is trained: what ``evaluation.generate`` of a recipe asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pave.data.dataset import PatchDataset
from pave.data.samples import Sample
from pave.evaluation.inference import VideoQA
from pave.evaluation.predictions import as_prediction
from pave.evaluation.result import check_scorable, verdicts
from pave.evaluation.runner import evaluate


class GeneratedAnswers:
    """Answers samples as ``pave eval`` does and says which answers are right. For ``run_recipe(judge=GeneratedAnswers())``."""

    def check(self, samples: Sequence[Sample]) -> None:
        """Refuse, before a run begins, samples whose answers cannot be judged.

        Raises:
            ValueError: naming the sample.
        """
        for places in _by_benchmark(samples):
            predictions = [as_prediction(samples[place]) for place in places]
            verdicts(predictions, check_scorable(predictions))

    def judge(
        self, model: Any, processor: Any, data: PatchDataset, places: Sequence[int], *, batch_size: int, max_new_tokens: int
    ) -> list[bool]:
        """For each sample of ``data`` at these places whether the model's answer is right, by the rules of the sample's benchmark where
        it is of one. One that cannot be answered is wrong.

        Args:
            model: a patched model, which may be in training.
            processor: the base's.
            data: what reads the samples.
            places: of the samples.
            batch_size: samples answered at a time.
            max_new_tokens: most tokens of an answer.
        """
        samples = [data.samples[place] for place in places]
        qa = VideoQA(model, processor, dataset=data)
        right = [False] * len(samples)
        for members in _by_benchmark(samples):
            asked = [samples[member] for member in members]
            found = evaluate(qa, asked, batch_size=batch_size, max_new_tokens=max_new_tokens, progress=False).predictions
            for member, verdict in zip(members, verdicts(found, check_scorable(found)), strict=True):
                right[member] = verdict
        return right


def _by_benchmark(samples: Sequence[Sample]) -> list[list[int]]:
    """Places of the samples of each benchmark; tasks may be of several, and each has rules of its own."""
    groups: dict[Any, list[int]] = {}
    for place, sample in enumerate(samples):
        groups.setdefault(sample.meta.get("benchmark"), []).append(place)
    return list(groups.values())
