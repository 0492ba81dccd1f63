"""A whole released model against this library: base, patch, loss and gradients, number by number.

A golden folder holds a base in the lmms-lab layout (``base/``), a patch as the authors' code saves it (``patch/``), the numbers
that their code gave for some inputs, and ``notes.json``. Sizes, prompts and the number of layers are read from the files.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pave.config import PatchConfig
from pave.patching.attach import attach_patch, detach_patch
from pave.patching.convert.base import convert_base
from pave.patching.convert.reference_fusion import reference_name
from pave.patching.convert.reference_patch import import_patch
from pave.patching.load import load_patch
from pave.patching.lookup import patch_slot
from pave.tokens import SideTokens
from pave.utils.json_files import read_json_object
from pave.video_llms import get_interface

_VIDEO, _IGNORE, _CHANNEL = -200, -100, "side"
_TOWER_SETTINGS = ("num_attention_heads", "image_size", "hidden_act", "layer_norm_eps")


@dataclass
class _Golden:
    """One folder, opened."""

    folder: Path
    notes: dict[str, Any]
    inputs: dict[str, Tensor]
    model: Any
    patch: Path
    config: PatchConfig

    def batch(self, ids: str = "input_ids", labels: str | None = None, row: int | None = None) -> dict[str, Any]:
        """The arguments of the model: every -200 becomes as many placeholders as transformers' processor would write."""
        model, images = self.model, self.inputs["images"]
        count = get_interface(model.config).layouts(model.config, {"pixel_values_videos": images})[0].num_tokens
        all_rows = self.inputs[ids].tolist()
        mask = self.inputs.get("attention_mask") if ids == "input_ids" else None
        chosen = range(len(all_rows)) if row is None else [row]
        tokens: list[list[int]] = []
        targets: list[list[int]] = []
        for number in chosen:
            length = len(all_rows[number]) if mask is None else int(mask[number].sum())
            given = self.inputs[labels][number].tolist() if labels else [_IGNORE] * length
            pairs = zip(all_rows[number][:length], given[:length], strict=True)
            spread = [
                p for t, y in pairs for p in ([(model.config.video_token_id, _IGNORE)] * count if t == _VIDEO else [(t, y)])
            ]
            tokens.append([t for t, _ in spread])
            targets.append([y for _, y in spread])
        videos = [v for v, r in enumerate(_rows_of_videos(all_rows)) if r in chosen]
        batch = {
            "input_ids": _padded(tokens, 0),
            "attention_mask": _padded([[1] * len(row) for row in tokens], 0),
            "pixel_values_videos": images[videos],
        }
        return {**batch, "labels": _padded(targets, _IGNORE)} if labels else batch

    def side(self, row: int | None = None) -> dict[str, SideTokens]:
        """The side features (B, C, K, h, w) as side tokens."""
        features = self.inputs["video_feats"].permute(0, 2, 3, 4, 1).flatten(2, 3).float()
        valid = torch.arange(features.shape[1])[None] < self.inputs["feat_frame_nums"][:, None]
        side = SideTokens(features, valid)
        if row is not None:
            rows = _rows_of_videos(self.inputs["input_ids"].tolist())
            side = side.select([v for v, r in enumerate(rows) if r == row])
        return {_CHANNEL: side}


def run_golden(folder: str | Path) -> dict[str, float]:
    """Convert the base, import the patch, and compare everything that the folder holds numbers of.

    Returns:
        By name, the largest absolute difference: one entry per tensor of ``expected_logits.safetensors`` and
        ``intermediates.safetensors``, ``train_loss``, ``train_grad_norms/PARAMETER``, and under ``greedy_continuation/...`` the
        number of other tokens. Logits at padding are not compared.

    Raises:
        ValueError: if the base or the patch cannot be read, or the folder holds a number that nothing here stands for.
    """
    with tempfile.TemporaryDirectory() as work, torch.random.fork_rng(devices=[]):
        golden = _open(Path(folder), Path(work))
        results: dict[str, float] = {}
        expected = load_file(golden.folder / "expected_logits.safetensors")
        seen = _with_base(golden, expected, results)
        load_patch(golden.model, golden.patch, name="golden")
        with_patch = _capture(golden, golden.batch(), side_channels=golden.side())
        seen |= {"logits_patch": with_patch}
        seen["logits_patch_without_side_channel"] = _capture(golden, golden.batch())
        _compare_intermediates(golden, with_patch, results)
        results |= _greedy(golden, "patch", golden.side)
        results |= _training(golden)
        with torch.no_grad():
            for key, parameter in golden.model.named_parameters():
                if ".lora_B." in key:
                    parameter.zero_()
        seen["logits_aggregator_only_no_lora"] = _capture(golden, golden.batch(), side_channels=golden.side())
        for key in expected:
            if key.startswith("logits"):
                if key not in seen:
                    raise ValueError(
                        f"{folder}/expected_logits.safetensors: nothing here computes {key}; known: {', '.join(seen)}"
                    )
                results[key] = _logits_difference(expected, key, seen[key])
    return results


def _open(folder: Path, work: Path) -> _Golden:
    from transformers import AutoModelForImageTextToText

    vision = read_json_object(folder / "vision_config.json")
    kept = vision.get("num_hidden_layers_in_checkpoint", vision["num_hidden_layers"] - 1)
    # the tower is all layers but the last; a file that holds the last one as well is read one layer earlier
    layer = -1 - (kept - (vision["num_hidden_layers"] - 1))
    given = {key: vision[key] for key in _TOWER_SETTINGS if key in vision}
    convert_base(folder / "base", work / "base", vision=given, vision_feature_layer=layer)
    arguments = folder / "aggregator_config.json"
    imported = import_patch(
        folder / "patch",
        work / "patch",
        str(work / "base"),
        channel=_CHANNEL,
        arguments=read_json_object(arguments) if arguments.is_file() else None,
    )
    model = AutoModelForImageTextToText.from_pretrained(work / "base", dtype=torch.float32).eval()
    inputs = load_file(folder / "inputs.safetensors")
    return _Golden(folder, read_json_object(folder / "notes.json"), inputs, model, imported.folder, imported.config)


def _with_base(golden: _Golden, expected: Mapping[str, Tensor], results: dict[str, float]) -> dict[str, _Seen]:
    """The base alone, with its own newline and with one behind every row."""
    rows = {key: value.shape[-1] for key, value in expected.items() if key.startswith("logits_base")}
    seen = {"logits_base_one_token": _capture(golden, golden.batch())}
    results |= _greedy(golden, "base_one_token", None, rows.get("logits_base_one_token"))
    fresh = dataclasses.replace(golden.config, newline="grid", vocabulary=None)
    attach_patch(golden.model, fresh)
    seen["logits_base_grid"] = _capture(golden, golden.batch())
    results |= _greedy(golden, "base_grid", None, rows.get("logits_base_grid"))
    detach_patch(golden.model)
    return seen


# --- one call and what is seen of it


@dataclass
class _Seen:
    """What one call computed, per row without padding."""

    logits: list[Tensor]
    embeds: list[Tensor]
    mask: Tensor
    tower: Tensor
    fusion: Tensor | None
    tokens: Tensor | None


@torch.no_grad()
def _capture(golden: _Golden, batch: Mapping[str, Any], **more: Any) -> _Seen:
    """Call the model; logits are taken at the head, because a patched model gives back those of the shorter prompt only."""
    model = golden.model
    found: dict[str, Any] = {}
    handles = [
        model.lm_head.register_forward_hook(lambda _, __, out: found.update(logits=out)),
        model.model.language_model.register_forward_pre_hook(lambda _, __, kwargs: found.update(kwargs), with_kwargs=True),
        model.model.multi_modal_projector.register_forward_pre_hook(lambda _, args: found.update(tower=args[0])),
    ]
    if more:
        fusion: Any = patch_slot(model).fusions[_CHANNEL]
        handles.append(fusion.register_forward_hook(lambda _, args, out: found.update(fusion=out, video=args[0])))
    try:
        model(**batch, **more)
    finally:
        for handle in handles:
            handle.remove()
    mask = found["attention_mask"].bool()
    video = found.get("video")
    return _Seen(
        logits=[found["logits"][row][mask[row]] for row in range(len(mask))],
        embeds=[found["inputs_embeds"][row][mask[row]] for row in range(len(mask))],
        mask=mask,
        tower=found["tower"],
        fusion=found.get("fusion"),
        tokens=None if video is None else video.post_projector_BTSE,
    )


def _logits_difference(expected: Mapping[str, Tensor], key: str, seen: _Seen) -> float:
    suffix = "_one_token" if key.endswith("_one_token") else ""
    index, valid = expected[f"position_index{suffix}"], expected[f"position_valid{suffix}"].bool()
    worst = 0.0
    for row, logits in enumerate(seen.logits):
        places = index[valid[row]]
        wanted = expected[key][row][valid[row]].float()
        if len(places) and int(places.max()) >= len(logits):
            return float("inf")  # another length of prompt
        worst = max(worst, _difference(logits[places][:, : wanted.shape[1]], wanted))
    return worst


def _compare_intermediates(golden: _Golden, seen: _Seen, results: dict[str, float]) -> None:
    path = golden.folder / "intermediates.safetensors"
    wanted = load_file(path)
    frames = golden.inputs["images"].shape[1]
    places = wanted.get("token_index_within_frame")
    tower = seen.tower.unflatten(0, (-1, frames))
    pooled = golden.model.model.apply_pooling(seen.tower).unflatten(0, (-1, frames))
    assert seen.tokens is not None and seen.fusion is not None
    per_video = {
        "query_tokens_before_mlp": pooled,
        "image_features_after_mlp": seen.tokens,
        "patch_output": seen.fusion.unflatten(1, (frames, -1)) if seen.fusion.ndim == 3 else seen.fusion,
    }
    for key, value in wanted.items():
        numbered = re.fullmatch(r"(\w+)_(\d+)", key)
        every = re.fullmatch(r"vision_tower_tokens_sample(\d+)_every(\d+)", key)
        if key in ("token_index_within_frame", "sequence_position_index"):
            continue
        if every:
            results[key] = _difference(tower[int(every[1])][:, :: int(every[2])], value)
        elif numbered and numbered[1] in per_video:
            results[key] = _difference(per_video[numbered[1]][int(numbered[2])][:, places], value)
        elif key == "inputs_embeds":
            results[key] = _embeds_difference(wanted, seen)
        elif key == "attention_mask_full":
            results[key] = _difference(seen.mask.sum(dim=1), value.sum(dim=1))
        else:
            raise ValueError(f"{path}: nothing here computes {key}")


def _embeds_difference(wanted: Mapping[str, Tensor], seen: _Seen) -> float:
    index, worst = wanted["sequence_position_index"], 0.0
    for row, embeds in enumerate(seen.embeds):
        valid = index < len(embeds)
        worst = max(worst, _difference(embeds[index[valid]], wanted["inputs_embeds"][row][valid]))
    return worst


# --- training and decoding


def _training(golden: _Golden) -> dict[str, float]:
    """Loss, and the norm of every parameter's gradient, in eval mode as in the reference."""
    if "train_input_ids" not in golden.inputs:
        return {}
    model, notes = golden.model, golden.notes
    model.zero_grad()
    loss = model(**golden.batch("train_input_ids", "train_labels"), side_channels=golden.side()).loss
    loss.backward()
    own: dict[str, Tensor] = {}
    for key, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None
        own[_reference_parameter(key)] = parameter.grad.norm()
    wanted = notes["train_grad_norms"]
    extra = sorted(set(own) - set(wanted)) + sorted(key for key, norm in wanted.items() if norm is not None and key not in own)
    if extra:
        raise ValueError(f"{golden.folder}/notes.json: train_grad_norms and the patch disagree in: {', '.join(extra[:5])}")
    results = {"train_loss": abs(float(loss.detach()) - notes["train_loss"])}
    for key, norm in wanted.items():
        results[f"train_grad_norms/{key}"] = abs(float(own.get(key, torch.zeros(()))) - (norm or 0.0))
    model.zero_grad()
    return results


def _reference_parameter(key: str) -> str:
    """The authors' name of a trainable parameter of the patched model."""
    fused = re.fullmatch(rf"pave_patches\.\w+\.fusions\.{_CHANNEL}\.(.+)", key)
    if fused:
        return f"model.temporal_aggregator.{reference_name(fused[1])}"
    return re.sub(r"\.(lora_[AB])\.\w+\.", r".\1.", key.replace("model.language_model.", "model.", 1))


def _greedy(
    golden: _Golden, key: str, side: Callable[[int], dict[str, SideTokens]] | None, rows: int | None = None
) -> dict[str, float]:
    """How many tokens of the recorded continuations come out differently."""
    recorded = golden.notes.get("greedy_continuation", {}).get(key)
    if recorded is None:
        return {}
    wrong = 0
    for row, wanted in enumerate(recorded):
        batch = golden.batch(row=row)
        more: dict[str, Any] = {} if side is None else {"side_channels": side(row)}
        if rows is not None:  # rows that were appended for placeholders are no choice
            more["suppress_tokens"] = list(range(rows, golden.model.config.get_text_config().vocab_size)) or None
        count = len(wanted["ids"])
        output = golden.model.generate(**batch, **more, max_new_tokens=count, do_sample=False, eos_token_id=None)
        new = output[0, batch["input_ids"].shape[1] :].tolist()
        wrong += sum(a != b for a, b in zip(new, wanted["ids"], strict=True))
    return {f"greedy_continuation/{key}": float(wrong)}


# --- small things


def _rows_of_videos(rows: list[list[int]]) -> list[int]:
    return [number for number, row in enumerate(rows) for token in row if token == _VIDEO]


def _padded(rows: list[list[int]], fill: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])


def _difference(got: Tensor, wanted: Tensor) -> float:
    if got.shape != wanted.shape:
        return float("inf")
    return float((got.double() - wanted.double()).abs().max()) if got.numel() else 0.0
