"""Patches on disk: what is saved comes back bit for bit, and what does not fit is refused with its name."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForImageTextToText

import pave
from cases import CASES, patched, shake, side_tokens, small_config
from pave import PatchConfig, attach_patch, detach_patch, load_patch, save_patch
from pave.patching import fingerprint, is_patched, load_tensors, patch_parameters, push_patch_to_hub, read_record
from signing import resign


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def logits(model, batch):
    with torch.no_grad():
        return model(**batch, side_channels={"audio": side_tokens()}).logits


@pytest.mark.parametrize(
    "config", [small_config(), small_config(lora=False), small_config(gate=True, query_source="pre_projector")]
)
def test_a_reloaded_patch_computes_the_same(case, config, tmp_path):
    model, processor = patched(case, config)
    batch = case.batch(processor)
    expected = logits(model, batch)
    save_patch(model, tmp_path / "patch", processor=processor, provenance={"seed": 3})
    fresh, _ = case.build()
    loaded = load_patch(fresh, tmp_path / "patch", processor=processor)
    assert loaded is fresh
    assert torch.equal(logits(fresh, batch), expected)
    record = read_record(tmp_path / "patch")
    assert record.patch == config and record.provenance == {"seed": 3} and record.pave_version == pave.__version__


def test_stored_in_16_bits_it_is_the_rounded_patch(tmp_path):
    case = CASES["llava_onevision"]
    model, processor = patched(case, replace(small_config(), storage_dtype="bfloat16"))
    batch = case.batch(processor)
    save_patch(model, tmp_path / "patch")
    stored = safetensors.torch.load_file(tmp_path / "patch" / "patch.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    with torch.no_grad():
        for parameter in patch_parameters(model):
            parameter.copy_(parameter.bfloat16())
    fresh, _ = case.build()
    load_patch(fresh, tmp_path / "patch")
    assert {p.dtype for p in patch_parameters(fresh)} == {torch.float32}
    assert torch.equal(logits(fresh, batch), logits(model, batch))


def test_the_lora_part_is_a_peft_adapter(case, tmp_path):
    """PEFT itself loads the folder onto the plain base, and it then computes what our patch does without fusion."""
    import peft

    model, processor = patched(case, replace(small_config(), missing_channel="lora_only"))
    batch = case.batch(processor)
    save_patch(model, tmp_path / "patch")
    with torch.no_grad():
        expected = model(**batch).logits
    plain, _ = case.build()
    adapted = peft.PeftModel.from_pretrained(plain, tmp_path / "patch" / "lora")
    batch.pop("frame_times")
    with torch.no_grad():
        torch.testing.assert_close(adapted(**batch).logits, expected, atol=1e-6, rtol=1e-6)
        assert not torch.allclose(CASES_base(case, batch), expected, atol=1e-3)


def CASES_base(case, batch):
    model, _ = case.build()
    with torch.no_grad():
        return model(**batch).logits


def test_save_pretrained_gives_the_base_and_the_patch_beside_it(case, tmp_path):
    model, _ = case.build()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.save_pretrained(tmp_path / "plain")
    shake(attach_patch(model, small_config()))
    model.save_pretrained(tmp_path / "patched")
    plain, saved = (safetensors.torch.load_file(tmp_path / d / "model.safetensors") for d in ("plain", "patched"))
    assert sorted(plain) == sorted(saved) and all(torch.equal(plain[k], saved[k]) for k in plain)
    assert (tmp_path / "plain" / "config.json").read_text() == (tmp_path / "patched" / "config.json").read_text()
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "patched")
    assert not is_patched(again)
    assert all(torch.equal(v, before[k]) for k, v in again.state_dict().items())
    load_patch(again, tmp_path / "patched" / "pave_patches" / "default")
    for a, b in zip(patch_parameters(again), patch_parameters(model), strict=True):
        assert torch.equal(a, b)


def test_a_state_dict_without_the_patch_is_refused():
    model, _ = patched(CASES["llava_onevision"])
    full = model.state_dict()
    model.load_state_dict(full)
    with pytest.raises(ValueError, match="hold no patch"):
        model.load_state_dict(CASES["llava_onevision"].build()[0].state_dict(), strict=False)


def test_saving_replaces_the_older_patch_whole(tmp_path):
    model, _ = patched(CASES["llava_onevision"])
    save_patch(model, tmp_path / "patch")
    (tmp_path / "patch" / "stale.txt").write_text("x")
    detach_patch(model)
    attach_patch(model, small_config(lora=False))
    save_patch(model, tmp_path / "patch")
    names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert names == {"patch/patch_config.json", "patch/patch.safetensors", "patch/README.md"}


def test_a_patch_with_nan_is_not_saved_and_the_old_one_stays(tmp_path):
    model, _ = patched(CASES["llava_onevision"])
    save_patch(model, tmp_path / "patch")
    before = (tmp_path / "patch" / "patch.safetensors").read_bytes()
    with torch.no_grad():
        next(iter(model.pave_patches["default"].fusions["audio"].output_norm.parameters()))[3] = float("nan")
    with pytest.raises(ValueError, match=r"refusing to save the patch: audio\.output_norm\.weight holds NaN"):
        save_patch(model, tmp_path / "patch")
    assert (tmp_path / "patch" / "patch.safetensors").read_bytes() == before


# --- the wrong base ---------------------------------------------------------------------------------------------------


def test_the_fingerprint_survives_what_does_not_matter():
    model, processor = CASES["llava_onevision"].build()
    plain = fingerprint(model, processor)
    assert fingerprint(model, processor) == plain
    assert replace(fingerprint(model.to(torch.bfloat16), processor), model_id=None) == replace(
        fingerprint(model.float(), processor), model_id=None
    )
    attach_patch(model, small_config())
    shake(model)
    assert fingerprint(model) == replace(fingerprint(detach_patch(model)), model_id=None)


def test_a_16_bit_checkpoint_has_one_fingerprint_in_every_dtype(case, tmp_path):
    """Small values lose bits in float16, and vanish there."""
    model, _ = case.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[torch.rand(parameter.shape, generator=torch.Generator().manual_seed(0)) < 0.2] *= 1e-6
    model.bfloat16().save_pretrained(tmp_path)
    loaded = [
        AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=d) for d in (torch.float32, torch.bfloat16, torch.float16)
    ]
    assert len({fingerprint(m).weights for m in loaded}) == 1 and fingerprint(loaded[0]).weights is not None
    assert fingerprint(loaded[0]).architecture == fingerprint(model).architecture == fingerprint(loaded[2]).architecture


def layers_swapped(case):
    model, _ = case.build()
    first, second = model.model.language_model.layers
    states = [{k: v.clone() for k, v in layer.state_dict().items()} for layer in (second, first)]
    first.load_state_dict(states[0]), second.load_state_dict(states[1])
    return model


def other_rotary_base(case):
    model, _ = case.build()
    rope = model.config.get_text_config().rope_parameters
    model.config.get_text_config().rope_parameters = {**rope, "rope_theta": 7.0}
    return model


def other_epsilon(case):
    model, _ = case.build()
    model.config.get_text_config().rms_norm_eps = 0.5
    return model


def other_seed(case):
    return case.build(seed=1)[0]


def one_matrix_nudged(case):
    model, _ = case.build()
    with torch.no_grad():
        dict(model.named_parameters())["model.language_model.layers.1.mlp.down_proj.weight"].mul_(1.05)
    return model


def wider(case):
    return case.build(intermediate_size=96)[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (other_seed, "other weights"),
        (one_matrix_nudged, "other weights"),
        (layers_swapped, "other weights"),
        (other_rotary_base, "text_config.rope_parameters.rope_theta 10000.0 against 7.0"),
        (other_epsilon, "text_config.rms_norm_eps 1e-0"),
        (wider, "text_config.intermediate_size 64 against 96"),
    ],
)
def test_another_base_is_refused_and_the_override_says_so(case, change, says, tmp_path, caplog):
    model, _ = patched(case)
    save_patch(model, tmp_path / "patch")
    other = change(case)
    with pytest.raises(ValueError, match=rf"trained on another base .* differs in: {says}"):
        load_patch(other, tmp_path / "patch")
    assert not is_patched(other)
    if change is wider:
        return  # the tensors do not fit; the next test
    load_patch(other, tmp_path / "patch", allow_base_mismatch=True)
    assert is_patched(other) and says in caplog.text and "Loading it all the same" in caplog.text


@pytest.mark.parametrize("side", ["recorded", "found"])
def test_weights_that_cannot_be_compared_are_said(side, tmp_path, caplog):
    case = CASES["llava_onevision"]
    model, _ = patched(case)
    folder = save_patch(model, tmp_path / "patch")
    base, _ = case.build()
    load_patch(base, folder)
    assert "could not be compared" not in caplog.text
    detach_patch(base)
    if side == "recorded":
        edit_config(folder, lambda v: v["base"].update(weights=None, unquantised_weights=None))
        resign(folder)
    else:
        base.lm_head.to("meta")
    load_patch(base, folder)
    assert "weights could not be compared" in caplog.text


def test_overriding_never_loads_tensors_that_do_not_fit(tmp_path):
    case = CASES["llava_onevision"]
    model, _ = patched(case)
    save_patch(model, tmp_path / "patch")
    other = wider(case)
    flags = [p.requires_grad for p in other.parameters()]
    with pytest.raises(ValueError, match=r"down_proj\.lora_A\.weight has shape \(2, 64\), this base and config need \(2, 96\)"):
        load_patch(other, tmp_path / "patch", allow_base_mismatch=True)
    assert not is_patched(other) and [p.requires_grad for p in other.parameters()] == flags


def test_another_tokenizer_or_template_is_refused(tmp_path):
    case = CASES["llava_onevision"]
    model, processor = patched(case)
    save_patch(model, tmp_path / "patch", processor=processor)
    base, other = case.build()
    other.chat_template = other.chat_template + " "
    with pytest.raises(ValueError, match="differs in: another chat template"):
        load_patch(base, tmp_path / "patch", processor=other)
    _, other = case.build()
    other.tokenizer.add_tokens(["<new>"])
    with pytest.raises(ValueError, match="differs in: tokenizer added_tokens is another"):
        load_patch(base, tmp_path / "patch", processor=other)
    load_patch(base, tmp_path / "patch")  # not compared when no processor is given


# --- broken files -----------------------------------------------------------------------------------------------------


def edit_config(folder: Path, change) -> None:
    path = folder / "patch_config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def edit_tensors(file: Path, change) -> None:
    tensors = safetensors.torch.load_file(file)
    change(tensors)
    safetensors.torch.save_file(tensors, file)


def edit_adapter(folder: Path, **values) -> None:
    path = folder / ADAPTER
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


FUSION, LORA, ADAPTER = "patch.safetensors", "lora/adapter_model.safetensors", "lora/adapter_config.json"
A_NORM = "audio.output_norm.weight"

BROKEN = {
    "no config": (lambda d: (d / "patch_config.json").unlink(), "is no patch: it has no patch_config.json"),
    "not json": (lambda d: (d / "patch_config.json").write_text("{"), "patch_config.json: not JSON"),
    "newer": (
        lambda d: edit_config(d, lambda v: v.update(format_version=4)),
        "format_version 4 is not 3, the one this library reads",
    ),
    "before signing": (
        lambda d: edit_config(d, lambda v: v.update(format_version=2)),
        "format_version 2 does not bind the files of a patch together, .*pave sign ",
    ),
    "a list": (lambda d: (d / "patch_config.json").write_text("[]"), "format_version None is not 3"),
    "unknown key": (
        lambda d: edit_config(d, lambda v: v["patch"].update(loras=None)),
        "unknown key 'patch.loras'; did you mean 'patch.lora'",
    ),
    "bad value": (
        lambda d: edit_config(d, lambda v: v["patch"]["side_channels"]["audio"]["fusion"].update(alignment="times")),
        r"patch\.side_channels\.audio\.fusion\.alignment: Input should be 'timestamps' or 'index', got 'times'",
    ),
    "no fusion": (lambda d: (d / FUSION).unlink(), "patch.safetensors is missing"),
    "no lora": (lambda d: (d / LORA).unlink(), "adapter_model.safetensors is missing"),
    "cut off": (lambda d: (d / FUSION).write_bytes((d / FUSION).read_bytes()[:-40]), "not a complete safetensors file"),
    "empty": (lambda d: (d / LORA).write_bytes(b""), "not a complete safetensors file"),
    "pickle": (lambda d: torch.save({"a": 1}, d / FUSION), "not a complete safetensors file"),
    "one missing": (lambda d: edit_tensors(d / FUSION, lambda t: t.pop(A_NORM)), f"1 tensor.s. missing, the first is {A_NORM}"),
    "one extra": (
        lambda d: edit_tensors(d / LORA, lambda t: t.update(more=torch.zeros(1))),
        "1 unexpected tensor.s., the first is more",
    ),
    "shape": (
        lambda d: edit_tensors(d / FUSION, lambda t: t.update({A_NORM: torch.zeros(31)})),
        rf"{A_NORM} has shape \(31,\), this base and config need \(32,\)",
    ),
    "nan": (lambda d: edit_tensors(d / FUSION, lambda t: t[A_NORM].fill_(float("nan"))), f"{A_NORM} holds NaN or infinity"),
    "declared without lora": (lambda d: edit_config(d, lambda v: v["patch"].update(lora=None)), "says the patch has no LoRA"),
    "declared deeper": (
        lambda d: edit_config(d, lambda v: v["patch"]["side_channels"]["audio"]["fusion"].update(num_layers=3)),
        "tensor.s. missing, the first is audio.layers.2",
    ),
    "declared huge": (
        lambda d: edit_config(d, lambda v: v["patch"]["side_channels"]["audio"]["fusion"].update(width=2048)),
        r"has shape \(16, 32\), this base and config need \(2048, 32\)",
    ),
    "declared impossible": (
        lambda d: edit_config(d, lambda v: v["patch"]["side_channels"]["audio"]["fusion"].update(width=10**12)),
        "width must be at most 65,536",
    ),
    "declared without end": (
        lambda d: edit_config(d, lambda v: v["patch"]["side_channels"]["audio"]["fusion"].update(num_layers=250)),
        "holds 30 tensors, too few for 250 layers",
    ),
    "declared rank": (
        lambda d: [edit_config(d, lambda v: v["patch"]["lora"].update(rank=4096)), edit_adapter(d, r=4096)],
        r"lora_A\.weight has shape \(2, \d+\), patch_config.json says rank 4096",
    ),
    "declared infinite": (
        lambda d: [edit_config(d, lambda v: v["patch"]["lora"].update(alpha=float("inf"))), edit_adapter(d, lora_alpha=1e400)],
        "Infinity is no number of JSON",
    ),
    "another alpha for peft": (lambda d: edit_adapter(d, lora_alpha=8.0), "lora_alpha is 8.0, but the patch was made with 4.0"),
    "another rank of a kind for peft": (
        lambda d: edit_adapter(d, rank_pattern={"q_proj": 1}),
        "rank_pattern is {'q_proj': 1}, but the patch was made with {}",
    ),
    "dora for peft": (lambda d: edit_adapter(d, use_dora=True), "use_dora is True, but the patch was made with False"),
    "rslora for peft": (lambda d: edit_adapter(d, use_rslora=True), "use_rslora is True, but the patch was made with False"),
    "patterns no mapping": (
        lambda d: edit_adapter(d, rank_pattern=[3]),
        r"rank_pattern is \[3\], but the patch was made with {}",
    ),
    "another rank for peft": (lambda d: edit_adapter(d, r=3), "r is 3, but the patch was made with 2"),
    "no config for peft": (lambda d: (d / ADAPTER).unlink(), "adapter_config.json is missing"),
    "not a config for peft": (
        lambda d: (d / ADAPTER).write_text("[]"),
        "adapter_config.json: a JSON object in braces is needed",
    ),
    "nested without end": (
        lambda d: (d / "patch_config.json").write_text('{"provenance":' + "[" * 10**5 + "]" * 10**5 + "}"),
        "patch_config.json: not JSON: .* nested too deeply",
    ),
    "version true": (lambda d: edit_config(d, lambda v: v.update(format_version=True)), "format_version True is not 3"),
    "a path for a name": (
        lambda d: edit_config(d, lambda v: v.update(name="../x")),
        r"must be a Python identifier, got '\.\./x'",
    ),
    "a taken name": (lambda d: edit_config(d, lambda v: v.update(name="keys")), "name of a patch or channel is taken by torch"),
    "huge header": (lambda d: (d / FUSION).write_bytes(b"\xff" * 7 + b"\x0f{}"), "not a complete safetensors file"),
    "a link to elsewhere": (
        lambda d: [(d / FUSION).unlink(), (d / FUSION).symlink_to(__file__)],
        "not a complete safetensors file",
    ),
    **{
        f"stored as {dtype}": (
            lambda d, file=file, dtype=dtype: edit_tensors(
                d / file, lambda t: t.update({k: v.to(dtype) for k, v in t.items()})
            ),
            f"is stored as {str(dtype).removeprefix('torch.')}; a patch holds float32, bfloat16 or float16",
        )
        for file, dtype in ((FUSION, torch.int8), (LORA, torch.bool), (FUSION, torch.float8_e4m3fn), (LORA, torch.complex64))
    },
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_by_name_and_the_base_stays_clean(name, tmp_path):
    breaking, message = BROKEN[name]
    case = CASES["llava_onevision"]
    model, _ = patched(case)
    folder = save_patch(model, tmp_path / "patch")
    breaking(folder)
    base, processor = case.build()
    with pytest.raises(ValueError, match="patch_config.json|is missing|is not the file that"):
        load_patch(base, folder)
    if name not in ("no config", "not json", "a list", "nested without end"):
        resign(folder)  # the hashes are right then, and what is wrong is found all the same
    batch = case.batch(processor)
    batch.pop("frame_times")
    with torch.no_grad():
        expected = base(**batch).logits
    with pytest.raises(ValueError, match=message) as caught:
        load_patch(base, folder)
    assert str(tmp_path) in str(caught.value)
    assert not is_patched(base) and all(p.requires_grad for p in base.parameters())
    with torch.no_grad():
        assert torch.equal(base(**batch).logits, expected)


def test_tensors_of_another_config_are_not_loaded(tmp_path):
    """Same tensors, other meaning: the number of heads shows in no shape."""
    model, _ = patched(CASES["llava_onevision"])
    folder = save_patch(model, tmp_path / "patch")
    edit_config(folder, lambda v: v["patch"]["side_channels"]["audio"]["fusion"].update(num_heads=4))
    resign(folder)
    with pytest.raises(ValueError, match=r"another config .*side_channels\.audio\.fusion\.num_heads is 4 there and 2 here"):
        load_tensors(model, folder)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="no patch at .*nowhere.*: there is no such folder, and the hub did not give it"):
        load_patch(CASES["llava_onevision"].build()[0], tmp_path / "nowhere")


def test_configs_read_back_what_they_wrote():
    for config in (PatchConfig.compact(audio=128, depth=7), PatchConfig.paper(audio=1024), small_config(gate=True)):
        assert PatchConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_card_names_base_channels_and_sizes(tmp_path):
    model, _ = patched(CASES["llava_onevision"])
    text = (save_patch(model, tmp_path / "patch") / "README.md").read_text()
    fusion = sum(p.numel() for p in model.pave_patches.parameters())
    assert text.startswith("---\nlibrary_name: pave\n") and "| audio | audio | log_mel | 12 |" in text
    assert f"- fusion: {fusion:,} parameters, {fusion * 4 / 1e6:.2f} MB" in text


def test_the_example_on_the_card_runs_as_it_is_printed(tmp_path, monkeypatch):
    """Of a patch for the small base inside the package, whose name means nothing to transformers."""
    from pave.video_llms.loading import load_base

    model, processor = load_base("playground")
    config = PatchConfig.compact(audio=64)
    text = (save_patch(attach_patch(model, config), tmp_path / "patch", processor=processor) / "README.md").read_text()
    assert "A patch for `playground`, the small Video LLM inside pave (llava_onevision)" in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path / "patch")
    names = {}
    exec(code, names)
    assert is_patched(names["model"]) and names["model"].patch_config == config
    assert "pip install ." in text and "pave-video" not in text


def test_the_card_of_a_base_in_a_folder_names_it_and_says_where_it_was(tmp_path):
    model, processor = CASES["llava_onevision"].build()
    model.save_pretrained(tmp_path / "my-base"), processor.save_pretrained(tmp_path / "my-base")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "my-base")
    text = (save_patch(attach_patch(model, small_config()), tmp_path / "patch") / "README.md").read_text()
    assert f"A patch for `my-base` (llava_onevision), which was the folder `{tmp_path / 'my-base'}` on the computer" in text
    assert "base_model" not in text.split("---")[1]


def test_pushing_uploads_what_saving_writes(monkeypatch):
    """The hub's client is the one thing here that cannot run offline; everything up to its two calls is real."""
    import huggingface_hub

    seen = {}

    class Api(huggingface_hub.HfApi):
        def create_repo(self, repo_id, **kwargs):
            return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

        def upload_folder(self, *, repo_id, folder_path, commit_message, **kwargs):
            seen.update({str(p.relative_to(folder_path)): p.read_bytes() for p in Path(folder_path).rglob("*") if p.is_file()})
            return type("Commit", (), {"commit_url": f"https://huggingface.co/{repo_id}/commit/1"})()

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    model, _ = patched(CASES["llava_onevision"])
    assert push_patch_to_hub(model, "someone/patch").endswith("someone/patch/commit/1")
    assert set(seen) == {"patch_config.json", FUSION, LORA, ADAPTER, "README.md"}
