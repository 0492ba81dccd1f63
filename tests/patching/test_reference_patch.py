"""Patches as the authors' code saves them: what is read, what is assumed, and every mistake named."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from pave import FusionConfig, LoraSettings, load_patch
from pave.patching import patch_slot, read_record
from pave.patching.convert import convert_base, import_patch
from pave.side_channels import build_encoder
from tiny_models import tiny_qwen2_5_vl

GOLDEN = Path(__file__).parents[1] / "golden" / "whole_model_A"
PREFIX = "base_model.model.model.temporal_aggregator."
LORA = "base_model.model.model.layers."
FUSION_FILE, ADAPTER_FILE = "non_lora_trainables.bin", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "base"
    convert_base(GOLDEN / "base", folder, vision={"num_attention_heads": 4})
    return folder


@pytest.fixture
def source(tmp_path):
    return Path(shutil.copytree(GOLDEN / "patch", tmp_path / "released"))


def edit_fusion(source: Path, edit) -> None:
    tensors = torch.load(source / FUSION_FILE, weights_only=True)
    edit(tensors)
    torch.save(tensors, source / FUSION_FILE)


def edit_adapter(source: Path, edit) -> None:
    tensors = load_file(source / ADAPTER_FILE)
    edit(tensors)
    save_file(tensors, source / ADAPTER_FILE)


def edit_json(source: Path, name: str, **changes) -> None:
    path = source / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def third_layer(tensors: dict) -> None:
    """A third layer of attention beside the two."""
    for key in [key for key in tensors if ".cross_attn_layers.1." in key]:
        tensors[key.replace(".1.", ".2.", 1)] = tensors[key] * 0.5


def test_what_is_read_and_what_is_assumed(source, base, tmp_path, caplog):
    result = import_patch(source, tmp_path / "out", str(base))
    channel = result.config.side_channels["side"]
    assert channel.fusion == FusionConfig(
        alignment="index",
        query_source="pre_projector",
        width=32,
        embed_width=32,
        num_layers=2,
        num_heads=4,
        share_key_value_projection=True,
    )
    every = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert result.config.lora == LoraSettings(rank=64, alpha=16.0, dropout=0.05, targets=every)
    assert (result.config.newline, result.config.vocabulary, result.config.missing_channel) == ("grid", 259, "lora_only")
    assert result.config.storage_dtype == "bfloat16"
    assert (channel.kind, channel.width) == ("features", 24)
    encoder = build_encoder(channel.encoder)
    assert (encoder.width, encoder.tokens_per_step) == (24, 1)
    assert channel.encoder.settings["flatten_tokens"] is True
    assert [sentence.split(" is")[0] for sentence in result.assumed] == [
        "num_cross_attn_head",
        "use_3d_rope",
        "the rate of the side features",
        "one side token per step of stored features, three-dimensional ones flattened to K * M steps as the released code does "
        "with sound; give tokens_per_step where a step has several",
    ]
    assert all(sentence in caplog.text for sentence in result.assumed)
    assert result.dropped == tuple(
        sorted(f"cross_attn_layers.{n}.attn.v_linear.{k}" for n in (0, 1) for k in ("bias", "weight"))
    )
    record = read_record(tmp_path / "out")
    assert record.provenance == {"imported": "released", "assumed": list(result.assumed), "dropped": list(result.dropped)}
    assert record.base.weights and record.base.tokenizer and record.base.chat_template


def test_options_leave_nothing_to_assume(source, base, tmp_path):
    result = import_patch(
        source, tmp_path / "out", str(base), heads=2, rope=False, newline="base", vocabulary=200, channel="sound",
        tokens_per_step=4, rate=2.0, name="avsd",
    )  # fmt: skip
    assert result.assumed == ()
    assert (result.config.newline, result.config.vocabulary) == ("base", 200)
    channel = result.config.side_channels["sound"]
    assert channel.fusion.num_heads == 2
    assert channel.encoder.settings == {"width": 24, "tokens_per_step": 4, "rate": 2.0}
    assert read_record(tmp_path / "out").name == "avsd"


def test_every_tensor_arrives_unchanged_and_the_patch_fits_its_base(source, base, tmp_path):
    import_patch(source, tmp_path / "out", str(base))
    given = torch.load(source / FUSION_FILE, weights_only=True)
    stored = load_file(tmp_path / "out" / "patch.safetensors")
    assert torch.equal(stored["side.layers.1.ffn.3.weight"], given[PREFIX + "cross_attn_layers.1.ffn.3.weight"])
    assert torch.equal(stored["side.query_embed.weight"], given[PREFIX + "query_input_mapping.weight"])
    assert sum(t.numel() for t in stored.values()) == sum(t.numel() for key, t in given.items() if "v_linear" not in key)
    adapter = load_file(tmp_path / "out" / "lora" / ADAPTER_FILE)
    theirs = load_file(source / ADAPTER_FILE)
    renamed = {key.replace(".language_model.", ".", 1): tensor for key, tensor in adapter.items()}
    assert renamed.keys() == theirs.keys()
    assert all(torch.equal(renamed[key], theirs[key]) for key in theirs)
    model = AutoModelForImageTextToText.from_pretrained(base)
    processor = AutoProcessor.from_pretrained(base)
    load_patch(model, tmp_path / "out", processor=processor)  # the fingerprint is checked, tokenizer and template too
    with torch.no_grad():
        other = AutoModelForImageTextToText.from_pretrained(base)
        other.model.image_newline.add_(1)
    with pytest.raises(ValueError, match="other weights"):
        load_patch(other, tmp_path / "out")


def test_a_base_by_its_config_alone(source, base, tmp_path):
    """As for a base on the hub: the patch is the same; its fingerprint knows sizes only, and this is said."""
    result = import_patch(source, tmp_path / "out", str(base / "config.json"))
    import_patch(source, tmp_path / "whole", str(base))
    assert "the weights of the base were not read; the patch records the sizes of its base only" in result.assumed
    assert any("assuming that 259 is its length" in sentence for sentence in result.assumed)
    assert result.config == read_record(tmp_path / "whole").patch
    for file in ("patch.safetensors", f"lora/{ADAPTER_FILE}"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert read_record(tmp_path / "out").base.weights is None
    load_patch(AutoModelForImageTextToText.from_pretrained(base), tmp_path / "out")


def test_other_shapes_are_read_off_the_weights(source, base, tmp_path):
    """Three layers, rope, 16-bit floats in a .bin adapter, queries from behind the projector."""
    edit_fusion(source, third_layer)

    def wide_queries(tensors):
        tensors[PREFIX + "query_input_mapping.weight"] = torch.randn(32, 64)

    edit_fusion(source, wide_queries)
    adapter = {key: tensor.half() for key, tensor in load_file(source / ADAPTER_FILE).items()}
    (source / ADAPTER_FILE).unlink()
    torch.save(adapter, source / "adapter_model.bin")
    edit_fusion(source, lambda t: t.update({key: value.half() for key, value in t.items()}))
    result = import_patch(source, tmp_path / "out", str(base), rope=True)
    fusion = result.config.side_channels["side"].fusion
    assert (fusion.num_layers, fusion.rope, fusion.query_source) == (3, True, "post_projector")
    assert result.config.storage_dtype == "float16"
    model = load_patch(AutoModelForImageTextToText.from_pretrained(base), tmp_path / "out")
    assert len(patch_slot(model).fusions["side"].layers) == 3


def test_learnt_queries_are_told_by_their_table(source, base, tmp_path):
    def table(tensors):
        tensors[PREFIX + "learnable_query"] = torch.randn(4, 196, 32)

    edit_fusion(source, table)
    fusion = import_patch(source, tmp_path / "out", str(base)).config.side_channels["side"].fusion
    assert (fusion.query_source, fusion.num_frames, fusion.tokens_per_frame) == ("learnable", 4, 196)


def test_types_that_differ_are_stored_without_rounding(source, base, tmp_path):
    edit_fusion(source, lambda t: t.update({PREFIX + "input_mapping.bias": torch.full((32,), 0.1)}))
    result = import_patch(source, tmp_path / "out", str(base))
    assert result.config.storage_dtype == "float32"
    assert torch.equal(load_file(tmp_path / "out" / "patch.safetensors")["side.side_embed.bias"], torch.full((32,), 0.1))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        # fusion
        (
            lambda s: edit_fusion(s, lambda t: t.update({PREFIX + "gate.weight": torch.zeros(2, 2)})),
            r"unknown gate\.weight",
        ),
        (
            lambda s: edit_fusion(s, lambda t: t.update({PREFIX + "cross_attn_layers.0.gate": torch.zeros(1)})),
            r"unknown cross_attn_layers\.0\.gate",
        ),
        (
            lambda s: edit_fusion(s, lambda t: t.update({"base_model.model.model.question_gate.weight": torch.zeros(1)})),
            r"non_lora_trainables\.bin: unknown tensors outside the fusion module: base_model\.model\.model\.question_gate\.weight",
        ),
        (lambda s: edit_fusion(s, lambda t: t.update({PREFIX + "input_mapping.bias": torch.full((32,), float("nan"))})), "NaN"),
        (lambda s: edit_fusion(s, dict.clear), "holds no tensor"),
        # LoRA
        (
            lambda s: edit_adapter(s, lambda t: t.pop(LORA + "1.mlp.up_proj.lora_A.weight")),
            r"adapter_model\.safetensors: 1 tensor\(s\) missing, the first is .*layers\.1\.mlp\.up_proj\.lora_A\.weight",
        ),
        (
            lambda s: edit_adapter(s, lambda t: t.update({LORA + "2.mlp.up_proj.lora_A.weight": torch.zeros(64, 64)})),
            r"unexpected tensor\(s\), the first is .*layers\.2\.mlp\.up_proj\.lora_A\.weight",
        ),
        (
            lambda s: edit_adapter(s, lambda t: t.update({LORA + "0.mlp.up_proj.lora_gate.weight": torch.zeros(1)})),
            r"no LoRA update of the language model: .*layers\.0\.mlp\.up_proj\.lora_gate\.weight",
        ),
        (
            lambda s: edit_adapter(
                s, lambda t: t.update({"base_model.model.model.mm_projector.0.lora_A.weight": torch.zeros(64, 48)})
            ),
            r"mm_projector\.0\.lora_A\.weight",
        ),
        (lambda s: edit_json(s, "adapter_config.json", r=32), r"has shape \(64, 64\), this base and config need \(32, 64\)"),
        (
            lambda s: edit_adapter(s, lambda t: [t.pop(key) for key in list(t) if "q_proj" in key]),
            "target_modules names q_proj, but the adapter holds no tensor for it",
        ),
        (lambda s: edit_json(s, "adapter_config.json", use_rslora=True), "use_rslora is True"),
        (lambda s: edit_json(s, "adapter_config.json", modules_to_save=["lm_head"]), r"modules_to_save is \['lm_head'\]"),
        (lambda s: edit_json(s, "adapter_config.json", lora_gate=True), "lora_gate is True"),
        (lambda s: edit_json(s, "adapter_config.json", lora_alpha=None), "lora_alpha is missing"),
        # config
        (lambda s: edit_json(s, "config.json", num_hidden_layers=3), "num_hidden_layers is 3, but the base's .* has 2"),
        (lambda s: edit_json(s, "config.json", feat_combine_method="concat"), "feat_combine_method is 'concat'"),
        (lambda s: edit_json(s, "config.json", mm_newline_position="frame"), "mm_newline_position is 'frame'"),
        # files
        (lambda s: (s / "config.json").unlink(), r"config\.json: there is no such file"),
        (lambda s: (s / FUSION_FILE).unlink(), "has no non_lora_trainables.bin and no"),
        (lambda s: (s / ADAPTER_FILE).unlink(), "has no adapter_model.safetensors and no adapter_model.bin"),
        (lambda s: torch.save({}, s / "adapter_model.bin"), "has both adapter_model.safetensors and adapter_model.bin"),
        (
            lambda s: (s / FUSION_FILE).write_bytes((s / FUSION_FILE).read_bytes()[:9000]),
            "is damaged or holds more than tensors",
        ),
        (lambda s: torch.save([torch.zeros(1)], s / FUSION_FILE), "must hold a dictionary of tensors"),
    ],
)
def test_what_does_not_fit_is_named(source, base, tmp_path, edit, message):
    edit(source)
    with pytest.raises(ValueError, match=message):
        import_patch(source, tmp_path / "out", str(base / "config.json"))
    assert not (tmp_path / "out").exists()


FUSION_KEYS = sorted(torch.load(GOLDEN / "patch" / FUSION_FILE, weights_only=True))


@pytest.mark.parametrize("key", FUSION_KEYS)
def test_each_missing_tensor_of_the_fusion_is_named(key, source, base, tmp_path):
    edit_fusion(source, lambda t: t.pop(key))
    with pytest.raises(ValueError, match=f"missing {re.escape(key.removeprefix(PREFIX))}"):
        import_patch(source, tmp_path / "out", str(base / "config.json"))


def test_three_layers_declared_as_two(source, base, tmp_path):
    edit_fusion(source, third_layer)
    with pytest.raises(ValueError, match=r"unknown cross_attn_layers\.2\.attn\.k_linear\.bias"):
        import_patch(source, tmp_path / "out", str(base / "config.json"), arguments={"num_cross_attn_layer": 2})
    with pytest.raises(ValueError, match="num_cross_attn_head is given twice, as 2 and as 4"):
        import_patch(source, tmp_path / "out", str(base / "config.json"), heads=2, arguments={"num_cross_attn_head": 4})


class _Touch:
    """Unpickling this would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_nothing_is_unpickled(source, base, tmp_path):
    trace = tmp_path / "trace"
    torch.save({PREFIX + "input_mapping.weight": _Touch(trace)}, source / FUSION_FILE)
    with pytest.raises(ValueError, match="holds more than tensors, which are never unpickled"):
        import_patch(source, tmp_path / "out", str(base / "config.json"))
    content = {PREFIX + "input_mapping.weight": _Touch(trace)}
    (source / FUSION_FILE).write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match="holds more than tensors, which are never unpickled"):
        import_patch(source, tmp_path / "out", str(base / "config.json"))
    assert not trace.exists()


def test_bases_that_cannot_be_meant(source, tmp_path):
    with pytest.raises(ValueError, match=re.escape("rewrite it first: pave import-base")):
        import_patch(source, tmp_path / "out", str(GOLDEN / "base"))
    with pytest.raises(ValueError, match="hidden_size is 64, but the base's language model has 3584"):
        import_patch(source, tmp_path / "out", "llava-onevision-qwen2-7b")
    model, _ = tiny_qwen2_5_vl()
    model.config.save_pretrained(tmp_path / "qwen")
    with pytest.raises(ValueError, match="is a qwen2_5_vl; the authors' patches are for llava_onevision bases"):
        import_patch(source, tmp_path / "out", str(tmp_path / "qwen"))


def test_what_config_json_leaves_open_is_assumed_and_said(source, base, tmp_path):
    values = json.loads((source / "config.json").read_text())
    del values["mm_newline_position"]
    values |= {"model_type": "pave_next", "temporal_aggregator_type": "pmv6", "vocab_size": 300}
    (source / "config.json").write_text(json.dumps(values))
    result = import_patch(source, tmp_path / "out", str(base), heads=4, rope=False, tokens_per_step=2, rate=1.0)
    assert result.config.newline == "base"
    assert result.config.vocabulary == 259
    assert [sentence.split(",")[0].split(";")[0] for sentence in result.assumed] == [
        "model_type is 'pave_next'",
        "temporal_aggregator_type is 'pmv6'",
        "mm_newline_position is not given",
        "config.json says vocab_size 300",
    ]


def test_the_place_of_queries_is_as_told_where_widths_do_not_tell(source, base, tmp_path):
    arguments = json.loads((GOLDEN / "aggregator_config.json").read_text()) | {"use_slow_feat_before_mlp": False}
    with pytest.raises(ValueError, match="takes queries of width 48, but the base's vision features are 48 wide before"):
        import_patch(source, tmp_path / "out", str(base / "config.json"), arguments=arguments)
