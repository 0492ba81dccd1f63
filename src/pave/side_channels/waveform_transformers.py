"""Audio encoders of transformers that hear the samples themselves, at any length: wav2vec 2.0 and its kin, PE audio."""

from __future__ import annotations

from abc import abstractmethod
from math import ceil
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pave.side_channels.audio_transformers import TransformersAudioEncoder


class WaveformAudioEncoder(TransformersAudioEncoder):
    """A model whose positions each hear ``field`` samples, ``hop`` samples apart, of which ``pool`` neighbours are averaged.

    Sound goes through it in windows of about ``window_seconds`` (a whole number of steps). Sound shorter than a window is not
    filled up to one: only the last step is, with zeros. Windows of one length go through the model together.

    Args:
        model: hub id or local path.
        revision: on the hub.
        stride_seconds: distance of windows; None continues the grid of steps from window to window.
        window_seconds: what the model hears at a time, rounded to whole steps.
        pool: positions per step.
        dtype: the model computes in it.

    Raises:
        ValueError: if a setting is out of range, or the weights cannot be loaded.
    """

    def __init__(
        self,
        model: str,
        *,
        revision: str | None,
        stride_seconds: float | None,
        window_seconds: float,
        pool: int,
        dtype: str,
        **settings: Any,
    ) -> None:
        if pool < 1:
            raise ValueError(f"{self.family}: pool must be at least 1, got {pool}")
        if not 0 < window_seconds <= 120:
            raise ValueError(f"{self.family}: window_seconds must be above 0 and at most 120, got {window_seconds}")
        self._pool, self._window_seconds = pool, window_seconds
        settings = {"window_seconds": window_seconds, "pool": pool, **settings}
        super().__init__(model, revision=revision, stride_seconds=stride_seconds, dtype=dtype, **settings)

    @abstractmethod
    def _hop_and_field(self) -> tuple[int, int]:
        """Samples between positions, and samples that a position hears."""

    @abstractmethod
    def _hidden(self, samples_BL: Tensor) -> Tensor:
        """(B, positions, C) of pieces of one length."""

    def _timing(self, rate: int) -> tuple[int, NDArray[np.float64]]:
        hop, field = self._hop_and_field()
        positions = self._pool * max(1, round(self._window_seconds * rate / (hop * self._pool)))
        centres = (np.arange(positions) * hop + (field - 1) / 2) / rate
        return (positions - 1) * hop + field, centres.reshape(-1, self._pool).mean(axis=1)

    @property
    def width(self) -> int:
        """C."""
        return int(self._config.hidden_size)

    @property
    def tokens_per_step(self) -> int:
        """M, always 1."""
        return 1

    def _encode_windows(self, windows: list[NDArray[np.float32]]) -> Tensor:
        steps = len(self._times_W)
        encoded_BWC = torch.zeros(len(windows), steps, self.width, device=self.device)
        by_length: dict[int, list[int]] = {}
        for number, window in enumerate(windows):
            by_length.setdefault(self._steps_of(len(window)), []).append(number)
        for count, numbers in by_length.items():
            pieces = np.stack([self._prepare(windows[number], count) for number in numbers])
            hidden_BLC = self._hidden(torch.from_numpy(pieces).to(self.device, self._dtype)).float()
            encoded_BWC[numbers, :count] = hidden_BLC.unflatten(1, (count, self._pool)).mean(dim=2)
        return encoded_BWC[:, :, None]

    def _steps_of(self, samples: int) -> int:
        """Steps that it takes to hear all of a piece."""
        hop, field = self._hop_and_field()
        positions = 1 + max(0, ceil((samples - field) / hop))
        centred = int((self._times_W * self._rate < samples).sum())
        return min(len(self._times_W), max(centred, ceil(positions / self._pool)))

    def _prepare(self, window: NDArray[np.float32], steps: int) -> NDArray[np.float32]:
        """The samples as the model takes them, of exactly the length that gives this many steps."""
        hop, field = self._hop_and_field()
        length = (steps * self._pool - 1) * hop + field
        samples = self._normalised(window)
        return np.pad(samples, (0, length - len(samples)))

    def _normalised(self, window: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the family's feature extractor does to the scale of the samples."""
        return window


class SpeechAudioEncoder(WaveformAudioEncoder):
    """wav2vec 2.0, HuBERT or WavLM, for example ``microsoft/wavlm-base-plus``: 50 positions a second at 16 kHz. Each window is
    scaled to mean 0 and variance 1 where the model's feature extractor says so.

    Args:
        model: hub id or local path.
        revision: on the hub.
        stride_seconds: distance of windows; None continues the grid of steps from window to window.
        window_seconds: what the model hears at a time, rounded to whole steps.
        pool: positions per step; 10 gives 5 steps a second.
        layer: None takes the last hidden states; n those behind layer n (0: before the first).
        dtype: the model computes in it.
    """

    family = "speech"
    model_types: ClassVar[dict[str, str]] = {"wav2vec2": "Wav2Vec2Model", "hubert": "HubertModel", "wavlm": "WavLMModel"}
    unused_weights = ("masked_spec_embed",)  # stands for masked positions in training; fine-tuned checkpoints leave it out

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        stride_seconds: float | None = None,
        window_seconds: float = 10.0,
        pool: int = 10,
        layer: int | None = None,
        dtype: str = "float32",
    ) -> None:
        self._layer = layer
        super().__init__(
            model,
            revision=revision,
            stride_seconds=stride_seconds,
            window_seconds=window_seconds,
            pool=pool,
            dtype=dtype,
            layer=layer,
        )

    def _take_encoder(self, loaded: Any) -> torch.nn.Module:
        self._config = loaded.config
        layers = self._config.num_hidden_layers
        if self._layer is not None and not 0 <= self._layer <= layers:
            raise ValueError(f"speech: layer must be from 0 to {layers} for {self.model_name!r}, got {self._layer}")
        encoder: torch.nn.Module = loaded
        return encoder

    def _hop_and_field(self) -> tuple[int, int]:
        hop, field = 1, 1
        for kernel, stride in zip(self._config.conv_kernel, self._config.conv_stride, strict=True):
            field += (kernel - 1) * hop
            hop *= stride
        return hop, field

    def _normalised(self, window: NDArray[np.float32]) -> NDArray[np.float32]:
        values: NDArray[np.float32] = self._extract([window])["input_values"][0].numpy()
        return values

    def _hidden(self, samples_BL: Tensor) -> Tensor:
        out = self._model(samples_BL, output_hidden_states=self._layer is not None)
        hidden_BLC: Tensor = out.last_hidden_state if self._layer is None else out.hidden_states[self._layer]
        return hidden_BLC


class PeAudioEncoder(WaveformAudioEncoder):
    """The audio encoder of the Perception Encoder for audio and video: 25 positions a second at 48 kHz.

    Args:
        model: hub id or local path.
        revision: on the hub.
        stride_seconds: distance of windows; None puts them side by side.
        window_seconds: what the model hears at a time, rounded to whole steps.
        pool: positions per step; 5 gives 5 steps a second.
        dtype: the model computes in it.
    """

    family = "pe_audio"
    model_types: ClassVar[dict[str, str]] = {"pe_audio": "PeAudioModel", "pe_audio_encoder": "PeAudioEncoder"}

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        stride_seconds: float | None = None,
        window_seconds: float = 10.0,
        pool: int = 5,
        dtype: str = "float32",
    ) -> None:
        super().__init__(
            model, revision=revision, stride_seconds=stride_seconds, window_seconds=window_seconds, pool=pool, dtype=dtype
        )

    def _take_encoder(self, loaded: Any) -> torch.nn.Module:
        encoder: torch.nn.Module = loaded.audio_encoder if hasattr(loaded, "audio_encoder") else loaded
        self._config = encoder.config
        return encoder

    def _hop_and_field(self) -> tuple[int, int]:
        # Every convolution that strides by s has a kernel of 2 s padded by s / 2 on either side: a position is centred in its hop.
        hop = int(np.prod(self._config.dac_config.downsampling_ratios))
        return hop, hop

    def _hidden(self, samples_BL: Tensor) -> Tensor:
        hidden_BLC: Tensor = self._model(input_values=samples_BL[:, None]).last_hidden_state
        return hidden_BLC
