"""The files of a patch are bound together: damage and mixtures are refused, and signing anew is a thing one does on purpose."""

from __future__ import annotations

import json
import random
import shutil

import pytest
import safetensors.torch
import torch

from cases import CASES, patched, shake, small_config
from pave import attach_patch, detach_patch, load_patch, save_patch
from pave.cli import main
from pave.patching import compress, is_patched, load_tensors, patch_parameters, read_record, sign_patch
from pave.patching.checkpoint import read_files
from signing import ZEROS, hash_of

CASE = CASES["llava_onevision"]
FUSION, LORA, ADAPTER, CONFIG = (
    "patch.safetensors",
    "lora/adapter_model.safetensors",
    "lora/adapter_config.json",
    "patch_config.json",
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two patches of one config and different weights; the first names its base in letters and has floats of every form."""
    folders = []
    for number in range(2):
        model, _ = CASE.build()
        shake(attach_patch(model, small_config()), seed=number)
        folder = tmp_path_factory.mktemp("patch") / "patch"
        folders.append(save_patch(model, folder, provenance={"rate": 1e-05, "note": "ü \x1b \n", "loss": float("nan")}))
    return folders


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved[0], tmp_path / "patch")


def read_whole(folder):
    return read_files(folder, read_record(folder))


def test_what_is_written_is_what_the_page_says(folder):
    values = json.loads((folder / CONFIG).read_text())
    assert sorted(values["files"]) == sorted([FUSION, LORA, ADAPTER])
    assert all(hash_of((folder / name).read_bytes()) == digest for name, digest in values["files"].items())
    content = (folder / CONFIG).read_bytes()
    assert hash_of(content.replace(values["digest"].encode(), ZEROS.encode())) == values["digest"]
    assert read_record(folder).provenance == {"rate": 1e-05, "note": "ü \x1b \n", "loss": "nan"}


def test_no_single_bit_may_flip(folder):
    """Over every file that is read, and over every bit of the config that another writer of JSON could have written otherwise."""
    read_whole(folder)
    rng = random.Random(0)
    accepted, flips = [], 0
    for name, count in ((FUSION, 400), (LORA, 400), (ADAPTER, 400), (CONFIG, 1200)):
        whole = (folder / name).read_bytes()
        bits = rng.sample(range(len(whole) * 8), count)
        if name == CONFIG:  # 1e-05 and 1E-05 are one number
            bits += [8 * at + 5 for at in range(len(whole)) if whole[at : at + 2] == b"e-"]
        for bit in bits:
            changed = bytearray(whole)
            changed[bit // 8] ^= 1 << bit % 8
            (folder / name).write_bytes(changed)
            try:
                read_whole(folder)
            except ValueError as error:
                assert str(folder) in str(error) and "\n" not in str(error)
            else:
                accepted.append((name, bit))
            flips += 1
        (folder / name).write_bytes(whole)
    assert accepted == [] and flips > 2400
    read_whole(folder)


@pytest.mark.parametrize("name", [FUSION, LORA])
def test_a_file_of_another_patch_is_refused_and_the_model_stays(saved, folder, name):
    shutil.copy(saved[1] / name, folder / name)
    base, _ = CASE.build()
    with pytest.raises(
        ValueError, match=rf"{name} is not the file that patch_config\.json was written with: .*pave sign {folder}"
    ):
        load_patch(base, folder)
    assert not is_patched(base)


def test_tensors_of_one_shape_that_change_places_are_refused(folder):
    tensors = safetensors.torch.load_file(folder / FUSION)
    one, other = "audio.layers.0.key.weight", "audio.layers.0.value.weight"
    tensors[one], tensors[other] = tensors[other].clone(), tensors[one].clone()
    safetensors.torch.save_file(tensors, folder / FUSION)
    for refuse in (
        lambda: load_patch(CASE.build()[0], folder),
        lambda: load_tensors(patched(CASE)[0], folder),
        lambda: compress.compress_patch(folder, fusion="8bit"),
    ):
        with pytest.raises(ValueError, match="is not the file that"):
            refuse()


def test_an_edited_config_is_refused_wherever_it_is_read(folder, capsys):
    path = folder / CONFIG
    path.write_text(path.read_text().replace('"num_heads": 2', '"num_heads": 4'))
    with pytest.raises(ValueError, match=r"patch_config\.json is not as it was written: .*pave sign"):
        read_record(folder)
    assert main(["show", str(folder)]) == 2
    assert "is not as it was written" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["spaces", "no digest", "no files", "one file less"])
def test_a_config_without_its_hashes_is_refused(folder, change):
    values = json.loads((folder / CONFIG).read_text())
    if change == "no digest":
        del values["digest"]
    if change == "no files":
        del values["files"]
    if change == "one file less":
        del values["files"][ADAPTER]
    (folder / CONFIG).write_text(json.dumps(values, indent=None if change == "spaces" else 2))
    with pytest.raises(ValueError, match="is not as it was written"):
        read_record(folder)


def test_signing_takes_a_change_that_was_made_on_purpose(folder, capsys):
    tensors = safetensors.torch.load_file(folder / FUSION)
    tensors["audio.output_norm.bias"].fill_(0.25)
    safetensors.torch.save_file(tensors, folder / FUSION)
    path = folder / CONFIG
    path.write_text(path.read_text().replace('"missing_channel": "base"', '"missing_channel": "lora_only"'))
    (folder / "README.md").write_text("my own words")
    assert main(["sign", str(folder), "--json"]) == 0
    assert sorted(json.loads(capsys.readouterr().out)["files"]) == sorted([FUSION, LORA, ADAPTER])
    model = load_patch(CASE.build()[0], folder)
    assert model.patch_config.missing_channel == "lora_only"
    assert any(bool((p == 0.25).all()) for p in patch_parameters(model))
    assert (folder / "README.md").read_text() == "my own words"


def test_what_is_no_good_is_not_signed(folder, tmp_path, capsys):
    before = (folder / CONFIG).read_bytes()
    tensors = safetensors.torch.load_file(folder / FUSION)
    tensors["audio.output_norm.bias"].fill_(float("nan"))
    safetensors.torch.save_file(tensors, folder / FUSION)
    with pytest.raises(ValueError, match=r"audio\.output_norm\.bias holds NaN"):
        sign_patch(folder)
    (folder / FUSION).unlink()
    with pytest.raises(ValueError, match="patch.safetensors is missing"):
        sign_patch(folder)
    assert (folder / CONFIG).read_bytes() == before
    assert main(["sign", str(tmp_path)]) == 2
    assert "is no patch" in capsys.readouterr().err


def test_a_patch_of_an_earlier_format_is_signed_before_it_is_loaded(folder):
    values = json.loads((folder / CONFIG).read_text())
    for key in ("files", "digest"):
        del values[key]
    (folder / CONFIG).write_text(json.dumps({**values, "format_version": 1}))
    with pytest.raises(ValueError, match=r"format_version 1 does not bind the files .*pave sign"):
        load_patch(CASE.build()[0], folder)
    assert sign_patch(folder).format_version == 3
    load_patch(CASE.build()[0], folder)


def test_the_card_is_free_to_be_edited(folder):
    (folder / "README.md").write_text("")
    model = load_patch(CASE.build()[0], folder)
    with torch.no_grad():
        assert is_patched(model) and not is_patched(detach_patch(model))
