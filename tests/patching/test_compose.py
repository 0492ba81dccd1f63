"""Patches composed: one folder that computes what its parts do together, and what one patch cannot hold is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from cases import CASES, patched, shake, side_tokens, small_config
from pave import LoraSettings, load_patch, save_patch
from pave.config import FusionConfig, PatchConfig
from pave.patching import read_record
from pave.patching.checkpoint import read_files
from pave.patching.compose import compose_patches, write_composed
from pave.patching.knots import knots
from signing import resign

CASE = CASES["llava_onevision"]
QUERY_VALUE = ("q_proj", "v_proj")


def saved(folder, channel, seed, lora, fusion=None, **changes):
    """A patch of one channel that acts, saved under the name of its folder."""
    small = small_config()
    audio = small.side_channels["audio"]
    audio = audio if fusion is None else replace(audio, fusion=replace(audio.fusion, **fusion))
    config = replace(small, side_channels={channel: audio} if channel else {}, lora=lora, **changes)
    model, processor = patched(CASE, config, trained=False)
    save_patch(shake(model, seed, 0.2), folder, processor=processor)
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Two patches whose updates have other ranks, other scales (one of them by rsLoRA) and other layers."""
    root = tmp_path_factory.mktemp("parts")
    one = saved(root / "one", "audio", 3, LoraSettings(rank=2, ranks={"v_proj": 3}, alpha=4.0, targets=QUERY_VALUE))
    rslora = LoraSettings(rank=4, alpha=10.0, targets=("v_proj", "q_proj", "down_proj"), use_rslora=True)
    return {"one": one, "other": saved(root / "other", "sensor", 4, rslora)}


def composed(parts, out, **how):
    return write_composed(compose_patches(parts, **how), out)


def deltas(folder):
    """``scale B A`` of every layer, in float64."""
    record = read_record(folder)
    tensors = read_files(folder, record).adapter or {}
    out = {}
    for key in tensors:
        if key.endswith("lora_A.weight"):
            name = key.removesuffix(".lora_A.weight")
            scale = record.patch.lora.scale_of(name.rpartition(".")[2])
            out[name] = scale * tensors[f"{name}.lora_B.weight"].double() @ tensors[key].double()
    return out


def loaded(**patches):
    model, processor = CASE.build()
    for name, folder in patches.items():
        load_patch(model, folder, name=name, processor=processor)
    return model, CASE.batch(processor)


def logits(model, batch, sides, **call):
    with torch.no_grad():
        return model(**batch, side_channels=sides, **call).logits


# --- the sum


def test_updates_and_fusions_are_the_sums(parts, tmp_path):
    first, second, total = (deltas(folder) for folder in (*parts.values(), composed(parts, tmp_path / "sum")))
    assert set(total) == set(first) | set(second) and len(first) < len(second)
    for name, value in total.items():
        torch.testing.assert_close(value, first.get(name, 0.0) + second[name], rtol=1e-6, atol=1e-7)
        assert float(second[name].abs().max()) > 0.01
    record = read_record(tmp_path / "sum")
    lora = record.patch.lora
    assert {kind: lora.rank_of(kind) for kind in lora.targets} == {"q_proj": 6, "v_proj": 7, "down_proj": 4}
    assert [lora.scale_of(kind) for kind in lora.targets] == [2.0, pytest.approx(4 / 3), 5.0]
    fusion = read_files(tmp_path / "sum", record).fusion
    for folder in parts.values():
        for key, value in read_files(folder, read_record(folder)).fusion.items():
            assert torch.equal(fusion.pop(key), value)
    assert not fusion


def test_it_computes_what_its_parts_compute_together(parts, tmp_path):
    model, batch = loaded(**parts)
    merged, _ = loaded(merged=composed(parts, tmp_path / "sum"))
    sides = {"audio": side_tokens(), "sensor": side_tokens(seed=5)}
    together = logits(model, batch, sides)
    torch.testing.assert_close(logits(merged, batch, sides), together, rtol=1e-4, atol=1e-5)
    for left_out in ("one", "other"):
        assert float((together - logits(model, batch, sides, patches=left_out)).abs().max()) > 1e-2
    base, _ = CASE.build()
    assert torch.equal(merged(**batch).logits, base(**batch).logits)


def test_where_one_channel_is_missing_the_parts_tell_the_rows_apart_and_the_sum_does_not(parts, tmp_path):
    model, batch = loaded(**parts)
    merged, _ = loaded(merged=composed(parts, tmp_path / "sum"))
    alone, _ = loaded(one=parts["one"])
    sides = {"audio": side_tokens()}
    assert torch.equal(logits(model, batch, sides), logits(alone, batch, sides))
    assert float((logits(merged, batch, sides) - logits(alone, batch, sides)).abs().max()) > 1e-3


@pytest.mark.parametrize("fusion", [{}, {"gate": True, "query_source": "pre_projector"}, {"output_norm": False}])
def test_weights_are_the_strengths_of_a_call(parts, tmp_path, fusion):
    plain = LoraSettings(rank=2, alpha=4.0, targets=QUERY_VALUE)
    two = {"one": saved(tmp_path / "a", "audio", 6, plain, fusion), "other": parts["other"]}
    weights = {"one": (0.5, 0.25), "other": 0.75}
    merged, batch = loaded(merged=composed(two, tmp_path / "sum", weights=weights))
    model, _ = loaded(**two)
    sides = {"audio": side_tokens(), "sensor": side_tokens(seed=5)}
    together = logits(model, batch, sides, patches=weights)
    torch.testing.assert_close(logits(merged, batch, sides), together, rtol=1e-4, atol=1e-5)
    assert float((together - logits(model, batch, sides)).abs().max()) > 1e-2


def test_a_part_whose_lora_has_weight_zero_takes_no_rank(parts, tmp_path):
    folder = composed(parts, tmp_path / "sum", weights={"other": (1.0, 0.0)})
    found, first = deltas(folder), deltas(parts["one"])
    assert set(found) == set(first) and all(torch.equal(found[name], first[name]) for name in found)
    assert set(read_record(folder).patch.side_channels) == {"audio", "sensor"}


def test_channels_of_one_name_are_told_apart(parts, tmp_path):
    plain = LoraSettings(rank=2, alpha=4.0, targets=QUERY_VALUE)
    two = {"hearing": parts["one"], "speech": saved(tmp_path / "other", "audio", 9, plain)}
    folder = composed(two, tmp_path / "sum")
    merged, batch = loaded(merged=folder)
    model, _ = loaded(**two)
    one, other = side_tokens(), side_tokens(seed=5)
    together = logits(model, batch, {"hearing": {"audio": one}, "speech": {"audio": other}})
    mine = logits(merged, batch, {"hearing_audio": one, "speech_audio": other})
    torch.testing.assert_close(mine, together, rtol=1e-4, atol=1e-5)
    swapped = logits(merged, batch, {"hearing_audio": other, "speech_audio": one})
    assert float((swapped - together).abs().max()) > 1e-2
    recorded = read_record(folder).provenance["composed"]["parts"]
    assert [part["channels"] for part in recorded] == [{"audio": "hearing_audio"}, {"audio": "speech_audio"}]


def test_equal_scales_change_no_number_and_keep_the_storage(tmp_path):
    lora = LoraSettings(rank=2, alpha=3.0, targets=("q_proj",))
    two = [saved(tmp_path / name, name, seed, lora, storage_dtype="bfloat16") for seed, name in enumerate(("audio", "sensor"))]
    folder = composed(two, tmp_path / "sum")
    pieces = [read_files(part, read_record(part)).adapter for part in two]
    whole = read_files(folder, read_record(folder)).adapter
    for key, value in whole.items():
        joined = torch.cat([piece[key] for piece in pieces], dim=0 if "lora_A" in key else 1)
        assert value.dtype == torch.bfloat16 and torch.equal(value, joined)
    settings = read_record(folder).patch.lora
    assert (settings.rank, settings.alpha, settings.scale_of("q_proj")) == (4, 6.0, 1.5)
    weighed = composed(two, tmp_path / "weighed", weights={"default_1": 0.3})
    assert read_record(weighed).patch.storage_dtype == "float32"  # bfloat16 does not hold 0.3 times its numbers


def test_patches_without_lora_and_without_channels(parts, tmp_path):
    fusion_only = saved(tmp_path / "fusion", "sensor", 2, None)
    folder = composed({"one": parts["one"], "other": fusion_only}, tmp_path / "sum")
    assert all(torch.equal(value, deltas(parts["one"])[name]) for name, value in deltas(folder).items())
    plain = LoraSettings(rank=2, targets=("v_proj",))
    lora_only = saved(tmp_path / "lora", None, 2, plain)
    always = saved(tmp_path / "always", "audio", 2, plain, missing_channel="lora_only")
    both = read_record(composed({"a": lora_only, "b": always}, tmp_path / "both")).patch
    assert both.missing_channel == "lora_only" and both.lora.rank == 4


# --- lower ranks, and merging in a subspace


def test_a_rank_keeps_the_largest_singular_values_and_says_what_is_lost(parts, tmp_path):
    exact, cut = deltas(composed(parts, tmp_path / "sum")), compose_patches(parts, rank=2)
    found = deltas(write_composed(cut, tmp_path / "cut"))
    lost = total = 0.0
    for name, value in exact.items():
        u, s, vh = np.linalg.svd(value.numpy())
        torch.testing.assert_close(found[name], torch.from_numpy(u[:, :2] * s[:2] @ vh[:2]), rtol=1e-4, atol=1e-5)
        lost, total = lost + (s[2:] ** 2).sum(), total + (s**2).sum()
    assert cut.lost == pytest.approx(lost / total, rel=1e-3) and 0.01 < cut.lost < 0.9
    assert read_record(tmp_path / "cut").provenance["composed"]["lost"] == cut.lost
    assert compose_patches(parts).lost == 0.0
    with pytest.raises(ValueError, match="no LoRA update has a higher rank than asked for"):
        compose_patches(parts, rank=7)


def merged_slowly(matrices, density):
    """KnOTS with TIES as its two papers write them, entry by entry, from whole matrices."""
    u, s, vh = np.linalg.svd(np.concatenate(matrices, axis=1), full_matrices=False)
    rank = int((s > 1e-10 * s[0]).sum())
    blocks = np.split(vh[:rank], len(matrices), axis=1)
    kept = []
    for block in blocks:
        least = np.sort(np.abs(block).ravel())[::-1][round(density * block.size) - 1]
        kept.append(np.where(np.abs(block) >= least, block, 0.0))
    merged = np.zeros_like(blocks[0])
    for place in np.ndindex(merged.shape):
        values = [block[place] for block in kept]
        same = [v for v in values if v * sum(values) > 0]
        merged[place] = sum(same) / len(same) if same else 0.0
    return (u[:, :rank] * s[:rank]) @ merged


@pytest.mark.parametrize("density", [1.0, 0.4])
def test_knots_is_the_formula_of_its_papers(density):
    generator = torch.Generator().manual_seed(0)
    updates = [
        (torch.randn(r, 9, generator=generator).double(), torch.randn(7, r, generator=generator).double()) for r in (2, 3)
    ]
    down, up = knots(updates, density)
    assert down.shape == (5, 9) and up.shape == (7, 5)
    slow = merged_slowly([(u @ d).numpy() for d, u in updates], density)
    np.testing.assert_allclose((up @ down).numpy(), slow, atol=1e-10)
    assert np.abs(slow - sum((u @ d).numpy() for d, u in updates)).max() > 0.1


def test_knots_of_equal_updates_is_the_update_and_of_opposite_ones_nothing():
    down, up = torch.randn(2, 6).double(), torch.randn(5, 2).double()
    same_down, same_up = knots([(down, up), (down, up)], 1.0)
    torch.testing.assert_close(same_up @ same_down, up @ down)
    none_down, none_up = knots([(down, up), (down, -up)], 1.0)
    torch.testing.assert_close(none_up @ none_down, torch.zeros(5, 6).double(), atol=1e-8, rtol=0)
    with pytest.raises(ValueError, match="density is a share"):
        knots([(down, up)], 0.0)


def test_knots_merges_the_layers_that_both_update(parts, tmp_path):
    exact, how = deltas(composed(parts, tmp_path / "sum")), compose_patches(parts, method="knots", density=0.3)
    merged = deltas(write_composed(how, tmp_path / "merged"))
    first, second = (deltas(folder) for folder in parts.values())
    for name, value in merged.items():
        if name in first:
            expected = torch.from_numpy(merged_slowly([first[name].numpy(), second[name].numpy()], 0.3))
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(value, exact[name])
    lost = sum(float((merged[n] - exact[n]).square().sum()) for n in how_changed(how))
    assert how.lost == pytest.approx(lost / sum(float(exact[n].square().sum()) for n in how_changed(how)), rel=1e-3)
    settings = read_record(tmp_path / "merged").provenance["composed"]
    assert (settings["method"], settings["density"]) == ("knots", 0.3)


def how_changed(how):
    return [f"base_model.model.{layer}" for layer in how.changes]


# --- what is recorded, and what is refused


def test_the_record_names_the_parents_and_keeps_their_frames(parts, tmp_path):
    model, processor = patched(CASE, small_config())
    frames = {"num_frames": 4}
    for name, number in (("a", 4), ("b", 4), ("c", 8)):
        recipe = {"data": {"frames": {"num_frames": number}}}
        save_patch(model, tmp_path / name, processor=processor, provenance={"recipe": recipe, "seed": 3})
    record = read_record(composed([tmp_path / "a", tmp_path / "b"], tmp_path / "sum"))
    assert record.provenance["recipe"] == {"data": {"frames": frames}}
    assert record.name == "default_1_default_2" and list(record.patch.side_channels) == ["default_1_audio", "default_2_audio"]
    first = record.provenance["composed"]["parts"][0]
    assert first["files"] == read_record(tmp_path / "a").files and first["provenance"]["seed"] == 3
    assert "default_1 (weight 1, LoRA 1)" in (tmp_path / "sum" / "README.md").read_text()
    other = read_record(composed([tmp_path / "a", tmp_path / "c"], tmp_path / "unlike"))
    assert "recipe" not in other.provenance
    with pytest.raises(ValueError, match="one folder or inside each other"):
        composed([tmp_path / "a", tmp_path / "b"], tmp_path / "b")


def test_what_one_patch_cannot_hold_is_refused(parts, tmp_path):
    one = parts["one"]
    plain = LoraSettings(rank=2, alpha=4.0, targets=QUERY_VALUE)
    always = {"missing_channel": "lora_only"}
    for name, channel, lora, changes, message in (
        ("dora", "sensor", replace(plain, use_dora=True), {}, "uses DoRA, which turns the base's weights and is no sum"),
        ("missing", "sensor", plain, always, "gets 'lora_only' from .*missing and 'base' from .*one"),
        ("always", None, plain, {}, "a patch without channels always acts"),
        ("grid", "sensor", plain, {"newline": "grid", **always}, "has newline 'grid' and .*one 'base'"),
        ("words", "sensor", plain, {"vocabulary": 50, **always}, "has vocabulary 50 and .*one None"),
    ):
        with pytest.raises(ValueError, match=message):
            compose_patches([one, saved(tmp_path / name, channel, 1, lora, **changes)])
    record = tmp_path / "always" / "patch_config.json"
    values = json.loads(record.read_text())
    values["base"]["architecture"]["model_type"] = "another"
    record.write_text(json.dumps(values))
    resign(tmp_path / "always")
    with pytest.raises(ValueError, match="trained on another base"):
        compose_patches([one, tmp_path / "always"])


def test_weights_and_names_that_cannot_be_are_refused(parts, tmp_path):
    plain = LoraSettings(rank=2, targets=("v_proj",))
    longer = {"fusion": FusionConfig(kind="concat", width=16)}
    audio = replace(small_config().side_channels["audio"], **longer)
    folders = []
    for name in ("a", "b"):
        config = PatchConfig(side_channels={name: audio}, lora=plain, storage_dtype="float32")
        model, processor = patched(CASE, config)
        folders.append(save_patch(model, tmp_path / name, processor=processor))
    for given, how, message in (
        (parts, {"weights": {"third": 1.0}}, "weights: there is no patch 'third'; the patches are one, other"),
        (parts, {"weights": {"one": -1.0}}, "must be a finite number that is not negative"),
        (parts, {"method": "mean"}, "method is sum or knots, got 'mean'"),
        (folders, {}, "cannot be one: at most one channel of a patch can be fused with 'concat'"),
        ({"a": folders[0], "b": parts["one"]}, {"weights": {"a": 0.5}}, "lengthens the prompt .concat.; .* got 0.5"),
        ({"not a name": parts["one"], "b": parts["other"]}, {}, "must be a Python identifier, got 'not a name'"),
        ([parts["one"]], {}, "compose takes at least two patches, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            compose_patches(given, **how)
