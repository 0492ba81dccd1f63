"""Timed text: captions and transcripts, as features without weights or through a text encoder of transformers."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, isfinite
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pave.config import EncoderConfig
from pave.side_channels.base import SideFeatures

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_STEPS = 1_000_000
"""Most steps of one text; a segment of a year cut into hundredths of a second is a mistake, and would fill the memory."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class TextSegment:
    """What is said or shown from ``start`` to ``end``.

    Raises:
        ValueError: if a time is not finite, or the end lies before the start.
    """

    start: float
    """Seconds on the video's clock."""
    end: float
    text: str
    """Plain text; empty where nothing is left of it."""

    def __post_init__(self) -> None:
        if not isfinite(self.start) or not isfinite(self.end) or self.end < self.start:
            raise ValueError(f"a segment cannot last from {self.start:g} s to {self.end:g} s")


@dataclass(frozen=True)
class TimedText:
    """Segments of text on the video's clock. They may overlap, touch or leave gaps, in any order."""

    segments: tuple[TextSegment, ...]

    def __len__(self) -> int:
        return len(self.segments)


class TextEncoder(ABC):
    """One vector for each segment, standing at one time or at several within it; subclasses make the vector.

    Args:
        step_seconds: a segment is cut into equal steps of at most this length, each centred in its part and with the vector of
            the whole segment, so that every frame within it finds one. None: one step, in the middle of the segment.
        offset_seconds: added to every time.
        encoding: of the characters in a file.

    Raises:
        ValueError: if a setting is wrong.
    """

    source: ClassVar[str] = "text"
    sample_rate: int | None = None
    name: ClassVar[str]
    """Among the encoders."""

    def __init__(self, step_seconds: float | None, offset_seconds: float, encoding: str) -> None:
        if step_seconds is not None and not 0.01 <= step_seconds < float("inf"):
            raise ValueError(f"{self.name}: step_seconds must be at least 0.01, got {step_seconds}")
        if not isfinite(offset_seconds):
            raise ValueError(f"{self.name}: offset_seconds must be finite, got {offset_seconds}")
        try:
            "".encode(encoding)
        except LookupError:
            raise ValueError(f"{self.name}: encoding {encoding!r} is unknown; use utf-8, latin-1, cp1252, ...") from None
        self._step, self._offset, self.encoding = step_seconds, offset_seconds, encoding

    @property
    @abstractmethod
    def width(self) -> int:
        """C."""

    @property
    def tokens_per_step(self) -> int:
        """M, always 1."""
        return 1

    @abstractmethod
    def _vectors(self, texts: list[str]) -> Tensor:
        """(texts, C) float32."""

    def encode(self, source: TimedText) -> SideFeatures:
        """Features of a text: (K, 1, C) float32, in the order of time. A segment without text makes no step.

        Raises:
            ValueError: if there are more than ``MAX_STEPS`` steps.
        """
        return self.encode_batch([source])[0]

    def encode_batch(self, sources: Sequence[TimedText]) -> list[SideFeatures]:
        """Features of several texts, in order."""
        return [self._encode_one(source) for source in sources]

    def _encode_one(self, source: TimedText) -> SideFeatures:
        segments = [segment for segment in source.segments if segment.text.strip()]
        places = {text: place for place, text in enumerate(dict.fromkeys(segment.text for segment in segments))}
        vectors = self._vectors(list(places))
        rows: list[int] = []
        times: list[float] = []
        for segment in segments:
            length = segment.end - segment.start
            parts = 1 if self._step is None else max(1, ceil(length / self._step - 1e-9))
            if len(rows) + parts > MAX_STEPS:
                raise ValueError(
                    f"{self.name}: with step_seconds {self._step}, the segments up to {segment.end:g} s make more than {MAX_STEPS} steps; "
                    "check the times, or set a greater step_seconds"
                )
            times += [segment.start + (i + 0.5) * length / parts + self._offset for i in range(parts)]
            rows += [places[segment.text]] * parts
        times_K = torch.tensor(times, dtype=torch.float64)
        order = torch.argsort(times_K, stable=True)
        return SideFeatures(vectors[torch.tensor(rows, dtype=torch.long)[order].to(vectors.device)][:, None], times_K[order])

    def _common_settings(self) -> dict[str, Any]:
        return {"step_seconds": self._step, "offset_seconds": self._offset, "encoding": self.encoding}


class HashedText(TextEncoder):
    """The words of a segment without weights: every word and every run of up to ``ngram`` words is counted at one place of the
    vector, with a sign; place and sign come from a hash of its letters (feature hashing, Weinberger et al., 2009).

    Words are runs of letters and digits, compared without case and compatibility forms. The vector is scaled to a root mean
    square of 1, and is 0 for text without a word. The hash is BLAKE2b of the UTF-8 bytes and does not depend on the computer.

    Args:
        width: C.
        ngram: longest run of words.
        step_seconds: None for one step in the middle of a segment, else the longest step.
        offset_seconds: added to every time.
        encoding: of the characters in a file.

    Raises:
        ValueError: if a setting is wrong.
    """

    name = "text_hash"

    def __init__(
        self,
        *,
        width: int = 256,
        ngram: int = 2,
        step_seconds: float | None = None,
        offset_seconds: float = 0.0,
        encoding: str = "utf-8",
    ) -> None:
        if width < 1 or not 1 <= ngram <= 8:
            raise ValueError(f"text_hash: width must be at least 1 and ngram from 1 to 8, got {width} and {ngram}")
        super().__init__(step_seconds, offset_seconds, encoding)
        self._width, self._ngram = width, ngram
        self._device = torch.device("cpu")

    @property
    def width(self) -> int:
        """C."""
        return self._width

    def _vectors(self, texts: list[str]) -> Tensor:
        vectors = np.zeros((len(texts), self._width))
        for vector, text in zip(vectors, texts, strict=True):
            words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
            for count in range(1, self._ngram + 1):
                for first in range(len(words) - count + 1):
                    digest = hashlib.blake2b(" ".join(words[first : first + count]).encode(), digest_size=8).digest()
                    number = int.from_bytes(digest, "little")
                    vector[(number >> 1) % self._width] += 1.0 if number & 1 else -1.0
        scale = np.sqrt((vectors**2).mean(axis=1, keepdims=True))
        return torch.from_numpy((vectors / np.where(scale > 0, scale, 1)).astype(np.float32)).to(self._device)

    def spec(self) -> EncoderConfig:
        """Every setting, also those left at their default."""
        settings = {"width": self._width, "ngram": self._ngram, **self._common_settings()}
        return EncoderConfig(name="text_hash", settings=settings)

    def to(self, device: torch.device | str) -> Self:
        """Put the features on this device."""
        self._device = torch.device(device)
        return self


class TransformersText(TextEncoder):
    """A frozen text encoder of transformers, for example ``sentence-transformers/all-MiniLM-L6-v2``: the mean of the last hidden
    states of a segment's tokens. Of a model with a decoder, the encoder.

    Args:
        model: hub id or local path.
        revision: on the hub. ``spec`` gives back the commit that was loaded.
        step_seconds: None for one step in the middle of a segment, else the longest step.
        offset_seconds: added to every time.
        encoding: of the characters in a file.
        dtype: the model computes in it: float32, bfloat16 or float16. Features are float32.

    Raises:
        ValueError: if the weights cannot be loaded or lack a part, or a setting is wrong.
    """

    name = "text_transformers"
    batch_size: int = 16
    """Texts that go through the model at once."""

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        step_seconds: float | None = None,
        offset_seconds: float = 0.0,
        encoding: str = "utf-8",
        dtype: str = "float32",
    ) -> None:
        super().__init__(step_seconds, offset_seconds, encoding)
        if dtype not in _DTYPES:
            raise ValueError(f"text_transformers: dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
        self.model_name, self._dtype = model, dtype
        loaded, self._tokenizer, commit = self._load(model, revision)
        self.revision = commit or revision
        self._model = loaded.eval().requires_grad_(False)
        limits = [self._tokenizer.model_max_length, getattr(loaded.config, "max_position_embeddings", None) or 10**9]
        self._longest = min(limits)

    def _load(self, model: str, revision: str | None) -> tuple[Any, Any, str | None]:
        import transformers

        try:
            config = transformers.AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
            tokenizer = transformers.AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)
            loaded, info = transformers.AutoModel.from_pretrained(
                model, revision=revision, dtype=_DTYPES[self._dtype], output_loading_info=True, trust_remote_code=False
            )
        except OSError as error:
            raise ValueError(f"text_transformers: the encoder {model!r} cannot be loaded: {error}") from error
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"text_transformers: {model!r} is no text encoder that transformers knows: {reason}") from error
        if config.is_encoder_decoder:
            loaded = loaded.get_encoder()
        if not hasattr(config, "hidden_size") or loaded.main_input_name != "input_ids":
            raise ValueError(f"text_transformers: {model!r} ({config.model_type}) is no model of text alone")
        if tokenizer.pad_token is None:
            raise ValueError(f"text_transformers: the tokenizer of {model!r} has no padding token")
        # A pooler stands behind the hidden states that are used; checkpoints of language models lack it.
        missing = [name for name in sorted(info["missing_keys"]) if "pooler." not in name] + sorted(
            map(str, info["mismatched_keys"])
        )
        if missing:
            raise ValueError(f"text_transformers: {model!r} lacks {len(missing)} weights, among them {missing[0]!r}")
        return loaded, tokenizer, getattr(config, "_commit_hash", None)

    @property
    def width(self) -> int:
        """C."""
        return int(self._model.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self._model.parameters()).device

    def _vectors(self, texts: list[str]) -> Tensor:
        vectors = [torch.zeros(0, self.width, device=self.device)]
        for first in range(0, len(texts), self.batch_size):
            inputs = self._tokenizer(texts[first : first + self.batch_size], padding=True, return_tensors="pt")
            mask_BL = inputs["attention_mask"].to(self.device)
            longest = int(mask_BL.sum(dim=1).max())
            if longest > self._longest:
                raise ValueError(
                    f"text_transformers: a segment has {longest} tokens but {self.model_name!r} reads {self._longest}; cut the segments "
                    "of the file into shorter ones"
                )
            with torch.no_grad():
                hidden_BLC = self._model(
                    input_ids=inputs["input_ids"].to(self.device), attention_mask=mask_BL
                ).last_hidden_state.float()
            weight_BL1 = mask_BL[..., None].to(hidden_BLC.dtype)
            vectors.append((hidden_BLC * weight_BL1).sum(dim=1) / weight_BL1.sum(dim=1).clamp(min=1))
        return torch.cat(vectors)

    def spec(self) -> EncoderConfig:
        """Every setting, also those left at their default, and the commit that was loaded."""
        settings = {**self._common_settings(), "dtype": self._dtype}
        return EncoderConfig(name="text_transformers", model=self.model_name, revision=self.revision, settings=settings)

    def to(self, device: torch.device | str) -> Self:
        """Move the weights; features come back on the same device."""
        self._model.to(device)
        return self
