"""A whole released model, from files to logits, loss and gradients, against numbers of the authors' released implementation."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pave.patching.convert import run_golden

MODELS = sorted((Path(__file__).parents[1] / "golden").glob("whole_model_*"))


def outside_tolerance(folder: Path, results: dict[str, float]) -> list[str]:
    """Names whose difference is larger than the folder's notes allow, strictly: the relative part counts for gradients only."""
    notes = json.loads((folder / "notes.json").read_text())
    tolerance = notes["suggested_tolerance"]
    allowed = dict.fromkeys(results, tolerance["atol"])
    allowed |= {key: 0.0 for key in results if key.startswith("greedy_continuation/")}
    allowed["train_loss"] = tolerance["train_loss_atol"]
    for key, norm in notes["train_grad_norms"].items():
        allowed[f"train_grad_norms/{key}"] = tolerance["grad_norm_rtol"] * (norm or 0.0)
    return [key for key, difference in results.items() if not difference <= allowed[key]]


def test_models_are_there():
    assert MODELS


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_equals_the_released_implementation(folder):
    results = run_golden(folder)
    notes = json.loads((folder / "notes.json").read_text())
    wanted = {key for key in load_file(folder / "expected_logits.safetensors") if key.startswith("logits")}
    wanted |= set(load_file(folder / "intermediates.safetensors")) - {"token_index_within_frame", "sequence_position_index"}
    wanted |= {f"train_grad_norms/{key}" for key in notes["train_grad_norms"]} | {"train_loss"}
    wanted |= {f"greedy_continuation/{key}" for key in notes["greedy_continuation"]}
    assert set(results) == wanted
    assert outside_tolerance(folder, results) == []


def _edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


CHANGES = {
    "one newline per video": (lambda f: _edit_json(f / "patch/config.json", mm_newline_position="one_token"), "logits_patch"),
    "another scale of LoRA": (
        lambda f: _edit_json(f / "patch/adapter_config.json", lora_alpha=17),
        "logits_patch_without_side_channel",
    ),
    "two attention heads": (
        lambda f: _edit_json(f / "aggregator_config.json", num_cross_attn_head=2),
        "logits_aggregator_only_no_lora",
    ),
    "other vision heads": (lambda f: _edit_json(f / "vision_config.json", num_attention_heads=3), "logits_base_one_token"),
    "another rotary base": (lambda f: _edit_json(f / "base/config.json", rope_theta=1e4), "logits_base_grid"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_setting_matters(change, tmp_path):
    """The comparison sees what it should: one wrong setting is far outside the tolerance."""
    folder = Path(shutil.copytree(MODELS[0], tmp_path / "model"))
    edit, seen_in = CHANGES[change]
    edit(folder)
    results = run_golden(folder)
    assert seen_in in outside_tolerance(folder, results)
    assert results[seen_in] > 1e-3 and not math.isnan(results[seen_in])


def test_a_number_that_nothing_computes_is_refused(tmp_path):
    from safetensors.torch import save_file

    folder = Path(shutil.copytree(MODELS[0], tmp_path / "model"))
    path = folder / "expected_logits.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "logits_gated": tensors["logits_patch"].clone()}, path)
    with pytest.raises(ValueError, match="nothing here computes logits_gated"):
        run_golden(folder)
