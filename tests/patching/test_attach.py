"""Attaching and loading is all or nothing: what fails, or does not belong, leaves the model exactly as it was."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from cases import CASES, patched, small_config
from pave import attach_patch, load_patch, save_patch
from pave.patching import attach as attaching
from pave.patching import continue_patch, is_patched

CASE = CASES["llava_onevision"]
STEPS = ("build_slot", "_swap_class", "patched_class", "_put_on")


def state(model):
    """Everything that attaching touches."""
    return {
        "classes": {name: type(module) for name, module in model.named_modules()},
        "modules": {name: id(module) for name, module in model.named_modules()},
        "flags": {name: p.requires_grad for name, p in model.named_parameters()},
        "attributes": {name: set(vars(module)) for name, module in model.named_modules()},
        "hooks": {name: len(m._forward_pre_hooks) + len(m._forward_hooks) for name, m in model.named_modules()},
        "weights": {name: p.sum().item() for name, p in model.named_parameters()},
    }


@pytest.mark.parametrize("step", STEPS)
def test_an_attachment_that_fails_half_way_leaves_no_trace(step, monkeypatch, tmp_path):
    config = small_config(query_source="pre_projector")
    folder = save_patch(patched(CASE, config)[0], tmp_path / "patch")
    model, _ = CASE.build()
    next(iter(model.parameters())).requires_grad_(False)
    before, rng = state(model), torch.get_rng_state()
    whole = getattr(attaching, step)

    def fails(*args, **kwargs):
        whole(*args, **kwargs)
        raise MemoryError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(attaching, step, fails)
        for attach in (
            lambda: attach_patch(model, config),
            lambda: load_patch(model, folder),
            lambda: continue_patch(model, config, folder),
        ):
            with pytest.raises(MemoryError):
                attach()
            assert state(model) == before and not is_patched(model)
    assert torch.equal(torch.get_rng_state(), rng)
    load_patch(model, folder)


class Plain(nn.Module):
    pass


def text_model():
    config = transformers.Qwen2Config(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2
    )
    return transformers.Qwen2ForCausalLM(config)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (text_model, "base models of type 'qwen2' are not supported"),
        (lambda: CASE.build()[0].model, "has no head that chooses tokens; load the base with AutoModelForImageTextToText"),
        (Plain, "a patch goes on a Video LLM of transformers, and this Plain is none"),
        (lambda: "llava-hf/llava-onevision", "a patch goes on a Video LLM of transformers, and this str is none"),
    ],
)
def test_what_can_carry_no_patch_is_refused_in_one_sentence(build, says, tmp_path):
    folder = save_patch(patched(CASE)[0], tmp_path / "patch")
    model = build()
    before = state(model) if isinstance(model, nn.Module) else None
    for attach in (
        lambda: load_patch(model, folder),
        lambda: load_patch(model, folder, allow_base_mismatch=True),
        lambda: attach_patch(model, small_config()),
        lambda: continue_patch(model, small_config(), folder),
    ):
        with pytest.raises(ValueError, match=says) as caught:
            attach()
        assert "\n" not in str(caught.value)
    assert before is None or state(model) == before
