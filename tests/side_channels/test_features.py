"""Stored features: every kind of file, and files that are no good."""

import os
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pave.config import EncoderConfig
from pave.side_channels import SideEncoder, SideFeatures, build_encoder
from pave.side_channels import features as features_module
from pave.side_channels.features import StoredFeatures, save_features

VALUES = torch.arange(24, dtype=torch.float32).reshape(4, 2, 3)
TIMES = torch.tensor([0.5, 0.1, 2.25, 7.0], dtype=torch.float64)


def write(path, features, times=None):
    arrays = {"features": features} if times is None else {"features": features, "times": times}
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in arrays.items()}, path)
    elif path.suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in arrays.items()})
    elif path.suffix == ".npy":
        np.save(path, features.numpy())
    else:
        torch.save(features if times is None else arrays, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt"])
def test_features_with_their_times(tmp_path, suffix):
    read = StoredFeatures(width=3, tokens_per_step=2, rate=99.0).encode(write(tmp_path / f"a{suffix}", VALUES, TIMES))
    torch.testing.assert_close(read.features_KMC, VALUES, rtol=0, atol=0)
    torch.testing.assert_close(read.times_K, TIMES, rtol=0, atol=0)  # the file's own times, not the rate


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".npy", ".pt", ".pth"])
def test_features_without_times_need_a_rate(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", VALUES[:, 0])
    with pytest.raises(ValueError, match=rf"a\{suffix}: the file holds no times; set the encoder's rate"):
        StoredFeatures(width=3).encode(path)
    read = StoredFeatures(width=3, rate=2.0, start=-1.0).encode(path)
    torch.testing.assert_close(read.features_KMC, VALUES[:, :1], rtol=0, atol=0)
    assert read.times_K.tolist() == [-0.75, -0.25, 0.25, 0.75]


def test_what_an_encoder_gave_is_read_back(tmp_path):
    features = SideFeatures(VALUES.to(torch.bfloat16), TIMES)
    save_features(tmp_path / "deep" / "a.safetensors", features)
    read = StoredFeatures(width=3, tokens_per_step=2).encode(tmp_path / "deep" / "a.safetensors")
    assert read.features_KMC.dtype == torch.bfloat16
    torch.testing.assert_close(read.features_KMC, features.features_KMC, rtol=0, atol=0)
    torch.testing.assert_close(read.times_K, TIMES, rtol=0, atol=0)
    assert os.listdir(tmp_path / "deep") == ["a.safetensors"]
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        save_features(tmp_path / "a.npy", features)


def test_the_spec_rebuilds_the_reader(tmp_path):
    reader = build_encoder(EncoderConfig(name="features", settings={"width": 3, "rate": 4.0}))
    assert isinstance(reader, SideEncoder)
    assert (reader.source, reader.sample_rate, reader.width, reader.tokens_per_step) == ("features", None, 3, 1)
    spec = reader.spec()
    assert spec.settings == {"width": 3, "tokens_per_step": 1, "rate": 4.0, "start": 0.0}
    assert build_encoder(spec).spec() == spec
    path = write(tmp_path / "a.npy", VALUES[:, 0].double())
    one, two = reader.encode_batch([path, path])
    assert one.features_KMC.dtype == torch.float32
    torch.testing.assert_close(one.features_KMC, two.features_KMC, rtol=0, atol=0)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil-was-here",)


def test_files_that_are_no_good_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reader = StoredFeatures(width=3, rate=1.0)
    torch.save({"features": Evil()}, tmp_path / "evil.pt")
    np.save(tmp_path / "evil.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.npz").touch()
    for name in ("evil.pt", "evil.npy", "text.safetensors", "text.npy", "text.pt", "empty.npz"):
        with pytest.raises(ValueError, match=rf"{name}: the file is damaged or holds something other than arrays") as caught:
            reader.encode(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "evil-was-here").exists()
    cases = {
        "no.npy": (None, "no such file of features"),
        "a.csv": (None, r"stored features are \.safetensors, .* files, not \.csv"),
        "wide.npy": (torch.zeros(4, 5), r"shape \(steps, 1, 3\) are expected, got \(4, 1, 5\)"),
        "flat.npy": (torch.zeros(4), r"got \(4,\)"),
        "whole.npy": (torch.zeros(4, 3, dtype=torch.int32), "must be floating point, got torch.int32"),
    }
    for name, (values, words) in cases.items():
        if values is not None:
            write(tmp_path / name, values)
        with pytest.raises(ValueError, match=rf"{name}: .*{words}"):
            reader.encode(tmp_path / name)
    save_file({"x": VALUES}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x\.safetensors: an array named 'features' is expected, got 'x'"):
        reader.encode(tmp_path / "x.safetensors")
    write(tmp_path / "late.safetensors", VALUES[:, :1].contiguous(), TIMES[:3].contiguous())
    with pytest.raises(ValueError, match=r"late\.safetensors: .*4 steps but times of shape \(3,\)"):
        reader.encode(tmp_path / "late.safetensors")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": 0}, "at least 1"),
        ({"width": 3, "tokens_per_step": 0}, "at least 1"),
        ({"width": 3, "rate": 0}, "rate must be"),
    ],
)
def test_settings_are_checked(settings, words):
    with pytest.raises(ValueError, match=words):
        StoredFeatures(**settings)


def recompress(source, target):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))


def test_small_files_that_unpack_to_too_much_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(features_module, "MAX_BYTES", 100_000)
    np.savez_compressed(tmp_path / "a.npz", features=VALUES[:, 0].numpy(), other=np.zeros(200_000, np.uint8))
    torch.save(torch.zeros(20_000, 3), tmp_path / "whole.pt")
    recompress(tmp_path / "whole.pt", tmp_path / "b.pt")
    torch.save(torch.zeros(1, 1).expand(10**10, 3), tmp_path / "c.pt")
    with open(tmp_path / "d.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (20_000, 3)})
    for name, words in (
        ("a.npz", "unpacks to"),
        ("b.pt", "unpacks to"),
        ("c.pt", "is larger than"),
        ("d.npy", "damaged"),
    ):
        assert (tmp_path / name).stat().st_size < 10_000
        with pytest.raises(ValueError, match=rf"{name}: .*{words}"):
            StoredFeatures(width=3, rate=1.0).encode(tmp_path / name)


def test_a_pt_file_holds_plain_numbers_and_no_gradient(tmp_path):
    torch.save({"features": torch.nn.Parameter(VALUES[:, 0]), "times": TIMES}, tmp_path / "a.pt")
    assert not StoredFeatures(width=3).encode(tmp_path / "a.pt").features_KMC.requires_grad
    for odd in (
        {"features": VALUES[:, 0].to_sparse()},
        {"features": VALUES[:, 0].to("meta")},
        {"features": VALUES[:, 0], "times": TIMES.to(torch.complex64)},
    ):
        torch.save(odd, tmp_path / "b.pt")
        with pytest.raises(ValueError, match=r"b\.pt: (features|times) must be an ordinary array of real numbers"):
            StoredFeatures(width=3, rate=1.0).encode(tmp_path / "b.pt")
