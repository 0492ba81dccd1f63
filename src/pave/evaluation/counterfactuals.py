"""What would the answers be if a side channel were something else? A patch that does not use its channel is exposed by them.

A counterfactual changes the side features of a sample after they are encoded or read and before the model sees them; frames,
question and truth stay. It is written ``KIND`` or ``KIND=VALUE``, or ``CHANNEL:KIND=VALUE`` for one channel only.

=========== =========== ==================================================================================================
kind        value       the stream becomes
=========== =========== ==================================================================================================
removed                 missing, as if the file had none
swapped                 that of another video among the samples (each video gives its stream to exactly one other; clips of one
                        video, and videos that share a file of a stream, count as one)
shifted     2 s         later by that many seconds (negative: earlier), so that its times are wrong
noised      1           itself plus Gaussian noise of that many standard deviations of each feature over the stream
thinned     0.5         itself without that share of its steps, chosen at random
resampled   2           itself at that many times its rate, linearly interpolated; times stay true
rerated     2           itself, with its second half at that many times the rate: a recorder that changed its rate; times stay true
early       2 s         itself behind that many seconds of another video's stream: a recorder that was started too early; times stay true
gap         0.2         itself without one stretch of that share of its length, at random; where a sample's ``meta`` has ``events``
                        (lists of start and end in seconds) the stretch keeps clear of them if it can
=========== =========== ==================================================================================================

The first four are what ``pave eval --counterfactuals`` runs; the last four should leave a patch alone that knows the time of each
step. Everything random depends on the seed and the sample's id alone.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from pave.data.items import PatchItem
from pave.data.samples import Sample
from pave.evaluation.predictions import source_of
from pave.side_channels import SideFeatures

DEFAULTS = {
    "removed": None,
    "swapped": None,
    "shifted": 2.0,
    "noised": 1.0,
    "thinned": 0.5,
    "resampled": 2.0,
    "rerated": 2.0,
    "early": 2.0,
    "gap": 0.2,
}
"""Kinds and the value of each where none is given."""
STANDARD = ("removed", "swapped", "shifted", "noised")
"""What a report shows."""
_PARTNERED = ("swapped", "early")
ReadSide = Callable[[Sample], Mapping[str, SideFeatures | None]]


@dataclass(frozen=True)
class Counterfactual:
    """One change to side streams.

    Raises:
        ValueError: if the kind is unknown, or the value out of range.
    """

    kind: str
    value: float | None = None
    channel: str | None = None
    """The one that changes; None: all of them."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in DEFAULTS:
            raise ValueError(f"there is no counterfactual {self.kind!r}; known: {', '.join(DEFAULTS)}")
        default = DEFAULTS[self.kind]
        if default is None and self.value is not None:
            raise ValueError(f"counterfactual {self.kind!r} takes no value, got {self.value:g}")
        value = default if self.value is None else self.value
        object.__setattr__(self, "value", value)
        if value is None:
            return
        share, positive = self.kind in ("thinned", "gap"), self.kind not in ("shifted",)
        if not math.isfinite(value) or value == 0 or (positive and value < 0) or (share and value >= 1):
            wanted = "a share between 0 and 1" if share else "a positive number" if positive else "a finite number other than 0"
            raise ValueError(f"counterfactual {self.kind!r} takes {wanted}, got {value:g}")

    def __str__(self) -> str:
        text = self.kind if self.value is None else f"{self.kind}={self.value:g}"
        return text if self.channel is None else f"{self.channel}:{text}"

    @classmethod
    def parse(cls, text: str, seed: int = 0) -> Counterfactual:
        """Read ``KIND``, ``KIND=VALUE`` or ``CHANNEL:KIND=VALUE``.

        Raises:
            ValueError: naming what is wrong with it.
        """
        head, colon, rest = text.rpartition(":")
        kind, equals, number = rest.partition("=")
        try:
            value = float(number) if equals else None
        except ValueError:
            raise ValueError(f"counterfactual {text!r}: {number!r} is no number") from None
        return cls(kind, value, head if colon else None, seed)

    def partners(self, samples: Sequence[Sample]) -> dict[str, Sample]:
        """By sample id, the sample whose stream it borrows: of another video, the same one for all samples of a video. Clips of one video,
        and videos that share a file of a stream that changes, count as one video.

        Raises:
            ValueError: if all samples are about one video.
        """
        if self.kind not in _PARTNERED:
            return {}
        groups = _sources(samples, self.channel)
        first: dict[int, Sample] = {}
        for sample, group in zip(samples, groups, strict=True):
            first.setdefault(group, sample)
        if len(first) < 2:
            raise ValueError(
                f"counterfactual {self.kind!r} needs samples of at least 2 videos with streams of their own, all are about "
                f"{[sample.video for sample in first.values()]} or share its streams"
            )
        names = list(first)
        order = np.random.default_rng(self.seed).permutation(len(names))
        lender = {names[order[i]]: first[names[order[i - 1]]] for i in range(len(names))}
        return {sample.id: lender[group] for sample, group in zip(samples, groups, strict=True)}

    def apply(self, item: PatchItem, sample: Sample, borrowed: Mapping[str, SideFeatures | None]) -> PatchItem:
        """The item with its streams changed.

        Args:
            item: of ``sample``.
            borrowed: the streams of its partner, for the kinds that borrow.
        """
        side = dict(item.side)
        names = [self.channel] if self.channel is not None else list(side)
        for name in names:
            own = side.get(name)
            if self.kind == "removed":
                side[name] = None
            elif self.kind == "swapped":
                side[name] = borrowed.get(name)
            elif own is not None and len(own):
                side[name] = self._changed(own, sample, borrowed.get(name))
        return replace(item, side=side)

    def _changed(self, own: SideFeatures, sample: Sample, other: SideFeatures | None) -> SideFeatures:
        rng = np.random.default_rng([self.seed, *sample.id.encode()])
        value = self.value
        assert value is not None
        if self.kind == "shifted":
            return SideFeatures(own.features_KMC, own.times_K + value)
        if self.kind == "noised":
            return _noised(own, value, rng)
        if self.kind == "thinned":
            kept = np.sort(rng.permutation(len(own))[: max(1, round(len(own) * (1 - value)))])
            return _steps(own, torch.from_numpy(kept))
        if self.kind == "gap":
            return _with_gap(own, value, sample, rng)
        if self.kind == "early":
            return own if other is None else _early(own, other, value)
        times_K = own.times_K
        first = times_K[: (len(own) + 1) // 2] if self.kind == "rerated" else times_K[:0]
        dense = _denser(times_K[len(first) - 1 :] if len(first) else times_K, value)
        return _interpolated(own, torch.cat([first, dense[1:] if len(first) else dense]))


def _sources(samples: Sequence[Sample], channel: str | None) -> list[int]:
    """Per sample the number of its group: samples that share a video, or a file of a stream, are in one group, and so is whatever shares
    something with one of them."""
    groups: dict[str, int] = {}
    members: dict[int, list[str]] = {}
    for number, sample in enumerate(samples):
        keys = _keys(sample, channel)
        met = {groups[key] for key in keys if key in groups}
        group = min(met, default=number)
        for other in met - {group}:
            keys += members.pop(other)
        members.setdefault(group, []).extend(keys)
        groups |= dict.fromkeys(keys, group)
    return [groups[_keys(sample, channel)[0]] for sample in samples]


def _keys(sample: Sample, channel: str | None) -> list[str]:
    own = sample.side_channels
    streams = [path for name, path in own.items() if path is not None and channel in (None, name)]
    return [os.path.normpath(path) for path in (source_of(sample.meta, str(sample.video)), *streams)]


def _steps(features: SideFeatures, chosen: torch.Tensor) -> SideFeatures:
    return SideFeatures(features.features_KMC[chosen], features.times_K[chosen])


def _noised(own: SideFeatures, scale: float, rng: np.random.Generator) -> SideFeatures:
    spread_C = own.features_KMC.flatten(0, 1).float().std(dim=0, correction=0)
    noise = torch.from_numpy(rng.standard_normal(tuple(own.features_KMC.shape), dtype=np.float32))
    changed = own.features_KMC.float() + scale * spread_C * noise.to(spread_C.device)
    return SideFeatures(changed.to(own.features_KMC.dtype), own.times_K)


def _with_gap(own: SideFeatures, share: float, sample: Sample, rng: np.random.Generator) -> SideFeatures:
    """Starts are tried on a fine grid, in random order, until one keeps clear of the sample's events."""
    begin, end = float(own.times_K.min()), float(own.times_K.max())
    length = share * (end - begin)
    starts = rng.permutation(np.linspace(begin, end - length, 101))
    events = [(float(a), float(b)) for a, b in sample.meta.get("events", ())]
    clear = [s for s in starts if all(s + length <= a or s >= b for a, b in events)]
    start = float(clear[0] if clear else starts[0])
    outside = (own.times_K < start) | (own.times_K > start + length)
    return _steps(own, outside) if bool(outside.any()) else own


def _early(own: SideFeatures, other: SideFeatures, seconds: float) -> SideFeatures:
    """The last ``seconds`` of another stream, moved to end where the own one begins."""
    taken = _steps(other, other.times_K >= other.times_K.max() - seconds)
    gap = float(own.times_K.diff().median()) if len(own) > 1 else seconds
    times_K = taken.times_K - taken.times_K.max() + own.times_K.min() - gap
    features = torch.cat([taken.features_KMC.to(own.features_KMC), own.features_KMC])
    return SideFeatures(features, torch.cat([times_K, own.times_K]))


def _denser(times_K: torch.Tensor, factor: float) -> torch.Tensor:
    """The same span with ``factor`` times as many intervals, spaced as the given times are (at least one interval)."""
    count = max(2, round((len(times_K) - 1) * factor) + 1) if len(times_K) > 1 else 1
    place = np.linspace(0, len(times_K) - 1, count)
    return torch.from_numpy(np.interp(place, np.arange(len(times_K)), times_K.numpy(force=True)))


def _interpolated(own: SideFeatures, times_K: torch.Tensor) -> SideFeatures:
    """The stream at other times, linearly between its steps."""
    known = own.times_K.cpu()
    if bool((known.diff() <= 0).any()):
        raise ValueError("a stream whose steps do not ascend strictly in time (of several views, for one) cannot be resampled")
    after = torch.searchsorted(known, times_K).clamp(1, max(1, len(known) - 1))
    if len(known) == 1:
        return _steps(own, torch.zeros(len(times_K), dtype=torch.long))
    left, right = known[after - 1], known[after]
    weight = ((times_K - left) / (right - left)).clamp(0, 1)[:, None, None].to(own.features_KMC)
    features = torch.lerp(own.features_KMC[after - 1], own.features_KMC[after], weight)
    return SideFeatures(features, times_K)
