"""A patch on a base whose language model is quantised, on a CPU. Skipped without the extra ``quantized``."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import torch
import transformers as tf

from cases import Case, shake, side_tokens, small_config
from pave import attach_patch, detach_patch, load_patch, save_patch
from pave.patching import patch_parameters
from tiny_models import tiny_llava_onevision

OTHERS = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
CASE = Case(tiny_llava_onevision, (4, 4))


def bitsandbytes_8():
    return tf.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=OTHERS)


def bitsandbytes_4():
    return tf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, llm_int8_skip_modules=OTHERS)


def torchao_8():
    from torchao.quantization import Int8WeightOnlyConfig

    return tf.TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=OTHERS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base wide enough for blocks of 64 weights."""
    model, processor = tiny_llava_onevision(hidden_size=64, intermediate_size=128, num_key_value_heads=4)
    path = tmp_path_factory.mktemp("base")
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path, CASE.batch(processor)


@pytest.fixture(scope="module", params=[bitsandbytes_8, bitsandbytes_4, torchao_8], ids=lambda f: f.__name__)
def load(request, folder):
    package = request.param.__name__.split("_")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed; it comes with the extra 'quantized'")

    def loaded(quantised=True):
        more = {"quantization_config": request.param()} if quantised else {}
        return tf.LlavaOnevisionForConditionalGeneration.from_pretrained(
            folder[0], dtype=torch.float32, device_map="cpu", **more
        ).eval()

    return loaded


def logits(model, batch, **given):
    with torch.no_grad():
        return model(**batch, **given).logits


def test_dora_is_the_base_at_first_or_refused(load, folder):
    """bitsandbytes' weights change their form when they are first used on a CPU; torchao's do not."""
    batch = {k: v for k, v in folder[1].items() if k != "frame_times"}
    given = {"side_channels": {"audio": side_tokens()}, "frame_times": folder[1]["frame_times"]}
    config = small_config()
    config = replace(config, lora=replace(config.lora, use_dora=True))
    model = load()
    flags = [p.requires_grad for p in model.parameters()]
    if model.config.quantization_config.quant_method != "torchao":
        with pytest.raises(ValueError, match="lora.use_dora: 6 of 6 target layers are quantised by bitsandbytes"):
            attach_patch(model, config)
        assert [p.requires_grad for p in model.parameters()] == flags
        return
    expected = logits(model, batch)
    attach_patch(model, config)
    assert torch.equal(logits(model, batch, **given), expected)
    acting = logits(shake(model), batch, **given)
    assert not torch.allclose(acting, expected, atol=1e-2) and torch.equal(logits(model, batch, **given), acting)


def test_a_patch_on_a_quantised_base(load, folder, tmp_path):
    batch = {k: v for k, v in folder[1].items() if k != "frame_times"}
    given = {"side_channels": {"audio": side_tokens()}, "frame_times": folder[1]["frame_times"]}
    model = load()
    q_proj = model.model.language_model.layers[0].self_attn.q_proj
    assert type(q_proj) is not torch.nn.Linear or type(q_proj.weight.data) is not torch.Tensor
    expected = logits(model, batch)
    full = logits(load(quantised=False), batch)
    assert 0 < float((expected - full).abs().max()) < 1

    attach_patch(model, small_config())
    assert torch.equal(logits(model, batch, **given), expected)
    shake(model)
    acting = logits(model, batch, **given)
    assert not torch.allclose(acting, expected, atol=1e-2)
    with model.patch_disabled():
        assert torch.equal(logits(model, batch, **given), expected)
    assert torch.equal(logits(model, batch), expected)

    detach_patch(model)
    assert torch.equal(logits(model, batch), expected)
    shake(attach_patch(model, small_config()))
    assert torch.equal(logits(model, batch, **given), acting)

    # a fresh one: once run in eval mode on a CPU, bitsandbytes keeps 4-bit weights in a format without gradients
    learner = shake(attach_patch(load(), small_config())).train()
    labels = torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)
    learner(**batch, **given, labels=labels).loss.backward()
    own = {id(p) for p in patch_parameters(learner)}
    for name, parameter in learner.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (id(parameter) in own), name

    save_patch(model, tmp_path / "patch")
    assert torch.equal(logits(load_patch(load(), tmp_path / "patch"), batch, **given), acting)
    # the same patch on the base as it was before quantisation: only the base's own error is in between
    unquantised = logits(load_patch(load(quantised=False), tmp_path / "patch"), batch, **given)
    assert not torch.allclose(unquantised, full, atol=1e-2)
    assert float((unquantised - acting).abs().max()) < 3 * float((full - expected).abs().max()) + 1e-2
