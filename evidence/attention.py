"""Where a trained patch looks on a test clip, and how much of that is on the event it is asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evidence.bases import folder_of
from evidence.features import store_of
from evidence.runs import DTYPE, FRAMES, Run
from pave.config import EncoderConfig
from pave.data.items import PatchItem
from pave.data.samples import Sample
from pave.evaluation.examples import attention_maps
from pave.evaluation.inference import VideoQA
from pave.side_channels import SideFeatures
from pave.side_channels.frames_pixels import VALUES_PER_CELL
from pave.utils.files import atomic_write_json, read_json

_SUMMARY = "attention.json"


@dataclass(frozen=True, eq=False)
class Look:
    """One clip as a patch saw it."""

    sample: Sample
    item: PatchItem
    channel: str
    weight_LTNSKM: NDArray[np.float64]
    """By layer, frame, head, video token, side step and side token; see ``attention_maps``."""
    encoder: EncoderConfig

    @property
    def _side(self) -> SideFeatures:
        features = self.item.side[self.channel]
        assert features is not None
        return features

    @property
    def times_K(self) -> NDArray[np.float64]:
        """Seconds of the side steps."""
        return np.asarray(self._side.times_K.numpy())

    @property
    def features_KMC(self) -> NDArray[np.float64]:
        """What the encoder gave."""
        return np.asarray(self._side.features_KMC.double().numpy())

    @property
    def events(self) -> list[tuple[float, float]]:
        """Start and end in seconds of what happens in the channel."""
        return [(float(start), float(end)) for start, end in self.sample.meta.get("events", ())]

    @property
    def in_reach_TK(self) -> NDArray[np.bool_]:
        """The side steps that each frame may attend to: those with a weight, as a softmax is nowhere zero."""
        return np.asarray((self.weight_LTNSKM > 0).any(axis=(0, 2, 3, 5)))

    @property
    def on_event_K(self) -> NDArray[np.bool_]:
        """The side steps whose time lies in an event; for an event between two steps the one nearest to its middle."""
        times_K, any_K = self.times_K, np.zeros(len(self.times_K), dtype=bool)
        for start, end in self.events:
            inside_K = (times_K >= start - 1e-6) & (times_K < end - 1e-6)
            if not inside_K.any():
                inside_K[np.abs(times_K - (start + end) / 2).argmin()] = True
            any_K |= inside_K
        return any_K

    def mean_LTK(self) -> NDArray[np.float64]:
        """Weight of each frame on each step: the mean over heads and video tokens, the sum over the step's tokens."""
        mean: NDArray[np.float64] = self.weight_LTNSKM.sum(axis=-1).mean(axis=(2, 3))
        return mean

    @property
    def chosen_frame(self) -> int:
        """The nearest in time of the frames that may attend to the first step of the first event; the middle one
        where there is none."""
        T, times_F = len(self.in_reach_TK), self.item.times_F
        if self.events:
            first = int(self.on_event_K.nonzero()[0][0])
            frames = self.in_reach_TK[:, first].nonzero()[0]
            if len(frames):
                far = np.abs(times_F[frames * len(times_F) // T] - self.times_K[first])
                return int(frames[far.argmin()])
        return T // 2

    def pictures_KHWC(self) -> NDArray[np.uint8] | None:
        """The steps as the encoder sees them, a pixel for each cell; None for encoders that see no pixels."""
        settings = _pixel_settings(self.encoder)
        if settings is None:
            return None
        g, d = settings
        cells_KMC = self.features_KMC[..., : VALUES_PER_CELL * d * d]
        rgb = cells_KMC.reshape(len(cells_KMC), g, g, d, d, VALUES_PER_CELL)[..., :3]
        whole = rgb.transpose(0, 1, 3, 2, 4, 5).reshape(len(rgb), g * d, g * d, 3)
        picture: NDArray[np.uint8] = np.clip((whole + 1) * 127.5, 0, 255).round().astype(np.uint8)
        return picture


def _pixel_settings(encoder: EncoderConfig) -> tuple[int, int] | None:
    """Grid and detail of the coarse pixels inside an encoder."""
    if encoder.name == "frames_pixels":
        return int(encoder.settings["grid"]), int(encoder.settings["detail"])
    inner = encoder.settings.get("encoder")
    return _pixel_settings(EncoderConfig.from_dict(inner)) if isinstance(inner, dict) else None


class Looker:
    """The trained patch of a run.

    Args:
        run: finished, with one side channel.
        root: folder of all runs.
        stored: samples that will be looked at without their frames; their features are read from the store.
    """

    def __init__(self, run: Run, root: Path, stored: Sequence[Sample] = ()) -> None:
        assert run.patch is not None
        torch.set_num_threads(1)  # as in the runs
        ((self.channel, config),) = run.patch.side_channels.items()
        self.encoder = config.encoder
        base, patch = folder_of(run.base, root), run.folder(root) / "patch"
        self.qa = VideoQA.from_pretrained(base, patch, device="cpu", dtype=DTYPE, sampling=FRAMES)
        if stored:
            self.qa.use_store(store_of(root), stored, vision="exact")

    def look(self, sample: Sample) -> Look:
        """What the patch attends to on the clip of a sample.

        Raises:
            ValueError: if the clip cannot be read.
        """
        item = next(iter(self.qa.items([sample])))
        if isinstance(item, ValueError):
            raise item
        return Look(sample, item, self.channel, attention_maps(self.qa, item)[self.channel], self.encoder)


@dataclass(frozen=True)
class OnEvent:
    """How much of the attention lies on the event."""

    clips: int
    """Those with a frame that may attend to steps of the event and to others."""
    even: float
    """The share of the event's steps among those in reach: what even attention would give."""
    layers: tuple[float, ...]
    """The share of the attention on them."""
    tokens: tuple[tuple[float, ...], ...]
    """By layer, how that share is divided among the tokens of a step; sums to 1."""


def on_event(look: Look) -> OnEvent | None:
    """For one clip the mean over the frames that may attend to steps of the event and to others; None without such."""
    on_K, reach_TK = look.on_event_K, look.in_reach_TK
    event_T = (reach_TK & on_K).sum(axis=1)
    mixed_T = (event_T > 0) & (event_T < reach_TK.sum(axis=1))
    if not mixed_T.any():
        return None
    weight_LTM = look.weight_LTNSKM.mean(axis=(2, 3))[:, mixed_T][:, :, on_K].sum(axis=2)
    even_T = event_T[mixed_T] / reach_TK.sum(axis=1)[mixed_T]
    mean_LM = weight_LTM.mean(axis=1)
    layers = mean_LM.sum(axis=1)
    return OnEvent(1, float(even_T.mean()), _tuple(layers), tuple(_tuple(row) for row in mean_LM / layers[:, None]))


def _tuple(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def summary(run: Run, samples: Sequence[Sample], root: Path) -> OnEvent:
    """The mean of ``on_event`` over the clips; written to the run's folder, and read from there the next time.

    Args:
        run: finished.
        samples: one for each clip.
        root: folder of all runs.

    Raises:
        ValueError: if no clip has a frame that may attend to steps of an event and to others.
    """
    file = run.folder(root) / _SUMMARY
    asked = [sample.id for sample in samples]
    known: dict[str, Any] = read_json(file) if file.exists() else {}
    if known.get("samples") != asked or "tokens" not in known:
        looker = Looker(run, root, samples)
        rows = [row for row in (on_event(looker.look(sample)) for sample in samples) if row is not None]
        if not rows:
            raise ValueError(
                f"{run.folder(root)}: no test clip has an event beside other steps in the reach of a frame"
            )
        known = {
            "samples": asked,
            "clips": len(rows),
            "even": float(np.mean([row.even for row in rows])),
            "layers": np.mean([row.layers for row in rows], axis=0).tolist(),
            "tokens": np.mean([row.tokens for row in rows], axis=0).tolist(),
        }
        atomic_write_json(file, known)
    tokens = tuple(tuple(row) for row in known["tokens"])
    return OnEvent(known["clips"], known["even"], tuple(known["layers"]), tokens)
