"""Attach, train a few steps, save, load and ask on one device, with the small base inside the package.

What has to be equal is compared bit for bit: a fresh patch and the base, a patch before and after the disk, strength 0 and the base.
What may differ between devices is compared with the CPU in float32, within a tolerance of the number format.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pave.config import EncoderConfig, PatchConfig
from pave.data.collator import PatchCollator
from pave.data.dataset import PatchDataset
from pave.data.items import PatchItem
from pave.data.media import FrameSampling
from pave.data.samples import read_samples
from pave.inference.generation import generate_texts, model_inputs
from pave.patching import attach_patch, detach_patch, load_patch, patch_parameter_groups, patch_parameters, save_patch
from pave.playground.clips import clip_name, render_clip, write_samples
from pave.playground.world import draw_scene
from pave.selfcheck.machine import difference
from pave.selfcheck.placeholders import told
from pave.side_channels import build_encoder
from pave.training import answer_loss
from pave.utils.embedded import PLAYGROUND
from pave.video_llms.loading import load_base

CLIPS = 4
STEPS = 16
CHANNEL = "audio"
TOLERANCES = {"float32": 1e-2, "bfloat16": 1e-1, "float16": 2e-2}
"""Of the largest logit, and of a loss. float32 leaves room for TensorFloat-32."""
_LEARNT = 0.5
"""What remains of the first loss after ``STEPS`` steps on the same four clips at most."""


class CheckFailed(Exception):
    """Something was computed, and it is not what it has to be. The message is for people."""


@dataclass(frozen=True)
class Check:
    """One check on one device."""

    name: str
    result: Literal["ok", "failed", "not run"]
    seen: str
    """What was measured, or what is wrong."""
    seconds: float = 0.0


@dataclass
class Outcome:
    """What a device computed, for others to be compared with."""

    logits: Tensor | None = None
    """Of the base, on the CPU in double precision."""
    losses: list[float] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    """Of the base, then of the trained patch."""


def make_items(folder: Path) -> list[PatchItem]:
    """A few clips with sound, rendered, written and read again, each with a question about its sound."""
    for index in range(CLIPS):
        render_clip(folder / clip_name("train", index), draw_scene(0, "train", index))
    write_samples(folder / "train.jsonl", "train", CLIPS, [["sound"]])
    config = _config()
    encoders = {CHANNEL: build_encoder(config.side_channels[CHANNEL].encoder)}
    samples = read_samples(folder / "train.jsonl")
    return PatchDataset(samples, FrameSampling(num_frames=8), encoders, config.side_channels).read(samples)


def _config() -> PatchConfig:
    return PatchConfig.compact(audio=build_encoder(EncoderConfig()).width)


def check_device(
    device: torch.device, dtype: str, items: Sequence[PatchItem], folder: Path, reference: Outcome | None = None
) -> tuple[list[Check], Outcome]:
    """Every check on one device.

    Args:
        device: where to.
        dtype: how the base's weights are held.
        items: of ``make_items``.
        folder: the patch is written below it.
        reference: what the CPU computed in float32; None compares nothing with it.

    Returns:
        The checks in order, and what this device computed. After an error, which is no mere difference, the rest is not run.
    """
    trial = _Trial(device, dtype, items, folder / f"patch-{device.type}-{device.index or 0}-{dtype}", reference)
    checks: list[Check] = []
    stopped = False
    for name, work in CHECKS.items():
        start = time.monotonic()
        result: Literal["ok", "failed", "not run"] = "ok"
        if stopped:
            checks.append(Check(name, "not run", "an earlier step failed"))
            continue
        try:
            seen = work(trial)
        except CheckFailed as problem:
            result, seen = "failed", str(problem)
        except Exception as error:  # of any kind: to find it is what this is for
            result, seen, stopped = "failed", told(error), True
        checks.append(Check(name, result, seen, round(time.monotonic() - start, 2)))
    return checks, trial.outcome


class _Trial:
    """One model on one device, taken from step to step."""

    model: Any
    processor: Any

    def __init__(
        self, device: torch.device, dtype: str, items: Sequence[PatchItem], folder: Path, reference: Outcome | None
    ) -> None:
        self.device, self.dtype, self.items, self.folder, self.reference = device, dtype, items, folder, reference
        self.tolerance = TOLERANCES[dtype]
        self.config = _config()
        self.outcome = Outcome()

    # --- what is computed

    def logits(self) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.model(**self.inputs()).logits
        return logits

    def inputs(self, labels: bool = False) -> dict[str, Any]:
        batch = PatchCollator(self.processor, self.model.config, self.config.side_channels)(self.items)
        inputs = model_inputs(self.model, batch)
        return {**inputs, "labels": batch["labels"].to(self.device)} if labels else inputs

    def loss(self, inputs: dict[str, Any]) -> Tensor:
        return answer_loss(self.model, self.model.get_output_embeddings(), inputs)[0]

    def texts(self, patch: bool) -> list[str]:
        collate = PatchCollator(self.processor, self.model.config, self.config.side_channels if patch else {}, train=False)
        return generate_texts(self.model, self.processor, collate(self.items), patch=patch, max_new_tokens=4)

    # --- the checks, in order

    def base_runs(self) -> str:
        model, self.processor = load_base(PLAYGROUND, dtype=self.dtype)
        self.model = model.to(self.device).eval()
        self.base_logits = self.logits()
        self.outcome.logits = self.base_logits.to("cpu", torch.float64)
        self.outcome.answers = self.texts(patch=False)
        self.weights = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        if not torch.isfinite(self.outcome.logits).all():
            raise CheckFailed("logits are not finite")
        if self.reference is None or self.reference.logits is None:
            return "logits are finite"
        off = difference(self.outcome.logits, self.reference.logits)
        return self._within(off, "logits differ", "of the largest")

    def identity(self) -> str:
        attach_patch(self.model, self.config)
        return _same(self.logits(), self.base_logits, "a fresh patch", "the base")

    def gradient(self) -> str:
        self.model.train()
        loss = self.loss(self.inputs(labels=True))
        loss.backward()
        own = {id(parameter) for parameter in patch_parameters(self.model)}
        with_gradient = [name for name, p in self.model.named_parameters() if id(p) not in own and p.grad is not None]
        if with_gradient:
            raise CheckFailed(f"{len(with_gradient)} of the base's parameters have a gradient, among them {with_gradient[0]}")
        gradients = {role: [p.grad for p in group] for role, group in patch_parameter_groups(self.model).items() if group}
        for role, found in gradients.items():
            missing = sum(gradient is None for gradient in found)
            if missing or not all(bool(torch.isfinite(gradient).all()) for gradient in found if gradient is not None):
                raise CheckFailed(f"{role}: {missing} gradients are missing, or one is not finite")
        moved = [role for role, found in gradients.items() if any(bool(g.abs().max() > 0) for g in found if g is not None)]
        if not {"output_norm", "lora"} <= set(moved):
            raise CheckFailed(f"only {', '.join(moved) or 'nothing'} has a gradient that is not zero")
        self.model.zero_grad()
        return f"none in the base; {len(own)} tensors of the patch have one"

    def training(self) -> str:
        groups = patch_parameter_groups(self.model)
        rates = {"fusion": 3e-3, "output_norm": 6e-2, "gate": 3e-3, "lora": 1e-2}
        optimizer = torch.optim.AdamW([{"params": group, "lr": rates[role]} for role, group in groups.items() if group])
        inputs = self.inputs(labels=True)
        losses = self.outcome.losses
        torch.manual_seed(0)
        for _ in range(STEPS):
            loss = self.loss(inputs)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach().to("cpu", torch.float64)))
        self.model.eval()
        base = dict(self.model.named_parameters())
        changed = [name for name, before in self.weights.items() if not _equal(base[_in_patched(name, base)], before)]
        if changed:
            raise CheckFailed(f"training changed {len(changed)} tensors of the base, among them {changed[0]}")
        told = f"loss {losses[0]:.3f} to {losses[-1]:.3f} in {STEPS} steps"
        if not losses[-1] <= _LEARNT * losses[0]:
            raise CheckFailed(f"{told}: nothing was learnt")
        if self.reference is not None and self.reference.losses:
            off = abs(losses[0] - self.reference.losses[0]) / self.reference.losses[0]
            told += "; " + self._within(off, "the first loss differs", "of it")
        return told

    def strength_zero(self) -> str:
        self.trained_logits = self.logits()
        if _equal(self.trained_logits, self.base_logits):
            raise CheckFailed("the trained patch does not change the logits")
        with self.model.patch_scaled(0.0):
            _same(self.logits(), self.base_logits, "strength 0", "the base")
        with self.model.patch_disabled():
            return _same(self.logits(), self.base_logits, "a disabled patch", "the base")

    def save_and_load(self) -> str:
        save_patch(self.model, self.folder, processor=self.processor, storage_dtype="float32")
        detach_patch(self.model)
        _same(self.logits_of_base(), self.base_logits, "the model without the patch", "the base")
        load_patch(self.model, self.folder, processor=self.processor)
        return _same(self.logits(), self.trained_logits, "the loaded patch", "the saved one")

    def logits_of_base(self) -> Tensor:
        inputs = {key: value for key, value in self.inputs().items() if key not in ("side_channels", "frame_times")}
        with torch.no_grad():
            logits: Tensor = self.model(**inputs).logits
        return logits

    def answers(self) -> str:
        base, patched = self.texts(patch=False), self.texts(patch=True)
        if base != self.outcome.answers:
            raise CheckFailed(f"without the patch the answers are {base}, those of the base {self.outcome.answers}")
        learnt = [str(item.turns[-1][1]) for item in self.items]
        self.outcome.answers = [*base, *patched]
        if patched != learnt:
            raise CheckFailed(f"answers {patched}, learnt were {learnt}")
        return f"{', '.join(patched)}; the base says {', '.join(base)}"

    def _within(self, off: float, what: str, of: str) -> str:
        told = f"{what} from the CPU's by {off:.1e} {of}"
        if not off <= self.tolerance:
            raise CheckFailed(f"{told}, more than {self.tolerance:g}")
        return told


CHECKS: dict[str, Callable[[_Trial], str]] = {
    "base runs": _Trial.base_runs,
    "identity at start": _Trial.identity,
    "gradient only in the patch": _Trial.gradient,
    "training learns": _Trial.training,
    "strength 0 is the base": _Trial.strength_zero,
    "saved and loaded": _Trial.save_and_load,
    "answers": _Trial.answers,
}


def _in_patched(name: str, parameters: dict[str, Any]) -> str:
    """The name of a base's parameter in the patched model, where LoRA wraps a layer."""
    path, _, leaf = name.rpartition(".")
    wrapped = f"{path}.base_layer.{leaf}"
    return wrapped if wrapped in parameters else name


def _equal(one: Tensor, other: Tensor) -> bool:
    return bool((one == other).all()) and one.dtype == other.dtype


def _same(found: Tensor, wanted: Tensor, this: str, that: str) -> str:
    if not _equal(found, wanted):
        off = difference(found.to("cpu", torch.float64), wanted.to("cpu", torch.float64))
        raise CheckFailed(f"{this} is not {that} bit for bit: off by {off:.1e} of the largest logit")
    return "bit for bit"
