"""The fingerprint of a base: everything that changes its numbers is told, by name, and nothing that does not."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoModelForImageTextToText, AutoProcessor

from cases import CASES, small_config
from family_cases import FAMILY_CASES
from pave import attach_patch, load_patch, save_patch
from pave.patching import fingerprint
from pave.patching.fingerprint import differences, sizes_only
from tiny_models import tiny_llava_onevision


@pytest.fixture(scope="module")
def base():
    return tiny_llava_onevision()


def changed(base, change):
    """What the fingerprint of a changed copy differs in."""
    model, processor = copy.deepcopy(base)
    change(model, processor)
    return differences(fingerprint(*base), fingerprint(model, processor))


TELLING = {
    "mean": (lambda m, p: setattr(p.video_processor, "image_mean", [0.1, 0.5, 0.5]), "processor video_processor.image_mean "),
    "std": (lambda m, p: setattr(p.video_processor, "image_std", [0.1, 0.5, 0.5]), "processor video_processor.image_std "),
    "rescaling": (lambda m, p: setattr(p.video_processor, "rescale_factor", 1.0), "processor video_processor.rescale_factor "),
    "size": (
        lambda m, p: setattr(p.video_processor, "size", {"height": 8, "width": 32}),
        "processor video_processor.size.height ",
    ),
    "resampling": (lambda m, p: setattr(p.video_processor, "resample", 0), "processor video_processor.resample "),
    "no rescaling": (lambda m, p: setattr(p.video_processor, "do_rescale", False), "processor video_processor.do_rescale "),
    "normalizer": (
        lambda m, p: setattr(p.tokenizer.backend_tokenizer, "normalizer", normalizers.NFKC()),
        "tokenizer normalizer",
    ),
    "pre-tokenizer": (
        lambda m, p: setattr(p.tokenizer.backend_tokenizer, "pre_tokenizer", pre_tokenizers.Punctuation()),
        "tokenizer pre_tokenizer",
    ),
    "added token": (lambda m, p: p.tokenizer.add_tokens(["<new>"]), "tokenizer added_tokens is another"),
    "template": (lambda m, p: setattr(p, "chat_template", p.chat_template + " "), "another chat template"),
    "sliding window": (
        lambda m, p: setattr(m.config.text_config, "sliding_window", 7),
        "text_config.sliding_window None against 7",
    ),
    "projector": (
        lambda m, p: setattr(m.config, "projector_hidden_act", "relu"),
        "projector_hidden_act gelu against relu",
    ),
    "epsilon of the tower": (
        lambda m, p: setattr(m.config.vision_config, "layer_norm_eps", 0.5),
        "vision_config.layer_norm_eps 1e-06 against 0.5",
    ),
    "layer of the features": (lambda m, p: setattr(m.config, "vision_feature_layer", -2), "vision_feature_layer -1 against -2"),
    "kinds of layers": (
        lambda m, p: setattr(m.config.text_config, "layer_types", ["sliding_attention", "full_attention"]),
        "text_config.layer_types ",
    ),
}


@pytest.mark.parametrize("name", TELLING)
def test_what_changes_numbers_is_told_by_name(base, name):
    change, says = TELLING[name]
    found = changed(base, change)
    assert len(found) >= 1 and found[0].startswith(says), found


SILENT = {
    "path": lambda m, p: setattr(m.config, "_name_or_path", "/elsewhere"),
    "version": lambda m, p: setattr(m.config, "transformers_version", "4.0"),
    "dtype": lambda m, p: (setattr(m.config, "dtype", "float16"), setattr(m.config.text_config, "dtype", "float16")),
    "attention": lambda m, p: m.set_attn_implementation("eager"),
    "cache": lambda m, p: setattr(m.config.text_config, "use_cache", False),
    "dropout": lambda m, p: setattr(m.config.text_config, "attention_dropout", 0.5),
    "padding": lambda m, p: (setattr(m.config, "pad_token_id", 1), setattr(p.tokenizer, "padding_side", "right")),
    "frames": lambda m, p: setattr(p.video_processor, "num_frames", 3),
    "state of the tokenizer": lambda m, p: p.tokenizer(["a", "b c"], padding=True, truncation=True, max_length=3),
    "in 16 bits": lambda m, p: m.bfloat16(),
}


@pytest.mark.parametrize("name", SILENT)
def test_what_changes_no_number_is_not_told(base, name):
    assert changed((base[0].bfloat16().float(), base[1]), SILENT[name]) == []


def buffer_of(model, part):
    return next(value for name, value in model.named_buffers() if name.endswith(part))


@pytest.mark.parametrize(("family", "part"), [("gemma4", "layer_scalar"), ("glm4v_moe", "e_score_correction_bias")])
def test_buffers_that_are_stored_belong_to_the_base(family, part, tmp_path):
    case = FAMILY_CASES[family]
    model, processor = case.build()
    save_patch(attach_patch(model, small_config()), tmp_path / "patch", processor=processor)
    other, _ = case.build()
    with torch.no_grad():
        buffer_of(other, part).view(-1)[-1].add_(0.5)
    with pytest.raises(ValueError, match="differs in: other stored buffers"):
        load_patch(other, tmp_path / "patch")
    same, _ = case.build()
    load_patch(same, tmp_path / "patch", processor=processor)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl", "gemma4", "glm4v_moe", "internvl"])
def test_a_base_that_was_saved_and_loaded_is_the_same(family, tmp_path):
    build = CASES[family].build if family in CASES else FAMILY_CASES[family].build
    model, processor = build()
    before = fingerprint(model, processor)
    assert None not in (before.weights, before.buffers, before.processor, before.tokenizer)
    model.save_pretrained(tmp_path), processor.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert differences(before, fingerprint(*again)) == []


def test_keys_that_one_side_lacks_count_within_one_version(base):
    now = fingerprint(*base)
    facts = {key: value for key, value in now.architecture.items() if key != "text_config.rms_norm_eps"}
    assert differences(replace(now, architecture=facts), now) == ["text_config.rms_norm_eps None against 1e-06"]
    assert differences(replace(now, architecture=facts, transformers="5.0"), now) == []
    assert differences(now, replace(now, tokenizer=None, processor=None, chat_template=None)) == []


def test_only_the_first_of_many_differences_are_named(base):
    now = fingerprint(*base)
    other = replace(now, architecture=dict.fromkeys(now.architecture, "x"))
    found = differences(now, other)
    assert len(found) == 7 and found[-1] == f"and {len(now.architecture) - 6} more"


def test_of_a_base_known_by_its_sizes_nothing_else_is_compared(base):
    now = sizes_only(fingerprint(*base))
    assert set(now.architecture) >= {"model_type", "text_config.hidden_size", "vision_config.patch_size"}
    assert "text_config.rms_norm_eps" not in now.architecture
    assert differences(now, fingerprint(*base)) == []
