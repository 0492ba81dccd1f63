"""Stored features: every kind of file, and files that are no good."""

import os
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pave.config import EncoderConfig
from pave.data.media import write_video
from pave.data.sources import read_source
from pave.fusion.temporal_alignment import align_by_index
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
    assert {name: spec.settings[name] for name in ("width", "tokens_per_step", "rate", "start", "times")} == {
        "width": 3,
        "tokens_per_step": 1,
        "rate": 4.0,
        "start": 0.0,
        "times": "file",
    }
    assert build_encoder(spec).spec() == spec
    path = write(tmp_path / "a.npy", VALUES[:, 0].double())
    one, two = reader.encode_batch([path, path])
    assert one.features_KMC.dtype == torch.float32
    torch.testing.assert_close(one.features_KMC, two.features_KMC, rtol=0, atol=0)


# --- layouts of published files, which are tensors without times


def test_windows_with_a_stride_as_imagebind_hears_them(tmp_path):
    """2 s every second: the first window is centred at 1 s. (K, C) and (K, M, C) both occur."""
    settings = {"window_seconds": 2.0, "stride_seconds": 1.0}
    flat = StoredFeatures(width=3, **settings).encode(write(tmp_path / "a.pt", VALUES[:, 0].clone()))
    assert flat.times_K.tolist() == [1.0, 2.0, 3.0, 4.0]
    torch.testing.assert_close(flat.features_KMC, VALUES[:, :1], rtol=0, atol=0)
    deep = StoredFeatures(width=3, tokens_per_step=2, start=-0.5, **settings).encode(write(tmp_path / "b.pt", VALUES))
    assert deep.times_K.tolist() == [0.5, 1.5, 2.5, 3.5]
    same = StoredFeatures(width=3, rate=1.0, start=0.5).encode(tmp_path / "a.pt")
    assert same.times_K.tolist() == flat.times_K.tolist()
    side_by_side = StoredFeatures(width=3, window_seconds=2.0).encode(tmp_path / "a.pt")
    assert side_by_side.times_K.tolist() == [1.0, 3.0, 5.0, 7.0]


def test_an_offset_is_added_to_times_of_any_origin(tmp_path):
    own = StoredFeatures(width=3, tokens_per_step=2, offset_seconds=0.25).encode(write(tmp_path / "a.npz", VALUES, TIMES))
    torch.testing.assert_close(own.times_K, TIMES + 0.25, rtol=0, atol=0)
    given = StoredFeatures(width=3, tokens_per_step=2, rate=2.0, offset_seconds=-1.0).encode(write(tmp_path / "a.pt", VALUES))
    assert given.times_K.tolist() == [-0.75, -0.25, 0.25, 0.75]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    write_video(path, np.zeros((20, 32, 32, 3), np.uint8), fps=8)  # 2.5 s
    return str(path)


def test_a_high_frame_rate_with_class_tokens_spread_over_the_video(tmp_path, video):
    """(K, 5, 1024): token 0 is a class token, the others are a grid of 2 x 2."""
    stored = torch.randn(10, 5, 1024, generator=torch.Generator().manual_seed(0))
    path = str(write(tmp_path / "a.pt", stored))
    settings = {"width": 1024, "tokens_per_step": 4, "drop_class_token": True, "times": "spread"}
    encoder = build_encoder(EncoderConfig(name="features", settings=settings))
    features = encoder.encode(read_source(encoder, video, path))
    torch.testing.assert_close(features.features_KMC, stored[:, 1:], rtol=0, atol=0)
    np.testing.assert_allclose(features.times_K, 0.125 + 0.25 * np.arange(10))
    assert build_encoder(encoder.spec()).spec() == encoder.spec()
    assert read_source(encoder, video, None) is None
    with pytest.raises(ValueError, match=r"a\.pt: features of shape \(steps, 5, 1024\) are expected, got \(10, 4, 1024\)"):
        encoder.encode(read_source(encoder, video, str(write(tmp_path / "a.pt", stored[:, 1:].clone()))))


def test_three_dimensional_audio_is_flattened_as_the_authors_do(tmp_path):
    """(K, M, C) becomes K * M steps of one token, each at the time of its own step; (K, C) stays what it is."""
    values = torch.arange(3 * 4 * 2, dtype=torch.float32).reshape(3, 4, 2)
    torch.save(values, tmp_path / "a.pt")
    settings = {"width": 2, "window_seconds": 2.0, "stride_seconds": 1.0, "flatten_tokens": True}
    read = StoredFeatures(**settings).encode(tmp_path / "a.pt")
    assert torch.equal(read.features_KMC, values.reshape(12, 1, 2))
    assert read.times_K.tolist() == [1.0] * 4 + [2.0] * 4 + [3.0] * 4
    torch.save(values[:, 0], tmp_path / "b.pt")
    flat, plain = (StoredFeatures(**{**settings, "flatten_tokens": on}).encode(tmp_path / "b.pt") for on in (True, False))
    assert torch.equal(flat.features_KMC, plain.features_KMC) and torch.equal(flat.times_K, plain.times_K)
    save_file({"features": values, "times": torch.tensor([0.0, 5.0, 7.0])}, tmp_path / "c.safetensors")
    assert (
        StoredFeatures(width=2, flatten_tokens=True).encode(tmp_path / "c.safetensors").times_K.tolist()
        == [0] * 4 + [5] * 4 + [7] * 4
    )
    save_file({"features": values, "times": torch.arange(12.0)}, tmp_path / "d.safetensors")
    with pytest.raises(ValueError, match=r"d\.safetensors: 3 steps but times of shape \(12,\)"):
        StoredFeatures(width=2, flatten_tokens=True).encode(tmp_path / "d.safetensors")
    with pytest.raises(ValueError, match=r"a\.pt: features of shape \(steps, 1, 2\) are expected, got \(3, 4, 2\)"):
        StoredFeatures(width=2, rate=1.0).encode(tmp_path / "a.pt")
    # by index, two frames share 12 steps of a token, 6 each; of 3 steps of four tokens the first would have 8
    index = align_by_index(torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 12, dtype=torch.bool), read.times_K[None])
    assert index.length_BT.tolist() == [[6, 6]] and index.order_BK.tolist() == [list(range(12))]


def test_a_scene_in_one_row_is_cut_into_steps(tmp_path, video):
    """(1, 32 * 24 * 24, C): 32 steps of 24 x 24 tokens, step after step."""
    row = torch.arange(32 * 576, dtype=torch.float32)[None, :, None].repeat(1, 1, 4)
    path = str(write(tmp_path / "a.pt", row))
    settings = {"width": 4, "tokens_per_step": 576, "steps": 32, "times": "spread"}
    encoder = build_encoder(EncoderConfig(name="features", settings=settings))
    features = encoder.encode(read_source(encoder, video, path))
    assert features.features_KMC.shape == (32, 576, 4)
    assert features.features_KMC[:, 0, 0].tolist() == [576.0 * k for k in range(32)]
    assert features.features_KMC[3, :, 1].tolist() == list(range(3 * 576, 4 * 576))
    np.testing.assert_allclose(features.times_K, (np.arange(32) + 0.5) * 2.5 / 32)
    flat = encoder.encode(read_source(encoder, video, str(write(tmp_path / "b.pt", row[0].clone()))))
    torch.testing.assert_close(flat.features_KMC, features.features_KMC, rtol=0, atol=0)
    with pytest.raises(
        ValueError, match=r"with steps 32, features of shape \(1, 32 \* 576, 4\) are expected, got \(1, 576, 4\)"
    ):
        encoder.encode(read_source(encoder, video, str(write(tmp_path / "c.pt", row[:, :576].clone()))))
    with pytest.raises(ValueError, match=r"got \(1, 18432, 4\)"):
        StoredFeatures(width=4, tokens_per_step=576, rate=1.0).encode(path)


def test_spreading_needs_a_video_and_a_file_without_times(tmp_path, video):
    encoder = StoredFeatures(width=3, tokens_per_step=2, times="spread")
    with pytest.raises(ValueError, match=r"a\.npz: the file holds times of its own; take the setting times: spread away"):
        encoder.encode(read_source(encoder, video, str(write(tmp_path / "a.npz", VALUES, TIMES))))
    path = str(write(tmp_path / "a.pt", VALUES))
    with pytest.raises(ValueError, match="its duration is needed; encode a TimedFile"):
        encoder.encode(path)
    with pytest.raises(ValueError, match=r"nowhere\.mp4: there is no such file"):
        read_source(encoder, str(tmp_path / "nowhere.mp4"), path)


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
        ({"width": 3, "times": "even"}, "times must be 'file' or 'spread', got 'even'"),
        ({"width": 3, "stride_seconds": 1}, "stride_seconds needs window_seconds"),
        ({"width": 3, "window_seconds": 1, "stride_seconds": 0}, "stride_seconds must be a positive number, got 0"),
        ({"width": 3, "rate": 1, "window_seconds": 1}, "exclude each other"),
        ({"width": 3, "rate": 1, "times": "spread"}, "exclude each other"),
        ({"width": 3, "start": 1, "times": "spread"}, "exclude each other"),
        ({"width": 3, "flatten_tokens": True, "tokens_per_step": 2}, "flatten_tokens makes steps of one token"),
        ({"width": 3, "flatten_tokens": True, "steps": 4}, "flatten_tokens makes steps of one token"),
        ({"width": 3, "steps": 0}, "steps must be at least 1"),
        ({"width": 3, "offset_seconds": float("inf")}, "must be finite"),
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
