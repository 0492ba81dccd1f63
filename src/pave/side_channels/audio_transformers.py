"""Audio encoders of transformers: CLAP, AST and Whisper, by hub id or local path."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from pave.config import EncoderConfig
from pave.side_channels.windows import WindowedAudioEncoder

if TYPE_CHECKING:
    from typing_extensions import Self

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TransformersAudioEncoder(WindowedAudioEncoder):
    """A frozen audio model of transformers, with its own feature extractor.

    Sound shorter than a window is padded as the family's own feature extractor does it: with silence (CLAP, Whisper), or
    with zeros behind the log-mel frames (AST).

    Args:
        model: hub id or local path. A checkpoint of the whole model (with its text or decoder half) will do.
        revision: on the hub. ``spec`` gives back the commit that was loaded.
        stride_seconds: distance of windows; None puts them side by side.
        dtype: the model computes in it: float32, bfloat16 or float16. Features are float32.

    Raises:
        ValueError: if the weights cannot be loaded, are of another family, or are incomplete.
    """

    family: ClassVar[str]
    """Name among the encoders."""
    model_types: ClassVar[dict[str, str]]
    """Class of transformers that loads each ``model_type`` of a config."""
    unused_weights: ClassVar[tuple[str, ...]] = ()
    """Names of weights that a published checkpoint may lack, because they play no part in the features."""

    def __init__(self, model: str, *, revision: str | None, stride_seconds: float | None, dtype: str, **settings: Any) -> None:
        if dtype not in _DTYPES:
            raise ValueError(f"{self.family}: dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
        self.model_name = model
        self._dtype = _DTYPES[dtype]
        loaded, self._extractor, commit = self._load(model, revision)
        self.revision = commit or revision
        self._config: Any = None
        self._model = self._take_encoder(loaded).eval().requires_grad_(False)
        self._settings = {"stride_seconds": stride_seconds, "dtype": dtype, **settings}
        rate = int(self._extractor.sampling_rate)
        super().__init__(self.family, rate, *self._timing(rate), stride_seconds)

    def _load(self, model: str, revision: str | None) -> tuple[Any, Any, str | None]:
        """The model, its feature extractor, and the commit that was loaded (None for a folder)."""
        import transformers

        try:
            options = {"revision": revision, "trust_remote_code": False}  # else it asks whether to run a repository's own code
            config = transformers.AutoConfig.from_pretrained(model, **options)
            if config.model_type not in self.model_types:
                expected = " or ".join(map(repr, self.model_types))
                raise ValueError(f"{self.family}: {model!r} is a model of the type {config.model_type!r}, not {expected}")
            loader = getattr(transformers, self.model_types[config.model_type])
            loaded, info = loader.from_pretrained(model, dtype=self._dtype, output_loading_info=True, **options)
            extractor = transformers.AutoFeatureExtractor.from_pretrained(model, **options)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{self.family}: the encoder {model!r} cannot be loaded: {error}") from error
        # Weights that are not in a checkpoint are drawn at random, with a warning only.
        missing = sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"]))
        missing = [name for name in missing if name.split(".")[-1] not in self.unused_weights]
        if missing:
            raise ValueError(f"{self.family}: {model!r} lacks {len(missing)} weights of the encoder, among them {missing[0]!r}")
        return loaded, extractor, getattr(config, "_commit_hash", None)

    @abstractmethod
    def _take_encoder(self, loaded: Any) -> torch.nn.Module:
        """The audio encoder inside the loaded model."""

    @abstractmethod
    def _timing(self, rate: int) -> tuple[int, NDArray[np.float64]]:
        """Samples of a window, and the centre of each token in seconds after its beginning."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self._model.parameters()).device

    def to(self, device: torch.device | str) -> Self:
        """Move the weights; features come back on the same device."""
        self._model.to(device)
        return self

    def spec(self) -> EncoderConfig:
        """Every setting, also those left at their default, and the commit that was loaded."""
        return EncoderConfig(name=self.family, model=self.model_name, revision=self.revision, settings=dict(self._settings))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model_name!r}, revision={self.revision!r}, {self._settings})"

    def _extract(self, windows: list[NDArray[np.float32]], **options: Any) -> Any:
        return self._extractor(windows, sampling_rate=self._rate, return_tensors="pt", **options)


class ClapAudioEncoder(TransformersAudioEncoder):
    """CLAP's audio tower (HTS-AT), for example ``laion/clap-htsat-unfused``: 10 s windows at 48 kHz, 3.2 steps a second of
    width 768. One token per step (the mean over the frequency bins), or one per frequency bin.

    Args:
        model: hub id or local path.
        revision: on the hub.
        stride_seconds: distance of windows; None puts them side by side.
        keep_frequency: True keeps the frequency bins (2 in the published models) as tokens of a step.
        dtype: the model computes in it.
    """

    family = "clap"
    # ClapAudioModel given a checkpoint of the whole CLAP finds none of its weights under their names.
    model_types: ClassVar[dict[str, str]] = {"clap": "ClapModel", "clap_audio_model": "ClapAudioModel"}

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        stride_seconds: float | None = None,
        keep_frequency: bool = False,
        dtype: str = "float32",
    ) -> None:
        super().__init__(model, revision=revision, stride_seconds=stride_seconds, dtype=dtype, keep_frequency=keep_frequency)
        self._keep_frequency = keep_frequency

    def _take_encoder(self, loaded: Any) -> torch.nn.Module:
        encoder: torch.nn.Module = loaded.audio_model if hasattr(loaded, "audio_model") else loaded
        self._config = encoder.config
        return encoder

    def _timing(self, rate: int) -> tuple[int, NDArray[np.float64]]:
        # STFT frame m is centred at m hops. The F frames of a window are stretched onto P, end on end, and a token is an equal
        # share of those.
        window = int(self._extractor.nb_max_samples)
        F = window // self._extractor.hop_length + 1
        P = self._config.spec_size * (self._config.spec_size // self._config.num_mel_bins)
        W = P // (2 ** (len(self._config.depths) - 1) * self._config.patch_stride[1])
        centres = (np.arange(W) + 0.5) * (P / W) - 0.5
        return window, centres * (F - 1) / (P - 1) * self._extractor.hop_length / rate

    @property
    def width(self) -> int:
        """C."""
        return int(self._config.hidden_size)

    @property
    def tokens_per_step(self) -> int:
        """M."""
        if not self._keep_frequency:
            return 1
        config = self._config
        return int(config.num_mel_bins // (2 ** (len(config.depths) - 1) * config.patch_stride[0]))

    def _encode_windows(self, windows: list[NDArray[np.float32]]) -> Tensor:
        inputs = self._extract(windows, padding="pad")
        mel = inputs["input_features"].to(self.device, self._dtype)
        # The extractor of the fused models marks a random clip as long when none is; windows never are.
        is_longer = torch.zeros(len(windows), 1, dtype=torch.bool, device=self.device)
        encoded_BCMW = self._model(input_features=mel, is_longer=is_longer).last_hidden_state.float()
        encoded_BWMC: Tensor = encoded_BCMW.permute(0, 3, 2, 1)
        return encoded_BWMC if self._keep_frequency else encoded_BWMC.mean(dim=2, keepdim=True)


class AstAudioEncoder(TransformersAudioEncoder):
    """The Audio Spectrogram Transformer, for example ``MIT/ast-finetuned-audioset-10-10-0.4593``: 10.2 s windows at 16 kHz,
    10 steps a second of width 768. One token per step (the mean over frequency), or one per frequency patch.

    Args:
        model: hub id or local path.
        revision: on the hub.
        stride_seconds: distance of windows; None continues the grid of steps from window to window.
        keep_frequency: True keeps the frequency patches (12 in the published models) as tokens of a step.
        dtype: the model computes in it.
    """

    family = "ast"
    model_types: ClassVar[dict[str, str]] = {"audio-spectrogram-transformer": "ASTModel"}

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        stride_seconds: float | None = None,
        keep_frequency: bool = False,
        dtype: str = "float32",
    ) -> None:
        super().__init__(model, revision=revision, stride_seconds=stride_seconds, dtype=dtype, keep_frequency=keep_frequency)
        self._keep_frequency = keep_frequency

    def _take_encoder(self, loaded: Any) -> torch.nn.Module:
        self._config = loaded.config
        encoder: torch.nn.Module = loaded
        return encoder

    def _timing(self, rate: int) -> tuple[int, NDArray[np.float64]]:
        # Kaldi's frames: 25 ms every 10 ms, the first one begins with the sound. A token is a patch of frames.
        config = self._config
        frame, hop = 0.025, 0.010
        window = round((frame + (config.max_length - 1) * hop) * rate)
        W = (config.max_length - config.patch_size) // config.time_stride + 1
        first_frame = np.arange(W) * config.time_stride
        return window, (first_frame + (config.patch_size - 1) / 2) * hop + frame / 2

    @property
    def width(self) -> int:
        """C."""
        return int(self._config.hidden_size)

    @property
    def tokens_per_step(self) -> int:
        """M."""
        return self._frequency_patches if self._keep_frequency else 1

    @property
    def _frequency_patches(self) -> int:
        return int((self._config.num_mel_bins - self._config.patch_size) // self._config.frequency_stride + 1)

    def _encode_windows(self, windows: list[NDArray[np.float32]]) -> Tensor:
        frame = round(0.025 * self._rate)
        inputs = self._extract([np.pad(window, (0, max(0, frame - len(window)))) for window in windows])
        encoded_BLC = self._model(inputs["input_values"].to(self.device, self._dtype)).last_hidden_state.float()
        patches_BLC = encoded_BLC[:, 2:]  # behind the class and the distillation token, frequency-major
        patches_BMWC = patches_BLC.unflatten(1, (self._frequency_patches, len(self._times_W)))
        patches_BWMC: Tensor = patches_BMWC.transpose(1, 2)
        return patches_BWMC if self._keep_frequency else patches_BWMC.mean(dim=2, keepdim=True)


class WhisperAudioEncoder(TransformersAudioEncoder):
    """Whisper's encoder, for example ``openai/whisper-base``: 30 s windows at 16 kHz, 50 positions a second, of which
    ``pool`` neighbours are averaged. Only positions of real sound are kept of a window that is not full.

    Args:
        model: hub id or local path.
        revision: on the hub.
        stride_seconds: distance of windows; None puts them side by side.
        pool: positions per step; it must divide the positions of a window (1500). 10 gives 5 steps a second.
        dtype: the model computes in it.
    """

    family = "whisper"
    # The encoder class alone would find none of the weights of a whole checkpoint under their names.
    model_types: ClassVar[dict[str, str]] = {"whisper": "WhisperModel"}

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        stride_seconds: float | None = None,
        pool: int = 10,
        dtype: str = "float32",
    ) -> None:
        self._pool = pool
        super().__init__(model, revision=revision, stride_seconds=stride_seconds, dtype=dtype, pool=pool)

    def _take_encoder(self, loaded: Any) -> torch.nn.Module:
        self._config = loaded.config
        encoder: torch.nn.Module = loaded.encoder
        return encoder

    def _timing(self, rate: int) -> tuple[int, NDArray[np.float64]]:
        # STFT frame m is centred at m hops; two convolutions, the second with stride 2, centre position j at frame 2 j.
        positions = int(self._config.max_source_positions)
        if self._pool < 1 or positions % self._pool:
            raise ValueError(f"whisper: pool must divide the {positions} positions of a window, got {self._pool}")
        if self._extractor.nb_max_frames != 2 * positions:
            raise ValueError(
                f"whisper: {self.model_name!r} hears {2 * positions} frames but its feature extractor gives "
                f"{self._extractor.nb_max_frames}"
            )
        centres = np.arange(positions) * (2 * self._extractor.hop_length / rate)
        return int(self._extractor.n_samples), centres.reshape(-1, self._pool).mean(axis=1)

    @property
    def width(self) -> int:
        """C."""
        return int(self._config.d_model)

    @property
    def tokens_per_step(self) -> int:
        """M, always 1."""
        return 1

    def _encode_windows(self, windows: list[NDArray[np.float32]]) -> Tensor:
        mel = self._extract(windows)["input_features"].to(self.device, self._dtype)
        encoded_BLC = self._model(mel).last_hidden_state.float()
        pooled_BWC: Tensor = encoded_BLC.unflatten(1, (-1, self._pool)).mean(dim=2)
        return pooled_BWC[:, :, None]
