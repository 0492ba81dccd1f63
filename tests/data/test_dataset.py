"""PatchDataset on real files: what an item holds, what a cache keeps, and errors that name the sample."""

from __future__ import annotations

import importlib
import linecache
import logging
import os
import shutil
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from pave.config import EncoderConfig, SideChannelConfig
from pave.data.dataset import PatchDataset
from pave.data.items import SampleError
from pave.data.media import FrameSampling, write_video
from pave.data.samples import Sample
from pave.side_channels import build_encoder
from pave.side_channels.base import SideFeatures

RATE = 16000
SAMPLING = FrameSampling(num_frames=4)


class Loudness:
    """An encoder small enough to check by hand: the mean loudness of every quarter of a second."""

    source = "audio"
    sample_rate = RATE
    width = 1
    tokens_per_step = 1

    def __init__(self, gain=1.0):
        self.gain = gain
        self.calls = 0

    def encode(self, clip):
        self.calls += 1
        step = RATE // 4
        count = len(clip.samples) // step
        parts = np.abs(clip.samples[: count * step]).reshape(count, step)
        times = clip.start_time + 0.25 * np.arange(count) + 0.125
        return SideFeatures(torch.from_numpy(parts.mean(1, keepdims=True) * self.gain), torch.from_numpy(times))

    def spec(self):
        return EncoderConfig(name="loudness", settings={"gain": self.gain})


class Stored(Loudness):
    """Features that lie in a file."""

    source = "features"
    sample_rate = None
    width = 3

    def encode(self, path):
        values = torch.from_numpy(np.load(path))
        return SideFeatures(values, torch.arange(len(values), dtype=torch.float64))


CHANNELS = {"audio": SideChannelConfig(width=1), "depth": SideChannelConfig(kind="features", width=3)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    brightness = np.arange(16, dtype=np.uint8) * 15
    frames = np.broadcast_to(brightness[:, None, None, None], (16, 32, 32, 3)).copy()
    loud = np.where(np.arange(2 * RATE) < RATE, 0.0, 0.5) * np.sin(np.arange(2 * RATE) * 0.2)
    write_video(folder / "sound.mp4", frames, fps=8, audio=loud.astype(np.float32), sample_rate=RATE)
    write_video(folder / "silent.mp4", frames[::-1].copy(), fps=8)
    np.save(folder / "depth.npy", np.ones((2, 3), dtype=np.float32))
    (folder / "broken.mp4").write_bytes(b"this is no video")
    return folder


def sample(files, name="a", video="sound.mp4", **more):
    return Sample(id=name, video=str(files / video), question="what is heard?", answer="a bell", **more)


def dataset(samples, encoders=None, channels=None, **more):
    encoders = encoders or {"audio": Loudness()}
    return PatchDataset(samples, SAMPLING, encoders, channels or {name: CHANNELS[name] for name in encoders}, **more)


def assert_same(a, b):
    assert a.id == b.id and a.turns == b.turns
    np.testing.assert_array_equal(a.frames_FHWC, b.frames_FHWC)
    np.testing.assert_array_equal(a.times_F, b.times_F)
    assert a.side.keys() == b.side.keys()
    for name in a.side:
        assert (a.side[name] is None) == (b.side[name] is None)
        if a.side[name] is not None:
            assert torch.equal(a.side[name].features_KMC, b.side[name].features_KMC)
            assert torch.equal(a.side[name].times_K, b.side[name].times_K)


def test_item_holds_frames_times_features_and_turns(files):
    item = dataset([sample(files)])[0]
    assert item.frames_FHWC.shape == (4, 32, 32, 3) and item.frames_FHWC.dtype == np.uint8
    np.testing.assert_allclose(item.times_F, [0.25, 0.75, 1.25, 1.75])
    np.testing.assert_allclose(item.frames_FHWC.mean((1, 2, 3)), np.array([2, 6, 10, 14]) * 15, atol=4)
    loudness = item.side["audio"].features_KMC.flatten()
    assert loudness[:3].max() < 0.02 and loudness[5:7].min() > 0.25
    assert item.turns == (("what is heard?", "a bell"),)


def test_missing_channels_are_ordinary(files):
    """No audio track, a null in the sample, a channel that only comes from files: missing, not an error."""
    encoders = {"audio": Loudness(), "depth": Stored()}
    samples = [
        sample(files, video="silent.mp4"),
        sample(files, side_channels={"audio": None}),
        sample(files, side_channels={"depth": str(files / "depth.npy")}),
        sample(files, video="silent.mp4", side_channels={"audio": str(files / "sound.mp4")}),
    ]
    sides = [item.side for item in map(dataset(samples, encoders).__getitem__, range(4))]
    present = [{name for name, features in side.items() if features is not None} for side in sides]
    assert present == [set(), set(), {"audio", "depth"}, {"audio"}]
    assert sides[2]["depth"].features_KMC.shape == (2, 1, 3)


def test_errors_name_the_sample_and_the_file(files):
    with pytest.raises(SampleError, match=r"sample 'bad'.*broken\.mp4"):
        dataset([sample(files, "bad", "broken.mp4")])[0]
    with pytest.raises(SampleError, match=r"sample 'bad'.*nowhere\.mp4"):
        dataset([sample(files, "bad", "nowhere.mp4")], cache="memory")[0]


def test_error_from_a_worker_process_is_one_sentence(files):
    loader = DataLoader(dataset([sample(files, "bad", "broken.mp4")]), num_workers=1, collate_fn=list)
    with pytest.raises(SampleError) as caught:
        list(loader)
    assert str(caught.value).startswith("sample 'bad': ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_cached_items_are_the_uncached_ones_and_are_decoded_once(files, tmp_path, kind):
    samples = [sample(files, "a"), sample(files, "b", "silent.mp4"), sample(files, "c")]  # a and c share a video
    plain = dataset(samples)
    cached = dataset(samples, cache="memory" if kind == "memory" else str(tmp_path / "cache"))
    for _ in range(2):
        for index in range(3):
            assert_same(cached[index], plain[index])
    assert cached.encoders["audio"].calls == 1
    report = cached.cache_report
    assert (report.hits, report.misses, report.items, report.full) == (4, 2, 2, False)
    assert report.num_bytes == 2 * (4 * 32 * 32 * 3 + 4 * 8) + sum(x.nbytes for x in vars(plain[0].side["audio"]).values())


def test_folder_cache_outlives_the_run_and_follows_the_files_and_settings(files, tmp_path):
    folder = str(tmp_path / "cache")
    video = tmp_path / "own.mp4"
    video.write_bytes((files / "sound.mp4").read_bytes())
    own = Sample(id="own", video=str(video), question="q", answer="a")

    def misses(**changes):
        data = PatchDataset(
            [own],
            changes.get("sampling", SAMPLING),
            {"audio": changes.get("encoder", Loudness())},
            {"audio": CHANNELS["audio"]},
            cache=folder,
        )
        item = data[0]
        return data.cache_report.misses, item

    assert misses()[0] == 1 and misses()[0] == 0
    assert misses(sampling=FrameSampling(num_frames=2))[0] == 1
    louder = misses(encoder=Loudness(gain=2.0))
    assert louder[0] == 1 and louder[1].side["audio"].features_KMC.max() > 0.5
    video.write_bytes((files / "silent.mp4").read_bytes())
    os.utime(video, ns=(1, 1))
    changed = misses()
    assert changed[0] == 1 and changed[1].side["audio"] is None


def test_folder_cache_follows_the_weights_of_a_local_encoder_and_files_in_folders(files, tmp_path):
    class Trained(Loudness):
        def spec(self):
            return EncoderConfig(name="loudness", model=str(tmp_path / "model"))

    class Inside(Stored):
        def encode(self, path):
            return super().encode(os.path.join(path, "deep", "values.npy"))

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"1")
    (tmp_path / "side" / "deep").mkdir(parents=True)
    (tmp_path / "side" / "self").symlink_to(tmp_path / "side")
    own = sample(files, side_channels={"depth": str(tmp_path / "side")})

    def read(value, gain=1.0):
        encoders = {"audio": Trained(gain), "depth": Inside()}
        data = dataset([own], encoders, CHANNELS, cache=str(tmp_path / "cache"))
        item = data[0]
        assert item.side["depth"].features_KMC.unique().tolist() == [value]
        return data.cache_report.misses, item.side["audio"].features_KMC.max().item()

    np.save(tmp_path / "side" / "deep" / "values.npy", np.full((2, 3), 1, dtype=np.float32))
    first = read(1)
    assert first[0] == 1 and read(1) == (0, first[1])
    np.save(tmp_path / "side" / "deep" / "values.npy", np.full((20, 3), 2, dtype=np.float32))
    assert read(2)[0] == 1
    (tmp_path / "model" / "weights").write_bytes(b"other")
    again = read(2, gain=3.0)
    assert again[0] == 1 and again[1] == pytest.approx(3 * first[1])


def test_folder_cache_follows_the_code_of_an_encoder_and_the_version_of_the_readers(files, tmp_path, monkeypatch):
    """As the feature store does: the same name and settings are not the same encoder."""
    code = (
        "import torch\nfrom pave.side_channels import OwnEncoder, SideFeatures\nclass Own(OwnEncoder):\n    width = 1\n"
        "    def read(self, video, path):\n        return video\n"
        "    def encode(self, source):\n        return SideFeatures(torch.full((2, 1), {value}), torch.arange(2.0))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def read(value):
        (tmp_path / "cached_own.py").write_text(code.format(value=value))
        sys.modules.pop("cached_own", None)
        linecache.clearcache()
        importlib.invalidate_caches()
        encoders = {"audio": build_encoder(EncoderConfig(name="cached_own:Own"), "cached_own")}
        data = dataset([sample(files)], encoders, cache=str(tmp_path / "cache"))
        return data[0].side["audio"].features_KMC.unique().tolist(), data.cache_report.misses

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert read(1.0) == ([1.0], 1) and read(1.0) == ([1.0], 0)
    assert read(22.0) == ([22.0], 1)
    monkeypatch.setattr("pave.data.store.plan.FEATURES_VERSION", 1000)
    assert read(22.0) == ([22.0], 1)


def test_folder_cache_refuses_weights_that_nothing_names(files, tmp_path):
    class Unnamed(Loudness):
        def spec(self):
            return EncoderConfig(name="loudness", model="org/model")

    with pytest.raises(ValueError, match="nothing says which commit of 'org/model'"):
        dataset([sample(files)], {"audio": Unnamed()}, cache=str(tmp_path))
    dataset([sample(files)], {"audio": Unnamed()}, cache="memory")[0]


@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_a_cache_notices_a_file_that_was_replaced_under_its_old_size_and_time(files, tmp_path, kind):
    video, side = tmp_path / "own.mp4", tmp_path / "depth.npy"
    video.write_bytes((files / "sound.mp4").read_bytes())
    np.save(side, np.zeros((2, 3), dtype=np.float32))
    own = Sample(id="own", video=str(video), question="q", answer="a", side_channels={"depth": str(side)})
    data = dataset([own], {"depth": Stored()}, cache="memory" if kind == "memory" else str(tmp_path / "cache"))
    assert data[0].side["depth"].features_KMC.unique().tolist() == [0]
    before = side.stat()
    np.save(side, np.ones((2, 3), dtype=np.float32))
    os.utime(side, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (side.stat().st_size, side.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert data[0].side["depth"].features_KMC.unique().tolist() == [1]
    report = data.cache_report
    assert (report.misses, report.items) == (2, 1 if kind == "memory" else 2)  # memory lets go of what it had
    if kind == "memory":
        assert report.num_bytes == 4 * 32 * 32 * 3 + 4 * 8 + 2 * 3 * 4 + 2 * 8


def test_frames_of_one_file_never_meet_the_side_stream_of_another(files, tmp_path):
    """A video that is replaced between its frames and its sound is refused, with a cache and without."""
    video = tmp_path / "own.mp4"

    class Replacing(Loudness):
        def encode(self, clip):
            shutil.copy(files / "silent.mp4", tmp_path / "new.mp4")
            os.replace(tmp_path / "new.mp4", video)
            return super().encode(clip)

    own = Sample(id="own", video=str(video), question="q", answer="a")
    for cache in (None, "memory", str(tmp_path / "cache")):
        shutil.copy(files / "sound.mp4", video)
        data = dataset([own], {"audio": Replacing()}, cache=cache)
        with pytest.raises(SampleError, match=r"sample 'own': .*own\.mp4: the file was changed during the run"):
            data[0]
        assert data.cache_report.items == 0


def test_damaged_cache_entry_is_made_again(files, tmp_path):
    first = dataset([sample(files)], cache=str(tmp_path))
    expected = first[0]
    (entry,) = tmp_path.rglob("*.safetensors")
    entry.write_bytes(entry.read_bytes()[:100])
    again = dataset([sample(files)], cache=str(tmp_path))
    assert_same(again[0], expected)
    assert again.cache_report.misses == 1
    assert_same(dataset([sample(files)], cache=str(tmp_path))[0], expected)
    for other in ({}, {"frames": torch.zeros(1)}, {**load_file(entry), "audio.times": torch.zeros(1)}):
        save_file(other, entry)
        assert_same(dataset([sample(files)], cache=str(tmp_path))[0], expected)


def test_cache_never_grows_beyond_its_limit(files, caplog):
    samples = [sample(files, "a"), sample(files, "b", "silent.mp4")]
    limited = dataset(samples, cache="memory", cache_bytes=4 * 32 * 32 * 3 + 500)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            for index in range(2):
                assert_same(limited[index], dataset(samples)[index])
    assert (
        limited.cache_report.items == 1 and limited.cache_report.full and limited.cache_report.num_bytes <= limited.cache_bytes
    )
    assert [record.message for record in caplog.records].count(caplog.records[0].message) == 1
    assert "cache is full with 1 videos" in caplog.text


def test_worker_processes_give_the_same_items(files, tmp_path):
    samples = [sample(files, "a"), sample(files, "b", "silent.mp4"), sample(files, "c")]
    plain = dataset(samples)
    loader = DataLoader(dataset(samples, cache=str(tmp_path)), batch_size=1, num_workers=2, collate_fn=lambda items: items[0])
    for index, item in enumerate(loader):
        assert_same(item, plain[index])


def test_encoders_must_fit_the_patch(files):
    with pytest.raises(ValueError, match=r"'audio'.*'log_mel' gives features of width 1.*set the channel's width to 1"):
        dataset([sample(files)], channels={"audio": SideChannelConfig(width=7)})
    with pytest.raises(ValueError, match="'depth' has no encoder"):
        dataset([sample(files)], {"audio": Loudness()}, CHANNELS)
