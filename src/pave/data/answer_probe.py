"""Do a channel's features hold the answers at all? A linear probe, in seconds and before anything is trained.

For every channel and type of question, multinomial logistic regression from what the stream is on average to the answer, scored on
streams that it was not fitted on (5-fold, stratified by answer; a stream is in one fold with all its questions). What such a probe
cannot read from a small set of streams, a patch that is trained on them will hardly learn either. A good probe is necessary and not
sufficient, and of questions that need the picture as well it says nothing: their answer is in no channel alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pave.data.dataset import PatchDataset
from pave.data.samples import Sample
from pave.side_channels.base import SideFeatures
from pave.utils.proportions import wilson

MOST_STREAMS = 300
"""Streams of a channel that are read; more are thinned out evenly."""
LEAST_STREAMS = 10
"""Streams below which nothing is said."""
MOST_ANSWERS = 12
"""Different answers that are told apart; of more, the most frequent."""
_FOLDS = 5
_DECAY = 1e-2
"""Of the squared weights, beside the mean cross-entropy."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ProbeScore:
    """What a probe reads of one channel for one type of question."""

    channel: str
    type: str
    question: str = ""
    """The text that was probed alone, where a type asks several things of one stream."""
    several: bool = False
    """Whether the type asks several things of one stream and none of them often enough: nothing was fitted, and the shares are not
    numbers."""
    streams: int
    """Different streams whose questions were probed."""
    answers: int
    """Different answers that were told apart."""
    accuracy: float
    """On streams that the probe was not fitted on; every stream counts once."""
    low: float
    """Of the 95 % interval (Wilson, by streams)."""
    high: float
    chance: float
    """Accuracy of always giving the most frequent answer."""

    @property
    def name(self) -> str:
        """Which questions were probed, in words."""
        return ": ".join(filter(None, (self.type, self.question))) or "all questions"

    @property
    def near_chance(self) -> bool:
        """Whether the probe is no better than guessing."""
        return self.accuracy <= self.chance

    @property
    def unsure(self) -> bool:
        """Whether the probe is better than guessing, but on so few streams that this may be luck."""
        return self.low <= self.chance < self.accuracy

    @property
    def holds(self) -> bool:
        """Whether the probe is surely better than guessing, and gets at least half of what guessing gets wrong."""
        return self.low > self.chance and self.accuracy >= (1 + self.chance) / 2

    @property
    def verdict(self) -> str:
        """In a few words."""
        if self.several:
            return "several questions about one stream: not told"
        if self.near_chance:
            return "these features do not hold the answer"
        if self.unsure:
            return "too few streams to tell"
        return "these features hold the answer" if self.holds else "these features hold little of the answer"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        shares = ("accuracy", "low", "high", "chance")
        told = {name: None if self.several and name in shares else value for name, value in asdict(self).items()}
        return {**told, "near_chance": self.near_chance, "unsure": self.unsure, "holds": self.holds, "verdict": self.verdict}


def probe_samples(
    samples: Sequence[Sample], data: PatchDataset, *, most: int = MOST_STREAMS, watch: Callable[[list], Iterable] = list
) -> list[ProbeScore]:
    """Probe every channel of a dataset on the answers of samples, by type of question; only the last question of a conversation counts.

    Args:
        samples: with answers.
        data: whose encoders make the features; its own samples do not matter.
        most: streams of a channel that are read.
        watch: shows how far it is; gets the list of streams and goes through it.

    Returns:
        A score for each channel and type that has at least ``LEAST_STREAMS`` streams and two answers that come up on two of them; of a type
        that asks several things of one stream for each text of a question instead, or one that says that nothing can be told.

    Raises:
        ValueError: if a stream cannot be read; the message names its sample.
    """
    scores = []
    for channel in data.encoders:
        by_stream: dict[tuple[str, str | None], list[Sample]] = {}
        for sample in samples:
            if sample.turns[-1][1] is not None and sample.side_channels.get(channel, "") is not None:
                by_stream.setdefault((sample.video, sample.side_channels.get(channel)), []).append(sample)
        streams = list(by_stream.values())
        chosen = [streams[i * len(streams) // min(most, len(streams))] for i in range(min(most, len(streams)))]
        summaries: list[tuple[Numbers, list[Sample]]] = []
        for members in watch(chosen):
            try:
                features = data.features(channel, members[0])
            except ValueError as error:
                raise ValueError(f"sample {members[0].id!r}, side channel {channel!r}: {error}") from error
            if (summary := summarise(features)) is not None:
                summaries.append((summary, members))
        scores += _by_type(channel, summaries)
    return scores


def summarise(features: SideFeatures | None) -> Numbers | None:
    """Mean and standard deviation over time of each feature of each token, (2 M C,); None without a finite step."""
    if features is None:
        return None
    values_KC = features.features_KMC.flatten(1).double().cpu()
    values_KC = values_KC[torch.isfinite(values_KC).all(dim=1)]
    if not len(values_KC):
        return None
    return torch.cat([values_KC.mean(dim=0), values_KC.std(dim=0, correction=0)]).numpy()


def _by_type(channel: str, summaries: Sequence[tuple[Numbers, Sequence[Sample]]]) -> list[ProbeScore]:
    by_type: dict[str, list[_Asked]] = {}
    for stream, (_, members) in enumerate(summaries):
        for sample in members:
            asked = _Asked(stream, _plain(str(sample.turns[-1][0])), _plain(str(sample.turns[-1][1])))
            by_type.setdefault(sample.type, []).append(asked)
    scores = []
    for kind, rows in by_type.items():
        if len({row.stream for row in rows}) == len({(row.stream, row.question) for row in rows}):
            scores += [score for score in [_probed(channel, kind, "", rows, summaries)] if score is not None]
            continue
        by_text: dict[str, list[_Asked]] = {}
        for row in rows:
            by_text.setdefault(row.question, []).append(row)
        found = [_probed(channel, kind, text, own, summaries) for text, own in by_text.items()]
        told = [score for score in found if score is not None]
        several = _not_told(channel, kind, rows)
        scores += told or ([] if several is None else [several])
    return scores


@dataclass(frozen=True)
class _Asked:
    stream: int
    question: str
    answer: str


def _told_apart(rows: Sequence[_Asked]) -> list[_Asked]:
    """Those with the most frequent answers, none where there are too few streams or nothing to tell apart."""
    streams_of = Counter(answer for _, answer in {(row.stream, row.answer) for row in rows})
    frequent = {answer for answer, count in streams_of.most_common(MOST_ANSWERS) if count > 1}
    kept = [row for row in rows if row.answer in frequent]
    return kept if len(frequent) > 1 and len({row.stream for row in kept}) >= LEAST_STREAMS else []


def _probed(
    channel: str, kind: str, question: str, rows: Sequence[_Asked], summaries: Sequence[tuple[Numbers, Sequence[Sample]]]
) -> ProbeScore | None:
    rows = _told_apart(rows)
    if not rows:
        return None
    streams, answers = [row.stream for row in rows], [row.answer for row in rows]
    right, chance = cross_validated(np.stack([summaries[stream][0] for stream in streams]), answers, streams)
    low, high = wilson(right, len(set(streams)))
    return ProbeScore(
        channel=channel,
        type=kind,
        question=question,
        streams=len(set(streams)),
        answers=len(set(answers)),
        accuracy=right,
        low=low,
        high=high,
        chance=chance,
    )


def _not_told(channel: str, kind: str, rows: Sequence[_Asked]) -> ProbeScore | None:
    rows = _told_apart(rows)
    if not rows:
        return None
    streams, answers = len({row.stream for row in rows}), len({row.answer for row in rows})
    nothing = float("nan")
    return ProbeScore(
        channel=channel,
        type=kind,
        several=True,
        streams=streams,
        answers=answers,
        accuracy=nothing,
        low=nothing,
        high=nothing,
        chance=nothing,
    )


def _plain(answer: str) -> str:
    return " ".join(answer.lower().split()).rstrip(".")


def cross_validated(features_NC: Numbers, answers: Sequence[str], groups: Sequence[int]) -> tuple[float, float]:
    """Share of right answers of a logistic probe on rows that it was not fitted on, and the same of the most frequent answer.

    Args:
        features_NC: a row for each answer.
        answers: what is told apart.
        groups: rows of one group are in one fold and count together as one.
    """
    names = sorted(set(answers))
    label_N = np.array([names.index(answer) for answer in answers])
    fold_N = _folds(label_N, groups)
    right_N = np.zeros(len(label_N))
    for fold in np.unique(fold_N):
        test_N = fold_N == fold
        right_N[test_N] = fit_probe(features_NC[~test_N], label_N[~test_N], len(names))(features_NC[test_N]) == label_N[test_N]
    _, group_N, size_G = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    weight_N = 1 / size_G[group_N] / len(size_G)
    shares = [float(weight_N[label_N == label].sum()) for label in range(len(names))]
    return float(right_N @ weight_N), max(shares)


def _folds(label_N: NDArray[np.int64], groups: Sequence[int]) -> NDArray[np.int64]:
    """The fold of every row: the groups of each answer (that of their first row), in an order drawn once, are dealt out in turns."""
    first: dict[int, int] = {}
    for label, group in zip(label_N.tolist(), groups, strict=True):
        first.setdefault(group, label)
    order = np.random.default_rng(0).permutation(list(first)).tolist()
    dealt = sorted(order, key=lambda group: first[group])  # stable: within an answer as drawn
    folds = min(_FOLDS, len(dealt))
    fold_of = {group: place % folds for place, group in enumerate(dealt)}
    return np.array([fold_of[group] for group in groups])


def fit_probe(features_NC: Numbers, label_N: NDArray[np.int64], labels: int) -> Callable[[Numbers], NDArray[np.int64]]:
    """Multinomial logistic regression with L2, by L-BFGS, on features of mean 0 and standard deviation 1.

    Returns:
        From features to the most probable label of each row.
    """
    mean_C, deviation_C = features_NC.mean(axis=0), features_NC.std(axis=0)
    deviation_C = np.where(deviation_C > 1e-9 * np.abs(features_NC).max(axis=0), deviation_C, np.inf)  # what does not vary is 0

    def scaled(rows_NC: Numbers) -> torch.Tensor:
        return torch.from_numpy((rows_NC - mean_C) / deviation_C)

    x_NC, y_N = scaled(features_NC), torch.from_numpy(label_N)
    weight_CL = torch.zeros(x_NC.shape[1], labels, dtype=torch.float64, requires_grad=True)
    bias_L = torch.zeros(labels, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight_CL, bias_L], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = torch.nn.functional.cross_entropy(x_NC @ weight_CL + bias_L, y_N) + _DECAY * weight_CL.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(loss)  # type: ignore[arg-type]
    return lambda rows_NC: (scaled(rows_NC) @ weight_CL.detach() + bias_L.detach()).argmax(dim=1).numpy()
