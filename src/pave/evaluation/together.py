"""Several patches on one base: each alone, all together, and what adding them lost or won.

Every batch of samples is read once and answered once for every *run*: by the base, by each patch alone, by all together and, where
there is one, by the patch that was made of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pave.data.collator import PatchCollator
from pave.data.dataset import PatchDataset
from pave.data.items import PatchItem
from pave.data.media import FrameSampling
from pave.data.samples import Sample
from pave.data.vision import MemoryVision, VisionEncoder
from pave.evaluation.metrics import PairedComparison
from pave.evaluation.predictions import Prediction, as_prediction
from pave.evaluation.result import ALL, EvalResult, check_scorable, compare_pairs, score_predictions
from pave.evaluation.runner import plan_batches
from pave.inference.generation import generate_texts
from pave.patching.compose import ComposedPatch
from pave.patching.rows import Strength
from pave.side_channels import build_encoder, modules_named
from pave.utils.console import track

BASE, TOGETHER, MERGED = "base", "together", "merged"
"""Runs beside those of each patch alone; no patch can have their names."""
KEPT_WITHIN = 0.02
"""What may be lost, as a share of the answers, where nothing that matters is: an interval that holds 0 and stays above it says "kept"."""
_MEMORY = 2 * 2**30
"""Bytes of frames or vision features, and of side features, that are kept for the next questions about a video."""


@dataclass(frozen=True)
class TogetherResult:
    """What every run answered."""

    runs: dict[str, EvalResult]
    """By name: "base", each patch, "together", and "merged" where there is a merged patch."""
    patches: tuple[str, ...]
    """The patches that were added."""
    there: dict[str, tuple[str, ...]]
    """By sample id the patches of which some channel was there; of a patch without channels it always is."""

    def groups(self) -> dict[tuple[str, ...], list[str]]:
        """Ids of the samples by the patches whose channels they have, those with most of them first."""
        found: dict[tuple[str, ...], list[str]] = {}
        for sample_id, names in self.there.items():
            found.setdefault(names, []).append(sample_id)
        return dict(sorted(found.items(), key=lambda item: -len(item[0])))

    def of(self, run: str, ids: Iterable[str]) -> EvalResult:
        """A run's answers to some of the samples, scored."""
        chosen = set(ids)
        return score_predictions([p for p in self.runs[run].predictions if p.id in chosen])

    def differing(self, first: str, second: str, ids: Iterable[str]) -> int:
        """How many of the samples two runs answered with other words."""
        answers = [{p.id: p.prediction for p in self.runs[run].predictions} for run in (first, second)]
        return sum(answers[0][sample_id] != answers[1][sample_id] for sample_id in ids)

    def kinds(self, ids: Iterable[str]) -> list[KindTogether]:
        """Every question type among some of the samples, in order of first appearance, all of them last where there are several."""
        ids = list(ids)
        parts = {run: self.of(run, ids) for run in self.runs}
        names = list(parts[BASE].by_type)
        return [self._kind(name, parts) for name in [*names, *([ALL] if len(names) > 1 else [])]]

    def sentences(self) -> list[str]:
        """What adding lost and won, in words."""
        out = []
        for names, ids in self.groups().items():
            where = f"with {_channels_of(names)} ({len(ids)} samples)"
            if len(names) < 2:
                alone = names[0] if names else BASE
                differing = self.differing(alone, TOGETHER, ids)
                out.append(f"{where}: together {differing} answers differ from those of {alone}{' alone' if names else ''}")
                continue
            for kind in self.kinds(ids):
                low, high = 100 * kind.added.interval.low, 100 * kind.added.interval.high
                before, after = 100 * kind.accuracy[kind.best], 100 * kind.accuracy[TOGETHER]
                out.append(
                    f"{where}, {kind.kind}: {kind.best} alone {before:.1f} %, together {after:.1f} %, {kind.verdict}: "
                    f"{100 * kind.added.difference:+.1f} points [{low:+.1f}, {high:+.1f}]"
                )
        return out

    def to_dict(self) -> dict[str, Any]:
        """For JSON: every run over all samples, and every question type by the channels that are there."""
        groups = [
            {
                "patches": list(names),
                "samples": len(ids),
                "differing_from_alone": {run: self.differing(run, TOGETHER, ids) for run in (BASE, *self.patches)},
                "kinds": [kind.to_dict() for kind in self.kinds(ids)],
            }
            for names, ids in self.groups().items()
        ]
        return {
            "runs": {run: result.to_dict() for run, result in self.runs.items()},
            "groups": groups,
            "sentences": self.sentences(),
        }

    def _kind(self, name: str, parts: Mapping[str, EvalResult]) -> KindTogether:
        accuracy = {run: (result.overall if name == ALL else result.by_type[name]).accuracy for run, result in parts.items()}
        best = max(self.patches, key=lambda patch: accuracy[patch])  # of equals, the first

        def compared(first: str, second: str) -> PairedComparison:
            pairs = zip(parts[first].predictions, parts[second].predictions, strict=True)
            return compare_pairs([(a, b) for a, b in pairs if name in (ALL, a.type)])[ALL]

        merged = compared(TOGETHER, MERGED) if MERGED in parts else None
        return KindTogether(name, accuracy, best, compared(best, TOGETHER), merged, parts)


@dataclass(frozen=True)
class KindTogether:
    """One question type under all runs."""

    kind: str
    accuracy: dict[str, float]
    """By run."""
    best: str
    """The patch that alone answers most of them right: its own task, as far as the samples tell."""
    added: PairedComparison
    """Together against that patch alone, sample by sample."""
    merged: PairedComparison | None
    """The merged patch against the patches together."""
    results: Mapping[str, EvalResult] = dataclasses.field(repr=False)

    @property
    def samples(self) -> int:
        """How many there are of it."""
        result = self.results[BASE]
        return (result.overall if self.kind == ALL else result.by_type[self.kind]).n_expected

    @property
    def verdict(self) -> str:
        """In a word: what adding did, as far as the interval tells; "undecided" where it holds both 0 and a loss that matters."""
        if self.added.interval.high < 0:
            return "lost"
        if self.added.interval.low > 0:
            return "won"
        return "kept" if self.added.interval.low > -KEPT_WITHIN else "undecided"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        scores = {
            run: (result.overall if self.kind == ALL else result.by_type[self.kind]).to_dict()
            for run, result in self.results.items()
        }
        pairs = {"added": dataclasses.asdict(self.added)}
        if self.merged is not None:
            pairs["merged"] = dataclasses.asdict(self.merged)
        return {"kind": self.kind, "runs": scores, "best_alone": self.best, "verdict": self.verdict, **pairs}


class Together:
    """Answers samples with several patches of one base.

    Args:
        model: the base with the parts of ``composed`` attached under their names, and the merged patch under "merged" where it is asked
            for as well.
        processor: the base's.
        composed: what the channels are called, and by which patches they are read.
        sampling: which frames are looked at.
        encoders: modules with side encoders of your own that the patches may name.

    Raises:
        ValueError: if a part has the name of another run (see ``check_names``).
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        composed: ComposedPatch,
        *,
        sampling: FrameSampling,
        encoders: str | Iterable[str] = (),
    ) -> None:
        self.model, self.processor, self.composed = model, processor, composed
        self.names = tuple(part.name for part in composed.parts)
        check_names(self.names)
        channels = composed.record.patch.side_channels
        with modules_named(encoders):
            built = {name: build_encoder(channel.encoder).to(model.device) for name, channel in channels.items()}
        try:
            pre = composed.record.patch.reads_pre_projector
            vision = MemoryVision(VisionEncoder(model, processor, pre_projector=pre), sampling, _MEMORY)
        except ValueError:  # this base has none to keep
            vision = None
        self._dataset = PatchDataset((), sampling, built, channels, cache="memory", cache_bytes=_MEMORY, vision=vision)
        self._collate = PatchCollator(processor, model.config, channels, newline=composed.record.patch.newline, train=False)

    def evaluate(
        self,
        samples: Sequence[Sample],
        *,
        weights: Mapping[str, Strength] | None = None,
        runs: Sequence[str] | None = None,
        batch_size: int = 8,
        max_new_tokens: int = 64,
        progress: bool = True,
    ) -> TogetherResult:
        """Answer every sample in every run and score the answers. A sample that cannot be answered counts as wrong.

        Args:
            samples: each with an answer to compare with.
            weights: strengths of the patches where they act together; default 1.
            runs: those that are wanted; default the base, each patch, all together, and "merged" where that is attached.
            batch_size: samples answered at a time.
            max_new_tokens: most tokens of an answer.
            progress: show it.

        Raises:
            ValueError: before any work, if a sample has no answer or cannot be scored, or an id comes twice.
        """
        wanted = [as_prediction(sample) for sample in samples]
        check_scorable(wanted)
        plans = self._plans({**dict.fromkeys(self.names, 1.0), **(weights or {})})
        plans = plans if runs is None else {run: plans[run] for run in runs}
        answers: dict[str, dict[int, str | ValueError]] = {run: {} for run in plans}
        there: dict[str, tuple[str, ...]] = {}
        for batch in track(plan_batches(wanted, batch_size), f"Answering {len(samples)} samples", enabled=progress):
            items = {place: self._read(samples[place]) for place in batch}
            there |= {wanted[place].id: self._there(item) for place, item in items.items()}
            for group in _by_length(items):
                for run, patches in plans.items():
                    answers[run] |= self._answer(group, patches, max_new_tokens)
            for run in plans:
                answers[run] |= {place: item for place, item in items.items() if isinstance(item, ValueError)}
        results = {
            run: score_predictions([_filled(want, found[place]) for place, want in enumerate(wanted)])
            for run, found in answers.items()
        }
        return TogetherResult(results, self.names, {want.id: there[want.id] for want in wanted})

    def _plans(self, weights: Mapping[str, Strength]) -> dict[str, Any]:
        alone = {name: {name: 1.0} for name in self.names}
        merged = {MERGED: {MERGED: 1.0}} if MERGED in self.model.patch_names else {}
        return {BASE: None, **alone, TOGETHER: dict(weights), **merged}

    def _read(self, sample: Sample) -> PatchItem | ValueError:
        """With the channels as the sum calls them, from what the sample names for those of the parts."""
        given = dict(sample.side_channels)
        for part in self.composed.parts:
            for own, name in part.channels.items():
                if own in sample.side_channels:
                    given.setdefault(name, sample.side_channels[own])
        try:
            return self._dataset.read([dataclasses.replace(sample, side_channels=given)])[0]
        except ValueError as error:
            return error

    def _there(self, item: PatchItem | ValueError) -> tuple[str, ...]:
        if isinstance(item, ValueError):
            return ()
        here = {name for name, features in item.side.items() if features is not None and len(features)}
        parts = self.composed.parts
        return tuple(part.name for part in parts if not part.channels or here.intersection(part.channels.values()))

    def _answer(self, items: Mapping[int, PatchItem], patches: Any, max_new_tokens: int) -> dict[int, str | ValueError]:
        """A group that is refused is tried one by one, so that one bad sample fails alone."""
        try:
            batch = self._collate(list(items.values()))
            batch["side_channels"] = self._by_patch(batch["side_channels"])
            texts = generate_texts(self.model, self.processor, batch, patches=patches or {}, max_new_tokens=max_new_tokens)
        except ValueError as error:
            if len(items) == 1:
                return dict.fromkeys(items, error)
            singles = [self._answer({place: item}, patches, max_new_tokens) for place, item in items.items()]
            return {place: answer for single in singles for place, answer in single.items()}
        return dict(zip(items, texts, strict=True))

    def _by_patch(self, sides: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        nested = {
            part.name: {own: sides[name] for own, name in part.channels.items()}
            for part in self.composed.parts
            if part.channels
        }
        return {**nested, MERGED: dict(sides)} if MERGED in self.model.patch_names and sides else nested


def find_weights(
    together: Together,
    samples: Sequence[Sample],
    *,
    grid: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
    rounds: int = 2,
    **asking: Any,
) -> tuple[dict[str, tuple[float, float]], float]:
    """Weights under which the patches together answer most of these samples right, the mean over question types.

    One weight after the other, of each patch that of the LoRA update, then that of the residual, is set to the best value of the grid,
    the largest of equals; until a round changes nothing. Take samples that nobody trained on and that are not those of the test.

    Args:
        together: the patches.
        samples: held out.
        grid: values to try.
        rounds: at most.
        asking: further arguments of ``Together.evaluate``.

    Returns:
        By patch, the weight of the residual and of LoRA; and the mean accuracy with them.
    """
    values = sorted(set(grid), reverse=True)
    weights = dict.fromkeys(together.names, (1.0, 1.0))
    seen: dict[tuple[tuple[float, float], ...], float] = {}

    def score(tried: Mapping[str, tuple[float, float]]) -> float:
        key = tuple(tried.values())
        if key not in seen:
            result = together.evaluate(samples, weights=tried, runs=(TOGETHER,), progress=False, **asking).runs[TOGETHER]
            seen[key] = sum(kind.accuracy for kind in result.by_type.values()) / len(result.by_type)
        return seen[key]

    for _ in range(rounds):
        before = dict(weights)
        for name in together.names:
            weights[name] = max(
                ((weights[name][0], value) for value in values), key=lambda pair: score({**weights, name: pair})
            )
            weights[name] = max(
                ((value, weights[name][1]) for value in values), key=lambda pair: score({**weights, name: pair})
            )
        if weights == before:
            break
    return weights, score(weights)


def check_names(names: Iterable[str]) -> None:
    """Refuse patches that are called as another run is: their answers would take its place.

    Raises:
        ValueError: naming the patch.
    """
    for name in names:
        if name in (BASE, TOGETHER, MERGED):
            raise ValueError(
                f"a patch cannot be called {name!r}, which names what is measured beside the patches; give it another name, as in hearing=PATCH"
            )


def _channels_of(names: Sequence[str]) -> str:
    return f"the channels of {' and '.join(names)}" if names else "none of the channels"


def _filled(want: Prediction, answer: str | ValueError) -> Prediction:
    if isinstance(answer, ValueError):
        return dataclasses.replace(want, error=" ".join(str(answer).split()))
    return dataclasses.replace(want, prediction=answer)


def _by_length(items: Mapping[int, PatchItem | ValueError]) -> list[dict[int, PatchItem]]:
    """Videos of equal length go together."""
    groups: dict[int, dict[int, PatchItem]] = {}
    for place, item in items.items():
        if isinstance(item, PatchItem):
            groups.setdefault(len(item.frames_FHWC), {})[place] = item
    return list(groups.values())
