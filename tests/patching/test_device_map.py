"""A patch on a base that accelerate has dispatched by ``device_map``, with parts offloaded to disk."""

from __future__ import annotations

import inspect

import pytest
import torch
import transformers as tf

from cases import Case, shake, side_tokens, small_config
from pave import attach_patch, detach_patch, load_patch, save_patch
from tiny_models import tiny_llava_onevision

CASE = Case(tiny_llava_onevision, (4, 4))
OTHERS = {"model.multi_modal_projector": "cpu", "model.image_newline": "cpu", "lm_head": "cpu"}
TOWER_ON_DISK = {"model.vision_tower": "disk", "model.language_model": "cpu", **OTHERS}
LAYER_ON_DISK = {
    "model.vision_tower": "cpu",
    **{f"model.language_model.{part}": "cpu" for part in ("embed_tokens", "rotary_emb", "norm", "layers.0")},
    "model.language_model.layers.1": "disk",
    **OTHERS,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(folder, batch, base's logits, patched logits); the folder holds the base and a patch."""
    folder = tmp_path_factory.mktemp("saved")
    model, processor = tiny_llava_onevision()
    batch = CASE.batch(processor)
    given = {"frame_times": batch.pop("frame_times"), "side_channels": {"audio": side_tokens()}}
    model.save_pretrained(folder / "base")
    with torch.no_grad():
        base = model(**batch).logits
        shake(attach_patch(model, small_config(query_source="pre_projector")))
        acting = model(**batch, **given).logits
    save_patch(model, folder / "patch")
    return folder, batch, given, base, acting


def dispatched(folder, device_map):
    return tf.LlavaOnevisionForConditionalGeneration.from_pretrained(
        folder / "base", device_map=device_map, offload_folder=folder / "offloaded"
    ).eval()


@torch.no_grad()
@pytest.mark.parametrize("device_map", [{"": "cpu"}, TOWER_ON_DISK], ids=["one device", "vision tower on disk"])
def test_a_dispatched_base_uses_the_side_channels(saved, device_map):
    folder, batch, given, base, acting = saved
    model = dispatched(folder, device_map)
    load_patch(model, folder / "patch")
    assert {"side_channels", "frame_times"} <= set(inspect.signature(model.forward).parameters)
    assert torch.equal(model(**batch, **given).logits, acting)
    with model.patch_disabled():
        assert torch.equal(model(**batch, **given).logits, base)
    detach_patch(model)
    assert "side_channels" not in inspect.signature(model.forward).parameters
    assert torch.equal(model(**batch).logits, base)


def test_offloaded_layers_with_lora_are_refused_and_fusion_alone_works(saved):
    folder, batch, given, base, _ = saved
    model = dispatched(folder, LAYER_ON_DISK)
    with pytest.raises(ValueError, match="lora: 3 of 6 target layers are offloaded"):
        attach_patch(model, small_config())
    shake(attach_patch(model, small_config(lora=False)))
    with torch.no_grad():
        assert not torch.allclose(model(**batch, **given).logits, base, atol=1e-3)
