"""Smaller patches: cut updates against a whole singular value decomposition, packed matrices against their definition."""

from __future__ import annotations

import json
from dataclasses import replace

import peft
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file

from cases import CASES, patched, side_tokens, small_config
from pave import LoraSettings, PatchConfig, load_patch, save_patch
from pave.config import LORA_LINEARS
from pave.patching import load_tensors, lora, patch_slot, read_record
from pave.patching.compress import compress_patch, reduced_ranks, with_ranks, write_compressed
from pave.patching.convert import export_patch
from pave.patching.cost import patch_cost
from pave.patching.storage import pack, parameter_count, stored_bytes, tensor_bytes, unpack
from pave.video_llms.known import load_config
from signing import resign

CASE = CASES["llava_onevision"]
TARGETS = ("q_proj", "v_proj", "down_proj")
BY_KIND = LoraSettings(rank=6, ranks={"q_proj": 3}, alpha=5.0, alphas={"down_proj": 9.0}, targets=TARGETS)
VARIANTS = {
    "plain": BY_KIND,
    "rslora": replace(BY_KIND, use_rslora=True),
    "dora": replace(BY_KIND, use_dora=True),
}


def saved(folder, settings=BY_KIND, dtype="float32", missing_channel="lora_only", **fusion):
    """(folder of a trained patch, model, batch)"""
    config = replace(small_config(missing_channel=missing_channel, **fusion), lora=settings, storage_dtype=dtype)
    model, processor = patched(CASE, config)
    save_patch(model, folder, processor=processor, provenance={"seed": 3})
    return folder, model, CASE.batch(processor)


def logits(model, batch, side=True):
    more = {"side_channels": {"audio": side_tokens()}} if side else {}
    with torch.no_grad():
        return model(**batch, **more).logits


def reloaded(folder):
    return load_patch(CASE.build()[0], folder)


def updates(folder):
    """scale * B @ A of every layer, in float64, from the files alone."""
    settings = read_record(folder).patch.lora
    tensors = load_file(folder / "lora" / "adapter_model.safetensors")
    out = {}
    for key in [k for k in tensors if k.endswith("lora_A.weight")]:
        module = lora.module_of(key)
        up = tensors[key.replace("lora_A", "lora_B")].double()
        out[module] = settings.scale_of(module.rsplit(".", 1)[-1]) * up @ tensors[key].double()
    return out


# --- LoRA


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("rank", [2, {"down_proj": 4, "v_proj": 1}])
def test_a_cut_update_is_the_best_of_its_rank(name, rank, tmp_path):
    folder, _, _ = saved(tmp_path / "patch", VARIANTS[name])
    made = compress_patch(folder, lora_rank=rank)
    small = write_compressed(made, tmp_path / "small")
    before, after = updates(folder), updates(small)
    wanted = dict.fromkeys(TARGETS, rank) if isinstance(rank, int) else {"q_proj": 3, **rank}
    assert before.keys() == after.keys()
    for module, whole in before.items():
        kind = module.rsplit(".", 1)[-1]
        u, s, vh = torch.linalg.svd(whole, full_matrices=False)
        best = (u[:, : wanted[kind]] * s[: wanted[kind]]) @ vh[: wanted[kind]]
        torch.testing.assert_close(after[module], best, atol=2e-6, rtol=1e-5)
        if wanted[kind] < VARIANTS[name].rank_of(kind):
            lost = float((s[wanted[kind] :].square().sum() / s.square().sum()).sqrt())
            assert made.errors[f"lora {module}"] == pytest.approx(lost, rel=1e-4) and lost > 0.01
        else:
            assert f"lora {module}" not in made.errors
    for kind in TARGETS:
        settings = read_record(small).patch.lora
        assert settings.rank_of(kind) == wanted[kind]
        assert settings.scale_of(kind) == pytest.approx(VARIANTS[name].scale_of(kind), rel=1e-15)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_smaller_patch_computes_what_its_tensors_say_also_in_peft(name, tmp_path):
    """In place of the factors the very matrix that they should multiply to: the patch of full rank holds it as well."""
    folder, model, batch = saved(tmp_path / "patch", VARIANTS[name])
    write_compressed(compress_patch(folder, lora_rank={"down_proj": 2, "q_proj": 1}), tmp_path / "small")
    small = reloaded(tmp_path / "small")
    with torch.no_grad():
        for key, value in lora.state_dict(model, "default").items():
            module = key.split(".lora_")[0].removeprefix("base_model.model.")
            kind = module.rsplit(".", 1)[-1]
            rank = {"down_proj": 2, "q_proj": 1}.get(kind)
            if rank is None or not key.endswith("lora_A.weight"):
                continue
            up = lora.state_dict(model, "default")[key.replace("lora_A", "lora_B")]
            u, s, vh = torch.linalg.svd(up @ value, full_matrices=False)
            up.zero_(), value.zero_()
            up[:, :rank], value[:rank] = u[:, :rank] * s[:rank], vh[:rank]
    expected = logits(model, batch)
    torch.testing.assert_close(logits(small, batch), expected, atol=2e-5, rtol=2e-5)
    assert not torch.allclose(logits(reloaded(folder), batch), expected, atol=1e-3)
    without_side = logits(small, batch, side=False)
    batch.pop("frame_times")
    plain = peft.PeftModel.from_pretrained(CASE.build()[0], tmp_path / "small" / "lora").eval()
    torch.testing.assert_close(logits(plain, batch, side=False), without_side, atol=1e-5, rtol=1e-5)


def test_energy_chooses_the_smallest_rank_of_each_kind(tmp_path):
    folder, model, _ = saved(tmp_path / "patch")
    with torch.no_grad():
        for key, value in lora.state_dict(model, "default").items():
            if key.endswith("v_proj.lora_B.weight"):
                value[:, 1:] *= 1e-3  # all but one direction is almost nothing
    save_patch(model, folder)
    for energy in (0.5, 0.9, 0.99, 1.0):
        made = compress_patch(folder, lora_energy=energy)
        squares = {}
        for module, whole in updates(folder).items():
            kind = module.rsplit(".", 1)[-1]
            squares[kind] = squares.get(kind, 0) + torch.linalg.svdvals(whole).square()
        for kind, values in squares.items():
            rank = made.record.patch.lora.rank_of(kind)
            assert values[:rank].sum() >= energy * values.sum() * (1 - 1e-9)
            assert rank == 1 or values[: rank - 1].sum() < energy * values.sum()
        if energy == 0.99:
            assert made.ranks["v_proj"] == (6, 1)
    assert compress_patch(folder, lora_energy=1.0).errors == {}


def test_a_fresh_patch_is_cut_to_nothing(tmp_path):
    model, _ = patched(CASE, replace(small_config(), lora=BY_KIND), trained=False)
    save_patch(model, tmp_path / "patch")
    made = compress_patch(tmp_path / "patch", lora_energy=0.99)
    assert {made.record.patch.lora.rank_of(kind) for kind in TARGETS} == {1}
    assert set(made.errors.values()) == {0.0}


def test_a_rank_above_a_layers_width_is_cut_too(tmp_path):
    """More directions than the layer has: those that are not there are zero."""
    settings = LoraSettings(rank=80, targets=("v_proj",))
    folder, _, _ = saved(tmp_path / "patch", settings)
    write_compressed(compress_patch(folder, lora_rank=40), tmp_path / "small")
    before, after = updates(folder), updates(tmp_path / "small")
    for module, whole in before.items():
        torch.testing.assert_close(after[module], whole, atol=1e-4, rtol=1e-5)
    assert all(torch.isfinite(value).all() for value in lora.state_dict(reloaded(tmp_path / "small"), "default").values())


def test_dora_keeps_its_lengths(tmp_path):
    folder, _, _ = saved(tmp_path / "patch", VARIANTS["dora"], dtype="bfloat16")
    write_compressed(compress_patch(folder, lora_rank=1), tmp_path / "small")
    before, after = (load_file(f / "lora" / "adapter_model.safetensors") for f in (folder, tmp_path / "small"))
    lengths = [key for key in before if key.endswith("magnitude_vector")]
    assert len(lengths) == 6 and all(torch.equal(before[key], after[key]) for key in lengths)
    assert {after[key].dtype for key in lengths} == {torch.float32}


# --- packed matrices


@pytest.mark.parametrize(("storage", "top"), [("8bit", 127), ("4bit", 7)])
@pytest.mark.parametrize("shape", [(3, 5), (16, 64), (7, 9, 5), (1, 65)])
def test_packing_is_its_definition_element_by_element(storage, top, shape):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=generator) * torch.rand(shape, generator=generator) ** 4
    matrix.view(-1)[:2] = 0
    stored = pack({"m": matrix, "bias": matrix.flatten()}, storage, torch.bfloat16)
    assert set(stored) == {"m.codes", "m.scales", "m.shape", "bias"}
    found = unpack(stored, storage, "here")
    assert torch.equal(found["bias"], matrix.flatten().bfloat16())
    flat = matrix.flatten().tolist()
    expected = []
    for start in range(0, len(flat), 64):
        block = flat[start : start + 64]
        scale = float(torch.tensor(max(map(abs, block)) / top).bfloat16())
        expected += [max(-top, min(top, round(value / scale))) * scale for value in block]
    torch.testing.assert_close(found["m"].flatten(), torch.tensor(expected), atol=0, rtol=0)
    assert found["m"].dtype == torch.float32 and found["m"].shape == matrix.shape
    largest = max(abs(a - b) for a, b in zip(flat, expected, strict=True))
    assert largest <= max(map(abs, flat)) / top * 0.51
    named = {"m": matrix, "bias": matrix.flatten()}
    assert stored_bytes(named, storage, torch.bfloat16) == tensor_bytes(stored)
    assert parameter_count(stored) == 2 * matrix.numel()


def test_what_packing_leaves_alone():
    """Zeros, values that are integers of the scale, and float32 for measured features."""
    exact = torch.arange(-7, 8.0).repeat(4).view(4, 15) * 0.5
    stored = pack({"m": exact, "z": torch.zeros(2, 3), "a.standardize.mean_C": torch.full((3,), 1000.1)}, "4bit", torch.float16)
    found = unpack(stored, "4bit", "here")
    assert torch.equal(found["m"], exact) and torch.equal(found["z"], torch.zeros(2, 3))
    assert torch.equal(found["a.standardize.mean_C"], torch.full((3,), 1000.1))
    with pytest.raises(ValueError, match="refusing to save the patch: m holds NaN"):
        pack({"m": exact / 0}, "4bit", torch.float16)


@pytest.mark.parametrize("storage", ["8bit", "4bit"])
@pytest.mark.parametrize("name", CASES)
def test_a_packed_patch_is_an_ordinary_patch(name, storage, tmp_path):
    case = CASES[name]
    config = replace(small_config(gate=True, standardize=True, query_source="pre_projector"), storage_dtype="bfloat16")
    model, processor = patched(case, config)
    batch = case.batch(processor)
    save_patch(model, tmp_path / "patch", processor=processor)
    made = compress_patch(tmp_path / "patch", fusion=storage)
    small = write_compressed(made, tmp_path / "small")
    loaded = load_patch(case.build()[0], small, processor=processor)
    state = patch_slot(loaded).fusions.state_dict()
    plain = load_file(tmp_path / "patch" / "patch.safetensors")
    expected = unpack(pack(plain, storage, torch.bfloat16), storage, "here")
    assert state.keys() == expected.keys() == plain.keys()
    assert all(torch.equal(state[key], expected[key].float()) for key in state)
    matrices = {key for key, value in plain.items() if value.ndim > 1}
    assert set(made.errors) == matrices
    for key, value in plain.items():
        off = float((state[key] - value.float()).norm())
        assert off == (pytest.approx(made.errors[key] * float(value.float().norm()), rel=1e-4) if key in matrices else 0), key
    low, high = (0.001, 0.02) if storage == "8bit" else (0.03, 0.2)
    assert all(low < error < high for error in made.errors.values())
    load_tensors(model, small)
    assert torch.equal(logits(model, batch), logits(loaded, batch))
    cost = patch_cost(model.config, read_record(small).patch, fusion_storage=storage)
    assert cost.fusion_bytes == made.bytes_after["fusion"] == tensor_bytes(load_file(small / "patch.safetensors"))
    assert cost.lora_bytes == made.bytes_after["lora"] and cost.patch_bytes < tensor_bytes(plain) + cost.lora_bytes
    save_patch(loaded, tmp_path / "plain")
    again = load_patch(case.build()[0], tmp_path / "plain")
    assert read_record(tmp_path / "plain").fusion_storage == "plain"
    assert all(torch.equal(value, state[key].bfloat16().float() if ".standardize." not in key else state[key])
               for key, value in patch_slot(again).fusions.state_dict().items())  # fmt: skip
    export_patch(small, tmp_path / "out")
    exported = load_file(tmp_path / "out" / "fusion.safetensors")
    assert exported.keys() == state.keys() and all(torch.equal(exported[key].float(), state[key]) for key in state)


def test_compressing_again_leaves_the_rest_as_it_is(tmp_path):
    folder, _, _ = saved(tmp_path / "patch")
    once = write_compressed(compress_patch(folder, fusion="8bit"), tmp_path / "once")
    twice = write_compressed(compress_patch(once, lora_rank=2), tmp_path / "twice")
    assert (once / "patch.safetensors").read_bytes() == (twice / "patch.safetensors").read_bytes()
    direct = write_compressed(compress_patch(folder, fusion="8bit", lora_rank=2), tmp_path / "direct")
    for file in ("patch.safetensors", "lora/adapter_model.safetensors", "lora/adapter_config.json"):
        assert (twice / file).read_bytes() == (direct / file).read_bytes()
    assert compress_patch(once, fusion="4bit").record.fusion_storage == "4bit"


def edit(file, **parts):
    tensors = load_file(file)
    for name, change in parts.items():
        key = f"audio.query_embed.weight.{name}"
        tensors[key] = change(tensors[key])
    safetensors.torch.save_file({key: value.contiguous() for key, value in tensors.items() if value is not None}, file)


def first(value):
    def change(tensor):
        out = tensor.clone()
        out.view(-1)[0] = value
        return out

    return change


BROKEN = {
    "scale nan": ({"scales": first(float("nan"))}, "query_embed.weight.scales holds a scale that is negative, NaN or infinite"),
    "scale infinite": ({"scales": first(float("inf"))}, "scales holds a scale that is negative, NaN or infinite"),
    "scale negative": ({"scales": first(-1.0)}, "scales holds a scale that is negative, NaN or infinite"),
    "scales short": ({"scales": lambda t: t[1:]}, r"scales is bfloat16 of shape \(7,\), but 512 elements need bfloat16 of shape \(8,\)"),
    "scales float32": ({"scales": lambda t: t.float()}, r"scales is float32 of shape \(8,\), but 512 elements need bfloat16"),
    "no scales": ({"scales": lambda t: None}, "query_embed.weight.scales is missing, but the patch stores its matrices in"),
    "no codes": ({"codes": lambda t: None}, "query_embed.weight.scales is stored as|shape is stored as int64"),
    "codes short": ({"codes": lambda t: t[1:]}, "codes is .*, but a matrix of shape "),
    "codes of another type": ({"codes": lambda t: t.view(torch.bool) if t.dtype == torch.bool else t.to(torch.int32)}, "codes is int32"),
    "a code never written": ({"codes": lambda t: first(-128 if t.dtype == torch.int8 else 0)(t)}, "holds an integer below -"),
    "shape of nothing": ({"shape": first(0)}, "shape is no shape of a matrix"),
    "shape negative": ({"shape": lambda t: -t}, "shape is no shape of a matrix"),
    "shape turned": ({"shape": lambda t: t.flip(0)}, r"codes is .*but a matrix of|has shape \(32, 16\), this base and config need"),
    "shape huge": ({"shape": lambda t: t * 10**9}, "codes is .*, but a matrix of shape "),
    "shape float": ({"shape": lambda t: t.float()}, "shape is no shape of a matrix"),
}  # fmt: skip


@pytest.mark.parametrize("storage", ["8bit", "4bit"])
def test_damage_is_refused_by_name(storage, tmp_path):
    folder, _, _ = saved(tmp_path / "patch", settings=None)
    base, _ = CASE.build()
    for name, (parts, message) in BROKEN.items():
        small = write_compressed(compress_patch(folder, fusion=storage), tmp_path / "small")
        edit(small / "patch.safetensors", **parts)
        resign(small)
        with pytest.raises(ValueError, match=message) as caught:
            load_patch(base, small)
            pytest.fail(name)
        assert "patch.safetensors" in str(caught.value), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fusion_storage": "4bit"}, r"codes is int8 of shape .* in 4bit needs uint8"),
        ({"fusion_storage": "plain"}, r"is stored as int\d+; a patch holds float32"),
        ({"fusion_storage": "2bit"}, "fusion_storage: Input should be 'plain', '8bit' or '4bit', got '2bit'"),
    ],
)
def test_a_record_of_another_storage_is_refused(change, message, tmp_path):
    folder, _, _ = saved(tmp_path / "patch", settings=None)
    small = write_compressed(compress_patch(folder, fusion="8bit"), tmp_path / "small")
    values = json.loads((small / "patch_config.json").read_text())
    (small / "patch_config.json").write_text(json.dumps({**values, **change}))
    resign(small)
    with pytest.raises(ValueError, match=message):
        load_patch(CASE.build()[0], small)


# --- what is recorded, and what is refused


def test_the_record_and_the_card_say_what_was_done(tmp_path):
    folder, _, _ = saved(tmp_path / "patch")
    made = compress_patch(folder, lora_rank=2, fusion="4bit")
    small = write_compressed(made, tmp_path / "small", measured={"sentence": "accuracy on 3 samples: no matter"})
    record = read_record(small)
    done = record.provenance["compressed"]
    assert record.provenance["seed"] == 3 and record.fusion_storage == "4bit"
    assert done["lora_ranks"] == {"q_proj": [3, 2], "v_proj": [6, 2], "down_proj": [6, 2]}
    assert done["bytes_before"] == sum(map(tensor_bytes, map(load_file, folder.rglob("*.safetensors"))))
    assert done["bytes_after"] == sum(map(tensor_bytes, map(load_file, small.rglob("*.safetensors"))))
    text = (small / "README.md").read_text()
    count = parameter_count(load_file(folder / "patch.safetensors"))
    assert f"- fusion: {count:,} parameters, {made.bytes_after['fusion'] / 1e6:.2f} MB" in text
    assert "(rank of q_proj 3 to 2, v_proj 6 to 2, down_proj 6 to 2)" in text
    assert "blocks of 4-bit integers" in text and "accuracy on 3 samples: no matter" in text


def test_nothing_is_written_over_the_patch_or_around_it(tmp_path):
    folder, _, _ = saved(tmp_path / "some" / "patch")
    made = compress_patch(folder, lora_rank=1)
    (tmp_path / "link").symlink_to(folder)
    before = sorted((str(p), p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    for out in (folder, tmp_path / "link", folder / "small", tmp_path / "some", tmp_path):
        with pytest.raises(ValueError, match="are one folder or inside each other; write to another folder"):
            write_compressed(made, out)
    assert sorted((str(p), p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before


def test_what_cannot_be_compressed_is_said(tmp_path):
    folder, model, _ = saved(tmp_path / "patch")
    bare, _, _ = saved(tmp_path / "bare", settings=None)
    packed = write_compressed(compress_patch(folder, fusion="4bit"), tmp_path / "packed")
    for source, options, message in (
        (folder, {}, "say what to compress"),
        (bare, {"lora_rank": 1}, "has no LoRA to compress"),
        (folder, {"lora_rank": 6}, "no LoRA update has a higher rank than asked for"),
        (folder, {"lora_rank": 0}, "a LoRA rank is at least 1, got 0"),
        (folder, {"lora_rank": {"q_proj": 4}}, "q_proj has rank 3, which cannot be cut to 4"),
        (folder, {"lora_rank": {"o_proj": 1}}, "there is no LoRA on 'o_proj'; it is on q_proj, v_proj, down_proj"),
        (folder, {"lora_rank": 2, "lora_energy": 0.9}, "by rank or by energy; give one of the two"),
        (folder, {"lora_energy": 0.0}, "energy is a share, above 0 and at most 1, got 0.0"),
        (packed, {"fusion": "8bit"}, "stored in 4bit already, 8bit would not make it smaller"),
        (packed, {"fusion": "4bit"}, "stored in 4bit already"),
        (folder, {"fusion": "plain"}, "to compress is to store in 8bit or 4bit"),
    ):
        with pytest.raises(ValueError, match=message):
            compress_patch(source, **options)
    file = folder / "lora" / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if key.endswith("lora_B.weight"))
    safetensors.torch.save_file({k: v for k, v in tensors.items() if k != key}, file)
    resign(folder)
    with pytest.raises(ValueError, match=rf"the adapter is incomplete: {key} is missing"):
        compress_patch(folder, lora_rank=1)


# --- a whole 7B patch in 20 MB


@pytest.mark.parametrize(
    ("rank", "fusion", "megabytes"),
    [
        (3, "4bit", 19.664),
        (2, "8bit", 18.845),
        (dict.fromkeys(LORA_LINEARS, 1) | {"q_proj": 8, "v_proj": 16, "o_proj": 8}, "4bit", 18.632),
    ],
)  # fmt: skip
def test_the_published_sizes_come_down_to_20_megabytes(rank, fusion, megabytes):
    """On the real configuration of the 7B base, by the shapes of the real modules; files add about 0.1 MB of names."""
    paper, base = PatchConfig.paper(audio=1024), load_config("llava-onevision-qwen2-7b")
    whole = patch_cost(base, paper)
    assert whole.patch_bytes / 1e6 == pytest.approx(339.9, abs=0.01)
    cut = replace(paper, lora=with_ranks(paper.lora, reduced_ranks(paper.lora, rank, "here")))
    cost = patch_cost(base, cut, fusion_storage=fusion)
    assert cost.patch_bytes / 1e6 == pytest.approx(megabytes, abs=0.001) and cost.patch_bytes <= 19.9e6
    assert cost.fusion_parameters == whole.fusion_parameters
    assert all(cut.lora.scale_of(kind) == paper.lora.scale_of(kind) for kind in LORA_LINEARS)
