"""Bases in the lmms-lab layout: every layout of files, every setting that cannot be known, every tensor accounted for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from pave.data.prompts import render_prompt
from pave.patching.convert import convert_base

GOLDEN = Path(__file__).parents[1] / "golden" / "whole_model_A"
HEADS = {"num_attention_heads": 4}


@pytest.fixture
def source(tmp_path):
    return Path(shutil.copytree(GOLDEN / "base", tmp_path / "lmms"))


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "base"
    convert_base(GOLDEN / "base", folder, vision=HEADS)
    return folder


def edit_config(source: Path, **changes) -> None:
    values = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**values, **changes}))


def edit_weights(source: Path, edit) -> None:
    tensors = load_file(source / "model.safetensors")
    edit(tensors)
    save_file(tensors, source / "model.safetensors")


def loaded(folder: Path):
    return AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")


def test_every_tensor_arrives_unchanged(converted):
    given = load_file(GOLDEN / "base" / "model.safetensors")
    model = loaded(converted)
    own = model.state_dict()
    assert {t.dtype for t in own.values()} == {torch.bfloat16}
    for key, tensor in own.items():
        theirs = key.replace("model.language_model.", "model.").replace(
            "model.vision_tower.", "model.vision_tower.vision_tower.vision_model."
        )
        theirs = theirs.replace("multi_modal_projector.linear_1", "mm_projector.0")
        theirs = theirs.replace("multi_modal_projector.linear_2", "mm_projector.2")
        wanted = given.pop(theirs)
        if tensor.shape != wanted.shape:  # two rows for the placeholders
            assert tensor.shape == (261, 64)
            assert not tensor[259:].any()
            tensor = tensor[:259]
        assert torch.equal(tensor, wanted), key
    assert not given


def test_config_holds_what_was_told_and_what_shapes_tell(converted):
    config = loaded(converted).config
    assert (config.image_token_id, config.video_token_id) == (259, 260)
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-1, "full")
    vision, text = config.vision_config, config.text_config
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
    assert [getattr(vision, key) for key in sizes] == [48, 64, 2, 4, 54, 2]
    assert (vision.vision_use_head, vision.hidden_act) == (False, "gelu_pytorch_tanh")
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    assert [getattr(text, key) for key in sizes] == [64, 96, 2, 4, 2]
    assert text.rope_parameters["rope_theta"] == 1e6 and text.eos_token_id == 258


def test_prompts_are_those_of_the_released_code(converted):
    """The chat template and the tokenizer give the golden prompt's own tokens around the video."""
    processor = AutoProcessor.from_pretrained(converted)
    inputs = load_file(GOLDEN / "inputs.safetensors")
    text = json.loads((GOLDEN / "notes.json").read_text())["prompts"][0]
    assert render_prompt(processor, [("What is the man holding?", None)]).text == text.replace("<image>", "<video>")
    video = torch.zeros(4, 54, 54, 3, dtype=torch.uint8).numpy()
    batch = processor(text=text.replace("<image>", "<video>"), videos=[video], do_sample_frames=False, return_tensors="pt")
    ids = batch["input_ids"][0].tolist()
    assert ids.count(260) == 4 * 14 * 14 + 1
    start = ids.index(260)
    assert [*ids[:start], -200, *ids[start + 785 :]] == inputs["input_ids"][0].tolist()
    assert batch["pixel_values_videos"].shape == (1, 4, 3, 54, 54)
    assert torch.equal(batch["pixel_values_videos"], torch.full((1, 4, 3, 54, 54), -1.0))  # (0 - 0.5) / 0.5


def test_sharded_files_of_either_kind_give_the_same_model(source, tmp_path, converted):
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"pytorch_model-00001-of-00002.bin": names[:30], "pytorch_model-00002-of-00002.bin": names[30:]}
    for name, keys in shards.items():
        torch.save({key: tensors[key] for key in keys}, source / name)
    index = {"weight_map": {key: name for name, keys in shards.items() for key in keys}}
    (source / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    convert_base(source, tmp_path / "out", vision=HEADS)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) == 2
    own, wanted = loaded(tmp_path / "out").state_dict(), loaded(converted).state_dict()
    assert own.keys() == wanted.keys()
    assert all(torch.equal(own[key], wanted[key]) for key in own)
    (source / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(ValueError, match="names pytorch_model-00002-of-00002.bin, which is missing"):
        convert_base(source, tmp_path / "out", vision=HEADS)


def test_tied_embeddings_need_no_head(source, tmp_path):
    edit_config(source, tie_word_embeddings=True)
    edit_weights(source, lambda t: t.pop("lm_head.weight"))
    convert_base(source, tmp_path / "out", vision=HEADS)
    model = loaded(tmp_path / "out")
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert torch.equal(model.lm_head.weight[:259], load_file(source / "model.safetensors")["model.embed_tokens.weight"])


def test_free_rows_are_taken_for_the_placeholders(source, tmp_path):
    def more_rows(tensors):
        for key in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[key] = torch.cat([tensors[key], torch.full((13, 64), 0.5, dtype=torch.bfloat16)])

    edit_weights(source, more_rows)
    result = convert_base(source, tmp_path / "out", vision={**HEADS, "image_size": 54})
    assert not result.assumed
    model = loaded(tmp_path / "out")
    assert model.lm_head.weight.shape == (272, 64) and bool((model.lm_head.weight[259:] == 0.5).all())


def test_assumptions_are_said(source, tmp_path, caplog):
    edit_config(source, model_type="llava_qwen", image_grid_pinpoints="(1x1),...,(6x6)")
    result = convert_base(source, tmp_path / "out", vision=HEADS)
    assert [sentence[:40] for sentence in result.assumed] == [
        "the embeddings had 259 rows, none free f",
        "the vision tower takes images of 54 pixe",
        "image_grid_pinpoints is no list of sizes",
    ]
    assert all(sentence in caplog.text for sentence in result.assumed)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: edit_weights(s, lambda t: t.pop("model.image_newline")), r"missing tensors: model\.image_newline"),
        (lambda s: edit_weights(s, lambda t: t.pop("lm_head.weight")), r"missing tensors: lm_head\.weight"),
        (
            lambda s: edit_weights(s, lambda t: t.pop("model.layers.1.self_attn.q_proj.bias")),
            r"missing tensors: model\.layers\.1\.self_attn\.q_proj\.bias",
        ),
        (
            lambda s: edit_weights(s, lambda t: t.update({"model.gate.weight": torch.zeros(2)})),
            r"unknown tensors: model\.gate\.weight",
        ),
        (lambda s: edit_config(s, num_hidden_layers=1), r"unknown tensors: model\.layers\.1\..* and 7 more"),
        (lambda s: edit_config(s, mm_projector_type="linear"), "mm_projector_type is 'linear'"),
        (lambda s: edit_config(s, mm_spatial_pool_mode="average"), "mm_spatial_pool_mode is 'average'"),
        (lambda s: edit_config(s, architectures=["Qwen2ForCausalLM"]), "not in the lmms-lab layout"),
        (lambda s: (s / "config.json").write_text("{"), "not JSON: "),
        (lambda s: (s / "config.json").unlink(), r"config\.json: there is no such file"),
        (lambda s: (s / "model.safetensors").unlink(), "has no model.safetensors and no"),
        (lambda s: (s / "model.safetensors").write_bytes(b"x" * 100), "not a complete safetensors file"),
        (lambda s: [p.unlink() for p in s.glob("*token*")], "has no tokenizer that can be read"),
    ],
)
def test_what_does_not_fit_is_named(source, tmp_path, edit, message):
    edit(source)
    with pytest.raises(ValueError, match=message):
        convert_base(source, tmp_path / "out", vision=HEADS)
    assert not (tmp_path / "out").exists()


def test_what_shapes_do_not_tell_must_be_given(source, tmp_path):
    with pytest.raises(ValueError, match="48 wide, which no published one is.*give num_attention_heads"):
        convert_base(source, tmp_path / "out")
    with pytest.raises(ValueError, match="patch_size is given as 14, but the weights are for 2"):
        convert_base(source, tmp_path / "out", vision={**HEADS, "patch_size": 14})
