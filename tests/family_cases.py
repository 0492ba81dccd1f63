"""Every type of Video LLM as data: how its tiny base is built, what its processor makes of two videos, where the base itself fails."""

from __future__ import annotations

import copy
import functools
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from packaging.version import Version

import tiny_families as near
import tiny_families_more as far
from cases import shake, small_config
from pave import PatchConfig, attach_patch
from pave.data.collator import PatchCollator, video_metadata
from pave.data.items import PatchItem
from pave.video_llms import VideoLLMInterface, get_interface
from tiny_models import tiny_llava_onevision, tiny_qwen2_5_vl

FIRST, GAP = 0.3, 0.7
"""Seconds of the first frame and between frames in all videos here."""
SIZE = (32, 48)
"""Height and width of their frames."""
QUESTIONS = ("what sound?", "which object?")
ANSWERS = ("a red bell", "one dog")


@dataclass(frozen=True)
class FamilyCase:
    """One type of base."""

    build: Callable[[], tuple[Any, Any]]
    grid: tuple[int, int]
    """Rows and columns of tokens that a frame becomes."""
    frames: tuple[int, int] = (4, 6)
    """Frames of the two videos of a batch; equal where the base's processor stacks videos."""
    merges: int = 1
    """Frames per time step."""
    trailing: int = 0
    leading: int = 0
    stamp: str | None = None
    """Pattern of the time that the processor writes beside each step: seconds, or minutes and seconds."""
    stamped: str = "mean"
    """Which time that is: the mean over a step's frames, or that of its first frame."""
    stamp_error: float = 0.051
    """How far the written time may be from the true one, because it is rounded."""
    seconds_per_step: str | None = None
    """Input of the base that holds the mean seconds between steps."""
    since: str = "5.20"
    """The first version of transformers that this case was tried with; before it the base or its processor is missing or another."""
    packages: tuple[str, ...] = ()
    """What transformers needs to run this base beyond what the library needs."""
    limits: dict[str, tuple[str, str]] = field(default_factory=dict)
    """What the *base* cannot do: the reason, and a pattern of the error that the suite sees the base raise without a patch."""
    prepare: Callable[..., dict[str, Any]] | None = None
    """Makes a batch where the library's collator cannot."""
    tolerance: float = 3e-5
    """Between a batch and its rows one by one."""

    def missing(self) -> str | None:
        """What keeps the case from being run here."""
        if Version(transformers.__version__) < Version(self.since):
            return f"transformers {self.since}"
        return next((name for name in self.packages if importlib.util.find_spec(name) is None), None)


def make_video(frames: int, seed: int) -> np.ndarray:
    """(frames, height, width, 3) of coloured blocks."""
    small = np.random.default_rng(seed).integers(0, 256, (frames, 4, 6, 3), dtype=np.uint8)
    return small.repeat(SIZE[0] // 4, axis=1).repeat(SIZE[1] // 6, axis=2)


def make_times(frames: int) -> np.ndarray:
    return FIRST + GAP * np.arange(frames)


@dataclass
class Family:
    """A case brought to life. The base is shared by a module's tests and never changed; ``patched`` hands out copies."""

    name: str
    case: FamilyCase
    base: Any
    processor: Any

    @functools.cached_property
    def interface(self) -> VideoLLMInterface:
        return get_interface(self.base.config)

    def config(self, **settings: Any) -> PatchConfig:
        return small_config(**{"targets": ("q_proj", "v_proj"), **settings})

    def patched(self, config: PatchConfig | None = None, trained: bool = True) -> Any:
        """A copy of the base with a patch, shaken unless ``trained`` is False."""
        model = attach_patch(copy.deepcopy(self.base), config or self.config())
        return shake(model) if trained else model

    @functools.cached_property
    def trained(self) -> Any:
        """One patched copy for tests that leave it as it is."""
        return self.patched()

    def batch(
        self, videos: Sequence[np.ndarray] | None = None, answers: bool = False, rows: Sequence[int] = (0, 1)
    ) -> dict[str, Any]:
        """What the library's collator makes of the videos, each with the question of its row, with ``frame_times``."""
        videos = [make_video(self.case.frames[row], row) for row in rows] if videos is None else videos
        if self.case.prepare is not None:
            return self.case.prepare(self, videos, answers, rows)
        items = [
            PatchItem(str(row), v, make_times(len(v)), ((QUESTIONS[row], ANSWERS[row] if answers else None),))
            for row, v in zip(rows, videos, strict=True)
        ]
        batch = PatchCollator(self.processor, self.base.config, {}, train=answers)(items)
        del batch["side_channels"]
        return batch

    @functools.cached_property
    def inputs(self) -> dict[str, Any]:
        """The batch of the case's two videos without ``frame_times``: what the base takes."""
        return {k: v for k, v in self.batch().items() if k != "frame_times"}

    @functools.cached_property
    def times(self) -> np.ndarray:
        return self.batch()["frame_times"]

    @functools.cached_property
    def logits(self) -> torch.Tensor:
        """Of the base on ``inputs``."""
        with torch.no_grad():
            return self.base(**self.inputs).logits

    def prompt(self, contents: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """A batch of prompts out of videos (4-D arrays), images (3-D arrays) and texts, in this order, through the processor."""
        kinds = {4: "video", 3: "image", 0: "text"}
        messages = []
        for row in contents:
            parts = [{"type": kinds[np.ndim(part)], **({"text": part} if isinstance(part, str) else {})} for part in row]
            messages.append([{"role": "user", "content": parts}])
        videos = [part for row in contents for part in row if np.ndim(part) == 4]
        images = [[part for part in row if np.ndim(part) == 3] for row in contents]
        given = {
            "videos": videos,
            "video_metadata": [video_metadata(make_times(len(v)), SIZE) for v in videos],
            "do_sample_frames": False,
            "images": images,
        }
        if not any(images):
            del given["images"]
        texts = [self.processor.apply_chat_template(m, add_generation_prompt=True, tokenize=False) for m in messages]
        return dict(self.processor(text=texts, padding=True, padding_side="left", return_tensors="pt", **given))


def build_family(name: str) -> Family:
    case = FAMILY_CASES[name]
    base, processor = case.build()
    assert base.config.model_type == name
    return Family(name, case, base.requires_grad_(False), processor)


def _instructblip_batch(family: Family, videos: Sequence[np.ndarray], answers: bool, rows: Sequence[int]) -> dict[str, Any]:
    """Its processor has a call of its own: the videos as ``images``, no chat template, video tokens before the text."""
    texts = [QUESTIONS[row] + (" " + ANSWERS[row] if answers else "") for row in rows]
    side = "right" if answers else "left"
    for tokenizer in (family.processor.tokenizer, family.processor.qformer_tokenizer):
        tokenizer.padding_side = side
    batch = dict(family.processor(images=list(videos), text=texts, padding=True, return_tensors="pt"))
    if answers:
        batch["labels"] = torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)
        batch["labels"][:, :-6] = -100
    return {**batch, "frame_times": np.stack([make_times(len(v)) for v in videos])}


SECONDS = r"<(\d+\.\d) seconds>"
_PAIRS: dict[str, Any] = {"grid": (2, 3), "merges": 2}
_STAMPED: dict[str, Any] = {**_PAIRS, "stamp": SECONDS}
_STACKED: dict[str, Any] = {"grid": (2, 2), "frames": (4, 4)}

_GLM_LIMITS = {
    "images": ("one placeholder serves images and videos, and the base counts all of them for either", "tokens do not match"),
    "beams": ("it splits the encoder's output by a placeholder that videos do not use", "non-empty list"),
}

FAMILY_CASES: dict[str, FamilyCase] = {
    "llava_onevision": FamilyCase(tiny_llava_onevision, trailing=1, **_STACKED),
    "llava_next_video": FamilyCase(far.tiny_llava_next_video, **_STACKED),
    "video_llava": FamilyCase(far.tiny_video_llava, leading=1, **_STACKED),
    "qwen2_vl": FamilyCase(near.tiny_qwen2_vl, **_PAIRS),
    "qwen2_5_vl": FamilyCase(tiny_qwen2_5_vl, seconds_per_step="second_per_grid_ts", **_PAIRS),
    "qwen3_vl": FamilyCase(near.tiny_qwen3_vl, **_STAMPED),
    "qwen3_vl_moe": FamilyCase(near.tiny_qwen3_vl_moe, **_STAMPED),
    "qwen3_5": FamilyCase(near.tiny_qwen3_5, **_STAMPED),
    "qwen3_5_moe": FamilyCase(near.tiny_qwen3_5_moe, **_STAMPED),
    "qwen2_5_omni_thinker": FamilyCase(
        near.tiny_qwen2_5_omni, since="5.23", seconds_per_step="video_second_per_grid", **_PAIRS
    ),
    "qwen3_omni_moe_thinker": FamilyCase(
        near.tiny_qwen3_omni, since="5.23", seconds_per_step="video_second_per_grid", **_PAIRS
    ),
    "internvl": FamilyCase(far.tiny_internvl, **_STACKED),
    "smolvlm": FamilyCase(
        far.tiny_smolvlm,
        since="5.23",
        grid=(2, 2),
        stamp=r"Frame from (\d+):(\d+):",
        stamp_error=1.0,
        packages=("num2words",),
        limits={
            "images": ("its processor drops the image where there is a video", "tokens do not match"),
            "prompt": ("its processor writes the frame count of the batch's longest video into every prompt", ""),
        },
    ),
    "video_llama_3": FamilyCase(far.tiny_video_llama_3, grid=(2, 3), stamp=r"Time (\d+\.\d)s:"),
    "glm4v": FamilyCase(
        near.tiny_glm4v, stamp=r"<\|end_of_image\|>(\d+)", stamped="first", stamp_error=1.0, limits=_GLM_LIMITS, **_PAIRS
    ),
    "glm46v": FamilyCase(near.tiny_glm46v, stamp=r"(\d+\.\d) seconds", stamped="first", limits=_GLM_LIMITS, **_PAIRS),
    "glm4v_moe": FamilyCase(
        near.tiny_glm4v_moe, stamp=r"<\|end_of_image\|>(\d+)", stamped="first", stamp_error=1.0, limits=_GLM_LIMITS, **_PAIRS
    ),
    "perception_lm": FamilyCase(far.tiny_perception_lm, packages=("timm",), **_STACKED),
    "instructblipvideo": FamilyCase(
        far.tiny_instructblipvideo,
        grid=(1, 4),
        frames=(4, 4),
        prepare=_instructblip_batch,
        limits={
            "text": ("it takes no prompt without a video", "missing 2 required"),
            "several videos": ("its processor takes one video per prompt", "chat template"),
            "images": ("it takes videos only", "chat template"),
        },
    ),
    "gemma4": FamilyCase(far.tiny_gemma4, since="5.23", grid=(6, 10), stamp=r"(\d+):(\d+) ", stamp_error=1.0),
    "minicpmv4_6": FamilyCase(far.tiny_minicpmv4_6, since="5.23", grid=(2, 2)),
    "molmo2": FamilyCase(
        far.tiny_molmo2,
        grid=(2, 2),
        stamp=r"(\d+\.\d) <frame_start>",
        limits={
            "several videos": ("its processor takes one video per prompt", "At most one video"),
            "images": ("it takes images or a video, not both", "at the same time"),
        },
    ),
    "ernie4_5_vl_moe": FamilyCase(
        near.tiny_ernie4_5_vl,
        limits={"no cache": ("its expert routing keeps the length of the prompt", "shape of the mask")},
        **_PAIRS,
    ),
    "exaone4_5": FamilyCase(near.tiny_exaone4_5, **_PAIRS),
    "lfm3_vl": FamilyCase(near.tiny_lfm3_vl, since="5.23", **_STAMPED),
}
