"""The feature store: named by content, never confused, never recomputed, never half-written."""

from __future__ import annotations

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pave.config import EncoderConfig, SideChannelConfig
from pave.data.dataset import PatchDataset
from pave.data.media import FrameSampling, read_audio, write_video
from pave.data.samples import Sample
from pave.data.sources import read_source
from pave.data.store import FeatureStore, ShardLimits, StoredChannels, collect, plan_features
from pave.data.store.plan import identify
from pave.side_channels import OwnEncoder, SideFeatures, build_encoder
from pave.utils.content import ContentHashes
from store_files import RATE, content, encoder, fill, sounds, write_sound


class Counting:
    """log_mel that counts what it encodes."""

    def __init__(self, **settings):
        self.inner, self.calls = encoder(**settings), 0

    def __getattr__(self, name):
        if name == "inner":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.inner, name)

    def encode_batch(self, sources):
        self.calls += len(sources)
        return self.inner.encode_batch(sources)


def key_of(samples, store, encoders=None):
    (key,) = plan_features(samples, encoders or {"audio": encoder()}, store.hashes()).wanted
    return key


def damaged(path, position=-5):
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(data)


def test_features_come_back_as_the_encoder_gives_them(tmp_path):
    samples = sounds(tmp_path / "in", 5)
    store, plan, report = fill(tmp_path / "store", samples, limits=ShardLimits(entries=2))
    assert (report.wanted, report.present, report.extracted, report.failures) == (5, 0, 5, [])
    assert report.decode_seconds > 0 and report.encode_seconds > 0 and 0 < report.decode_share < 1
    stored = StoredChannels(tmp_path / "store", {"audio": encoder()})
    for sample in samples:
        expected = encoder().encode(read_audio(sample.side_channels["audio"], RATE))
        found = stored.load("audio", sample.video, sample.side_channels["audio"])
        assert torch.equal(found.features_KMC, expected.features_KMC) and torch.equal(found.times_K, expected.times_K)
    (size,) = store.sizes()
    assert (size.name, size.entries, size.shards) == ("log_mel", 5, 3)
    assert size.num_bytes == sum(s.stat().st_size for s in store.shards(size.id)) > report.num_bytes > 0


def test_nothing_is_made_twice(tmp_path):
    """Neither again, nor for another sample about the file, nor for a copy or a renamed file."""
    samples = sounds(tmp_path / "in", 3)
    (tmp_path / "copy").mkdir()
    other = str(shutil.copy(samples[1].side_channels["audio"], tmp_path / "copy" / "renamed.wav"))
    copies = [
        *samples,
        Sample(id="again", video="x.mp4", question="?", side_channels={"audio": samples[0].side_channels["audio"]}),
    ]
    copies.append(Sample(id="copy", video="y.mp4", question="?", side_channels={"audio": other}))
    counting = Counting()
    _, plan, report = fill(tmp_path / "store", copies, {"audio": counting})
    assert counting.calls == report.wanted == report.extracted == 3
    assert sorted(map(sorted, plan.users.values())) == [["again", "s0"], ["copy", "s1"], ["s2"]]
    before = content(tmp_path / "store")
    _, _, again = fill(tmp_path / "store", copies, {"audio": counting})
    assert counting.calls == 3 and (again.present, again.extracted) == (3, 0) and content(tmp_path / "store") == before


def test_another_content_setting_or_encoder_is_another_entry(tmp_path):
    samples = sounds(tmp_path / "in", 1)
    path = tmp_path / "in" / "0.wav"
    store = fill(tmp_path / "store", samples)[0]
    first = key_of(samples, store)
    stat = path.stat()
    write_sound(path, 99)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    keys = {first, key_of(samples, store)}
    keys.add(key_of(samples, store, {"audio": encoder(step_seconds=0.5)}))
    keys.add(key_of(samples, store, {"audio": build_encoder(EncoderConfig(settings={"n_mels": 8, "offset_seconds": 0.5}))}))
    shutil.copy(path, tmp_path / "in" / "0.ogg")  # a reader may go by the ending
    keys.add(
        key_of([Sample(id="o", video="v.mp4", question="?", side_channels={"audio": str(tmp_path / "in" / "0.ogg")})], store)
    )
    assert len(keys) == 5
    stored = StoredChannels(tmp_path / "store", {"audio": encoder()})
    with pytest.raises(ValueError, match=r"0\.wav: the feature store .* has no features of side channel 'audio'.*pave extract"):
        stored.load("audio", samples[0].video, str(path))


def test_weights_are_named_by_their_content_or_commit(tmp_path, monkeypatch):
    hashes = ContentHashes(tmp_path / "hashes.json")

    def name(model, revision=None, nested=False):
        class Encoder:
            source = "audio"

            def spec(self):
                inner = EncoderConfig(name="deep", model=str(model), revision=revision)
                return EncoderConfig(name="outer", settings={"encoder": inner.to_dict()}) if nested else inner

        return identify(Encoder(), hashes).id

    for folder, data in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.safetensors").write_bytes(data)
    assert name(tmp_path / "a") == name(tmp_path / "b") != name(tmp_path / "c")
    assert name(tmp_path / "a", nested=True) == name(tmp_path / "b", nested=True) != name(tmp_path / "c", nested=True)
    assert name("org/model", "commit1") == name("org/model", "commit1") != name("org/model", "commit2")
    with pytest.raises(ValueError, match="nothing says which commit of 'org/model'"):
        name("org/model")
    before = name(tmp_path / "a"), identify(encoder(), hashes).id
    monkeypatch.setattr("pave.data.store.plan.FEATURES_VERSION", 1000)
    assert name(tmp_path / "a") != before[0] and identify(encoder(), hashes).id != before[1]
    monkeypatch.undo()
    monkeypatch.setattr("importlib.metadata.version", lambda package: "1000")
    assert name(tmp_path / "a") != before[0] and identify(encoder(), hashes).id == before[1]


def test_own_encoders_are_named_by_their_code(tmp_path, monkeypatch):
    code = "import torch\nfrom pave.side_channels import OwnEncoder, SideFeatures\nclass Own(OwnEncoder):\n    width = 1\n"
    code += "    def read(self, video, path):\n        return video\n"
    code += (
        "    def encode(self, source):\n        return SideFeatures(torch.full((2, 1), float({value})), torch.arange(2.0))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    video = write_sound(tmp_path / "v.wav", 0)
    (tmp_path / "v2.wav").write_bytes(video.read_bytes())
    ids = []
    for number in (1, 2):
        (tmp_path / f"own_code_{number}.py").write_text(code.format(value=number))
        own = build_encoder(EncoderConfig(name=f"own_code_{number}:Own"), f"own_code_{number}")
        samples = [Sample(id=n, video=str(tmp_path / n), question="?") for n in ("v.wav", "v2.wav")]
        store, plan, _ = fill(tmp_path / "store", samples, {"own": own})
        assert len(plan.wanted) == 2  # it may look beside the video, so the place counts
        stored = StoredChannels(tmp_path / "store", {"own": own})
        assert stored.load("own", str(video), None).features_KMC.unique().tolist() == [number]
        ids += plan.encoders
    assert len(set(ids)) == 2
    spec = own.spec()
    hashes = store.hashes()
    (tmp_path / "own_code_2.py").write_text(code.format(value=3))
    assert identify(own, hashes).id != ids[1] and own.spec() == spec

    class Hidden(OwnEncoder):
        width, read, encode = 1, None, None

    exec("class Made(Hidden): pass", {"Hidden": Hidden, "__name__": "nowhere_to_be_found"}, made := {})
    with pytest.raises(ValueError, match="has no source file"):
        identify(made["Made"](), hashes)


def test_missing_channels(tmp_path):
    """No track in the file is an entry; null and a channel without a file are not."""
    frames = np.zeros((8, 32, 32, 3), dtype=np.uint8)
    write_video(tmp_path / "silent.mp4", frames, fps=8)
    silent = Sample(id="a", video=str(tmp_path / "silent.mp4"), question="?")
    off = Sample(id="b", video=str(tmp_path / "silent.mp4"), question="?", side_channels={"audio": None})
    text = build_encoder(EncoderConfig(name="text_hash", settings={"width": 8}))
    _, plan, report = fill(tmp_path / "store", [silent, off], {"audio": encoder(), "text": text})
    assert list(plan.users.values()) == [["a"]] and (report.extracted, report.without_channel) == (1, 1)
    stored = StoredChannels(tmp_path / "store", {"audio": encoder(), "text": text})
    assert stored.load("audio", silent.video, None) is None and stored.load("text", silent.video, None) is None
    stored.check_complete([silent, off], "cmd")


@pytest.mark.parametrize("count", [1, 2])
def test_shards_keep_their_limits_and_depend_on_nothing_else(tmp_path, count):
    samples = sounds(tmp_path / "in", 7)
    one = 2 * 8 * 4 + 2 * 8  # 2 steps of 8 float32 and a float64 time
    limits = ShardLimits(entries=5, num_bytes=count * one)
    fill(tmp_path / "a", samples, limits=limits)
    store, _, _ = fill(tmp_path / "b", samples[::-1], limits=limits)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    (size,) = store.sizes()
    assert size.shards == {1: 7, 2: 4}[count]  # chunks of 5 and 2


def test_ranks_share_the_work_and_write_the_very_shards(tmp_path):
    samples = sounds(tmp_path / "in", 7)
    limits = ShardLimits(entries=2)
    fill(tmp_path / "one", samples, limits=limits)
    reports = [fill(tmp_path / "ranks", samples, limits=limits, rank=r, world_size=3)[2] for r in (2, 0, 1)]
    assert sum(r.extracted for r in reports) == 7 and reports[0].extracted + reports[0].foreign == 7
    assert content(tmp_path / "one") == content(tmp_path / "ranks")
    with pytest.raises(ValueError, match="rank"):
        fill(tmp_path / "ranks", samples, rank=3, world_size=3)


def test_failures_are_listed_and_the_rest_is_made(tmp_path):
    samples = sounds(tmp_path / "in", 3)
    (tmp_path / "in" / "bad.wav").write_bytes(b"RIFF but no sound")
    broken = [
        Sample(id=name, video="v.mp4", question="?", side_channels={"audio": str(tmp_path / "in" / file)})
        for name, file in (("x", "bad.wav"), ("y", "bad.wav"), ("z", "gone.wav"))
    ]
    for batch_size in (1, 4):
        store, _, report = fill(tmp_path / f"store{batch_size}", [*samples, *broken], batch_size=batch_size)
        assert report.extracted == 3
        assert [(f.samples, f.channel) for f in report.failures] == [(("x", "y"), "audio"), (("z",), "audio")]
        assert "bad.wav" in report.failures[0].message and "gone.wav" in report.failures[1].message
    with pytest.raises(ValueError, match=r"gone\.wav"):
        StoredChannels(tmp_path / "store1", {"audio": encoder()}).check_complete([*samples, *broken], "cmd")
    with pytest.raises(ValueError, match=r"lacks 1 of 4 features.*bad\.wav; run: cmd"):
        StoredChannels(tmp_path / "store1", {"audio": encoder()}).check_complete([*samples, *broken[:1]], "cmd")


def test_a_batch_that_an_encoder_refuses_is_tried_one_by_one(tmp_path):
    class Picky(Counting):
        def encode_batch(self, sources):
            if any(len(s) > RATE for s in sources):
                raise RuntimeError("out of memory")
            return super().encode_batch(sources)

    samples = sounds(tmp_path / "in", 4)
    write_sound(tmp_path / "in" / "2.wav", 2, seconds=1.5)
    _, _, report = fill(tmp_path / "store", samples, {"audio": Picky()}, batch_size=4)
    assert report.extracted == 3
    assert [(f.samples, f.message) for f in report.failures] == [(("s2",), "RuntimeError: out of memory")]


def test_a_file_that_changes_during_the_run_is_refused(tmp_path):
    samples = sounds(tmp_path / "in", 2)
    store = FeatureStore(tmp_path / "store", create=True)
    plan = plan_features(samples, {"audio": encoder()}, store.hashes())
    write_sound(tmp_path / "in" / "0.wav", 7, seconds=0.7)
    from pave.data.store import extract

    report = extract(plan, store, processes=0, progress=False)
    assert report.extracted == 1
    assert [f.samples for f in report.failures] == [("s0",)] and "changed during the run" in report.failures[0].message


def test_damage_is_seen_and_mended(tmp_path):
    samples = sounds(tmp_path / "in", 2)
    store, plan, _ = fill(tmp_path / "store", samples)
    good = content(tmp_path / "store")
    (name,) = plan.encoders
    (shard,) = store.shards(name)
    damaged(shard)
    stored = StoredChannels(tmp_path / "store", {"audio": encoder()})
    bad = 0
    for sample in samples:
        try:
            stored.load("audio", sample.video, sample.side_channels["audio"])
        except ValueError as error:
            bad += 1
            assert str(shard) in str(error) and "checksum" in str(error)
    assert bad == 1
    for cut in (0, 5, 100, shard.stat().st_size - 1):
        shard.write_bytes(shard.read_bytes()[:cut])
        with pytest.raises(ValueError, match="the shard is damaged"):
            FeatureStore(tmp_path / "store").index(name)
        assert fill(tmp_path / "store", samples)[2].extracted == 2
        assert content(tmp_path / "store") == good


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no feature store here"):
        FeatureStore(tmp_path / "none")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ValueError, match="holds other files"):
        FeatureStore(tmp_path / "other", create=True)
    FeatureStore(tmp_path / "store", create=True)
    (tmp_path / "store" / "store.json").write_text(json.dumps({"format": "pave feature store", "version": 2}))
    with pytest.raises(ValueError, match="not a feature store that this version reads"):
        FeatureStore(tmp_path / "store")


# --- garbage


def test_collection_lists_removes_and_packs(tmp_path):
    samples = sounds(tmp_path / "in", 9)
    limits = ShardLimits(entries=4)
    for part in (samples[:3], samples[3:5], samples[5:]):
        store, _, _ = fill(tmp_path / "store", part, limits=limits)
    fill(tmp_path / "store", samples, {"audio": encoder(step_seconds=0.5)})
    plan = plan_features(samples[2:], {"audio": encoder()}, store.hashes())
    before = content(tmp_path / "store")
    listed = collect(store, plan, remove=False, limits=limits)
    assert content(tmp_path / "store") == before and listed.shards_after is None
    assert len(listed.removed) == 2 + 9 and listed.kept == 7
    assert sorted(e.file for name, e in listed.removed if name in plan.encoders) == ["0.wav", "1.wav"]
    reader = StoredChannels(tmp_path / "store", {"audio": encoder()})
    expected = [reader.load("audio", s.video, s.side_channels["audio"]) for s in samples[2:]]
    report = collect(store, plan, limits=limits)
    assert report.removed == listed.removed and (report.kept, report.shards_after) == (7, 2)
    assert report.bytes_after < report.bytes_before and store.encoders() == list(plan.encoders)
    fill(tmp_path / "fresh", samples[2:], limits=limits)
    assert content(tmp_path / "store") == content(tmp_path / "fresh")
    for sample, old in zip(samples[2:], expected, strict=True):  # a reader with the old index goes on
        new = reader.load("audio", sample.video, sample.side_channels["audio"])
        assert torch.equal(new.features_KMC, old.features_KMC)
    assert collect(store, plan, limits=limits).removed == []


def test_collection_refuses_if_a_file_cannot_be_read(tmp_path):
    samples = sounds(tmp_path / "in", 2)
    store, _, _ = fill(tmp_path / "store", samples)
    before = content(tmp_path / "store")
    (tmp_path / "in" / "1.wav").unlink()
    with pytest.raises(ValueError, match=r"1 files of the samples cannot be read.*1\.wav"):
        collect(store, plan_features(samples, {"audio": encoder()}, store.hashes()))
    assert content(tmp_path / "store") == before


# --- the dataset


def test_dataset_reads_the_store_and_never_encodes(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    tone = np.sin(np.arange(RATE) * 0.2).astype(np.float32)
    write_video(tmp_path / "a.mp4", frames, fps=8, audio=tone, sample_rate=RATE)
    samples = [Sample(id="a", video=str(tmp_path / "a.mp4"), question="?", answer="b")]
    fill(tmp_path / "store", samples)
    counting, channels = Counting(), {"audio": SideChannelConfig(width=8)}
    stored = StoredChannels(tmp_path / "store", {"audio": counting})
    options = {"stored": stored, "cache": "memory"}
    data = PatchDataset(samples, FrameSampling(num_frames=2), {"audio": counting}, channels, **options)
    plain = PatchDataset(samples, FrameSampling(num_frames=2), {"audio": encoder()}, channels)[0]
    for item in (data[0], data[0], next(iter(DataLoader(data, batch_size=None, num_workers=1)))):
        assert torch.equal(item.side["audio"].features_KMC, plain.side["audio"].features_KMC)
    assert counting.calls == 0
    loaded = pickle.loads(pickle.dumps(stored)).load("audio", samples[0].video, None)
    for tensor in (loaded.features_KMC, loaded.times_K):  # no whole shard travels with it to another process
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_every_kind_of_source_is_named_by_what_it_reads(tmp_path):
    """Change what an encoder reads and the key changes, also inside folders and behind descriptions."""
    frames = np.zeros((8, 32, 32, 3), dtype=np.uint8)
    for name in ("v.mp4", "left.mp4", "right.mp4"):
        write_video(tmp_path / name, frames, fps=8)
    (tmp_path / "views.json").write_text('{"views": [{"name": "left", "video": "left.mp4"}]}')
    (tmp_path / "cams").mkdir()
    shutil.copy(tmp_path / "left.mp4", tmp_path / "cams" / "left.mp4")
    np.savez(tmp_path / "f.npz", features=np.ones((2, 4), np.float32))
    (tmp_path / "s.csv").write_text("time,x\n0,1\n1,2\n")
    (tmp_path / "t.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nhello\n")
    pixels = {"name": "frames_pixels", "settings": {"grid": 1, "detail": 1}}
    cases = {
        "features": (EncoderConfig(name="features", settings={"width": 4, "times": "spread"}), "f.npz", "f.npz"),
        "spread": (EncoderConfig(name="features", settings={"width": 4, "times": "spread"}), "f.npz", "v.mp4"),
        "sensor": (EncoderConfig(name="sensor_windows", settings={"columns": ["x"]}), "s.csv", "s.csv"),
        "text": (EncoderConfig(name="text_hash", settings={"width": 8}), "t.srt", "t.srt"),
        "video": (EncoderConfig(**pixels), None, "v.mp4"),
        "described": (
            EncoderConfig(name="multiview", settings={"views": ["left"], "encoder": pixels}),
            "views.json",
            "left.mp4",
        ),
        "folder": (EncoderConfig(name="multiview", settings={"views": ["left"], "encoder": pixels}), "cams", "cams/left.mp4"),
    }
    for name, (config, path, changed) in cases.items():
        made = build_encoder(config)
        own = {} if path is None else {name: str(tmp_path / path)}
        samples = [Sample(id=name, video=str(tmp_path / "v.mp4"), question="?", side_channels=own)]
        store, _, report = fill(tmp_path / name, samples, {name: made})
        assert (report.extracted, report.failures) == (1, []), name
        found = StoredChannels(tmp_path / name, {name: made}).load(name, samples[0].video, own.get(name))
        expected = made.encode(read_source(made, samples[0].video, own.get(name)))
        assert torch.equal(found.features_KMC, expected.features_KMC), name
        before = key_of(samples, store, {name: made})
        with (tmp_path / changed).open("ab") as file:
            file.write(b"\n")
        assert key_of(samples, store, {name: made}) != before, name
    before = key_of(samples, store, {name: made})
    (tmp_path / "cams" / "left.mp4").rename(tmp_path / "cams" / "right.mp4")
    assert key_of(samples, store, {name: made}) != before  # a camera is called after its file


def test_empty_streams_can_be_stored(tmp_path):
    class Empty(Counting):
        def encode_batch(self, sources):
            return [SideFeatures(torch.zeros(0, 1, 8), torch.zeros(0)) for _ in sources]

    samples = sounds(tmp_path / "in", 2)
    fill(tmp_path / "store", samples, {"audio": Empty()})
    stored = StoredChannels(tmp_path / "store", {"audio": Empty()})
    assert stored.load("audio", "v.mp4", samples[0].side_channels["audio"]).features_KMC.shape == (0, 1, 8)
