"""From real files to frame encoders: dense frames in pieces, further cameras, and what a cache notices."""

import json

import numpy as np
import pytest
import torch

import media_files
from pave.config import EncoderConfig, SideChannelConfig
from pave.data.dataset import PatchDataset
from pave.data.descriptors import files_named
from pave.data.media import FrameSampling, FramesInPieces, MediaError, read_frames, write_video
from pave.data.media.frames import _Reader
from pave.data.samples import Sample
from pave.data.sources import read_source
from pave.data.views import read_views
from pave.side_channels import build_encoder

PIXELS = {"name": "frames_pixels", "settings": {"fps": 4, "grid": 1, "detail": 1}}


def film(path, brightness, fps=10.0, side=16, **options):
    """A grey video, one brightness a frame."""
    frames = np.repeat(np.asarray(brightness, dtype=np.uint8), side * side * 3).reshape(-1, side, side, 3)
    write_video(path, frames, crf=0, durable=False, **({} if "times" in options else {"fps": fps}), **options)
    return str(path)


def brightness(features):
    """Of each step of ``PIXELS``, 0 to 255."""
    return ((features.features_KMC[:, 0, :3].mean(dim=1) + 1) * 127.5).numpy()


def build(name, **settings):
    return build_encoder(EncoderConfig(name=name, settings=settings))


# --- frames in pieces


@pytest.mark.parametrize("piece", [1, 7, 64])
@pytest.mark.parametrize("sampling", [FrameSampling(), FrameSampling(fps=3), FrameSampling(fps=50, max_frames=20)])
@pytest.mark.parametrize(("name", "ticks"), [("c.mp4", media_files.CONSTANT), ("v.mkv", media_files.VARIABLE)])
def test_pieces_are_the_frames_that_are_read_at_once(name, ticks, sampling, piece, tmp_path):
    path = media_files.encode(tmp_path / name, ticks[:60])
    whole = read_frames(path, sampling)
    stream = FramesInPieces(path, sampling, piece)
    for _ in range(2):  # it may be gone through again
        clips = list(stream)
        assert [len(clip.times_F) for clip in clips[:-1]] == [piece] * (len(clips) - 1)
        assert np.array_equal(np.concatenate([clip.frames_FHWC for clip in clips]), whole.frames_FHWC)
        assert np.concatenate([clip.times_F for clip in clips]).tolist() == whole.times_F.tolist()
        assert np.concatenate([clip.indices_F for clip in clips]).tolist() == whole.indices_F.tolist()


def test_files_without_time_stamps_come_in_pieces_too(tmp_path):
    path = media_files.encode(tmp_path / "a.avi", media_files.CONSTANT[:30], codec="mpeg4")
    whole = read_frames(path)
    clips = list(FramesInPieces(path, FrameSampling(), 8))
    assert np.array_equal(np.concatenate([clip.frames_FHWC for clip in clips]), whole.frames_FHWC)


def test_where_seeking_misleads_the_rest_comes_in_one_go(tmp_path, monkeypatch):
    path = media_files.encode(tmp_path / "c.mp4", media_files.CONSTANT)
    whole = read_frames(path, FrameSampling(fps=1))
    planned = _Reader.planned

    def stops_after_three(self, index, plan):
        by_seeking = any(key is not None for key, _ in plan)
        for position, frame in enumerate(planned(self, index, plan)):
            yield None if by_seeking and position == 3 else frame

    monkeypatch.setattr(_Reader, "planned", stops_after_three)
    clips = list(FramesInPieces(path, FrameSampling(fps=1), 2))
    assert np.array_equal(np.concatenate([clip.frames_FHWC for clip in clips]), whole.frames_FHWC)
    assert np.concatenate([clip.times_F for clip in clips]).tolist() == whole.times_F.tolist()


def test_a_missing_or_damaged_video_is_named_when_its_frames_are_asked_for(tmp_path):
    encoder = build_encoder(EncoderConfig.from_dict(PIXELS))
    with pytest.raises(MediaError, match=r"gone\.mp4: there is no such file"):
        encoder.encode(read_source(encoder, str(tmp_path / "gone.mp4"), None))
    path = film(tmp_path / "cut.mp4", range(100))
    data = (tmp_path / "cut.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError, match=r"cut\.mp4"):
        encoder.encode(read_source(encoder, path, None))


# --- the video itself, sampled densely


def test_dense_frames_have_their_true_times_also_at_a_variable_rate(tmp_path):
    times = np.cumsum([0, 0.1, 0.3, 0.1, 0.1, 0.5, 0.2, 0.1])
    path = film(tmp_path / "v.mp4", [10, 30, 50, 70, 90, 110, 130, 150], times=times)
    every = build("frames_pixels", fps=None, grid=1, detail=1)
    features = every.encode(read_source(every, path, None))
    np.testing.assert_allclose(features.times_K, times, atol=1e-4)
    np.testing.assert_allclose(brightness(features), [10, 30, 50, 70, 90, 110, 130, 150], atol=2)
    sampled = build("frames_pixels", fps=5, grid=1, detail=1)
    features = sampled.encode(read_source(sampled, path, None))
    clip = read_frames(path, FrameSampling(fps=5))
    assert features.times_K.tolist() == clip.times_F.tolist() and 4 < len(features) < 8
    few = build("frames_pixels", fps=None, max_frames=3, grid=1, detail=1)
    assert len(few.encode(read_source(few, path, None))) == 3


def test_a_channel_may_have_another_video_than_the_sample(tmp_path):
    own, other = film(tmp_path / "a.mp4", [20] * 10), film(tmp_path / "b.mp4", [200] * 10)
    encoder = build_encoder(EncoderConfig.from_dict(PIXELS))
    for path, expected in ((None, 20), (other, 200)):
        assert brightness(encoder.encode(read_source(encoder, own, path))) == pytest.approx(expected, abs=2)


# --- further cameras


@pytest.fixture
def cameras(tmp_path):
    folder = tmp_path / "cameras"
    folder.mkdir()
    film(folder / "left.mp4", [40] * 10)
    film(folder / "right.mp4", [160] * 20)
    (folder / "notes.txt").write_text("not a video")
    return folder


def described(folder, views):
    path = folder / "views.json"
    path.write_text(json.dumps({"views": views}))
    return str(path)


def test_a_folder_of_videos_has_a_view_for_each(cameras):
    encoder = build("multiview", views=["right", "left"], encoder=PIXELS)
    features = encoder.encode(read_source(encoder, "unused.mp4", str(cameras)))
    left = features.features_KMC[:, 0, 8] == 1
    assert (left.sum(), (~left).sum()) == (4, 8)
    assert brightness(features)[left] == pytest.approx(40, abs=2) and brightness(features)[~left] == pytest.approx(160, abs=2)
    assert features.times_K[left].tolist() == pytest.approx([0, 0.2, 0.5, 0.7])


def test_a_description_gives_every_camera_its_own_clock(cameras):
    encoder = build("multiview", views=["left", "right"], encoder=PIXELS)
    views = [{"name": "left", "video": "left.mp4", "offset_seconds": 0.4}, {"name": "right", "video": None}]
    features = encoder.encode(read_source(encoder, "unused.mp4", described(cameras, views)))
    assert features.times_K.tolist() == pytest.approx([0.4, 0.6, 0.9, 1.1])
    assert features.features_KMC[:, 0, 7:].tolist() == [[1, 0]] * 4


def test_one_video_is_one_view(cameras):
    alone = build("multiview", views=["door"], encoder=PIXELS)
    assert len(alone.encode(read_source(alone, "unused.mp4", str(cameras / "left.mp4")))) == 4
    two = build("multiview", views=["left", "right"], encoder=PIXELS)
    features = two.encode(read_source(two, "unused.mp4", str(cameras / "right.mp4")))
    assert features.features_KMC[:, 0, 7:].tolist() == [[0, 1]] * 8


def test_a_sample_without_views_lacks_the_channel(cameras):
    encoder = build("multiview", views=["left", "right"], encoder=PIXELS)
    assert read_source(encoder, "unused.mp4", None) is None
    nothing = described(cameras, [{"name": "left", "video": None}])
    assert read_source(encoder, "unused.mp4", nothing) is None


@pytest.mark.parametrize(
    ("views", "words"),
    [
        ([{"name": "top", "video": "left.mp4"}], "there is a view 'top', but the encoder's views are left, right"),
        ([{"name": "left", "video": "gone.mp4"}], r"gone\.mp4: there is no such video of the view 'left'"),
        ([{"name": "left", "video": "left.mp4"}] * 2, "the view 'left' is there twice"),
        ([{"name": "left", "vidio": "left.mp4"}], r"views\[0\]: unknown key 'vidio'; known keys: name, video, offset_seconds"),
        ([{"name": "left"}], r"views\[0\]: the key 'video' is missing"),
        ([{"name": "left", "video": "left.mp4", "offset_seconds": "1"}], "offset_seconds: a number is needed, got '1'"),
        ([{"name": "left", "video": 3}], "video: the path of a file is needed, got 3"),
        ({"left": "left.mp4"}, "views must be a list"),
        (["left.mp4"], "an object in braces is needed, got str"),
    ],
)
def test_bad_descriptions_are_refused(views, words, cameras):
    with pytest.raises(ValueError, match=words) as caught:
        read_views(described(cameras, views), ["left", "right"], FrameSampling())
    assert str(cameras) in str(caught.value)


def test_other_paths_are_refused(cameras, tmp_path):
    (tmp_path / "empty").mkdir()
    (cameras / "bad.json").write_text('{"views": [NaN]}')
    for path, words in (
        (tmp_path / "empty", "the folder holds no video"),
        (cameras / "bad.json", "bad.json: NaN is no number of JSON"),
        (tmp_path / "gone.json", "there is no such file"),
        (tmp_path / "gone.mp4", "'gone', but the encoder's views are left, right"),
    ):
        with pytest.raises(ValueError, match=words):
            read_views(str(path), ["left", "right"], FrameSampling())


# --- through the dataset


def channel(encoder):
    return SideChannelConfig(kind="frames", width=encoder.width, encoder=encoder.spec())


def test_samples_of_both_channels_become_items_and_null_is_missing(cameras, tmp_path):
    video = film(tmp_path / "video.mp4", range(0, 200, 4))
    encoders = {
        "dense": build_encoder(EncoderConfig.from_dict(PIXELS)),
        "cameras": build("multiview", views=["left"], encoder=PIXELS),
    }
    whole = {"cameras": str(cameras / "left.mp4")}
    samples = [
        Sample(id="1", video=video, question="?", side_channels=whole),
        Sample(id="2", video=video, question="?", side_channels={"dense": None, "cameras": None}),
    ]
    channels = {name: channel(encoder) for name, encoder in encoders.items()}
    dataset = PatchDataset(samples, FrameSampling(num_frames=4), encoders, channels, cache=str(tmp_path / "cache"))
    first, second = dataset[0], dataset[1]
    assert len(first.side["dense"]) == 20 and len(first.side["cameras"]) == 4 and set(second.side.values()) == {None}
    again = dataset[0]
    assert dataset.cache_report.hits == 1
    assert torch.equal(again.side["dense"].features_KMC, first.side["dense"].features_KMC)


def test_a_cache_notices_what_changes_behind_a_path(cameras, tmp_path):
    video = film(tmp_path / "video.mp4", range(0, 200, 4))
    encoder = build("multiview", views=["left", "right"], encoder=PIXELS)
    for path in (described(cameras, [{"name": "left", "video": "left.mp4"}]), str(cameras)):
        samples = [Sample(id="1", video=video, question="?", side_channels={"cameras": path})]
        dataset = PatchDataset(
            samples, FrameSampling(num_frames=4), {"cameras": encoder}, {"cameras": channel(encoder)}, cache="memory"
        )
        before = dataset[0].side["cameras"]
        assert dataset[0].side["cameras"] is before
        film(cameras / "left.mp4", [90] * 15)
        after = dataset[0].side["cameras"]
        assert dataset.cache_report.misses == 2 and len(after) > len(before)
        film(cameras / "left.mp4", [40] * 10)


def test_files_behind_a_path_are_found_or_left_to_the_reader(cameras):
    path = described(cameras, [{"name": "left", "video": "left.mp4"}, {"name": "right", "video": "gone.mp4"}])
    assert files_named(path) == [path, str(cameras / "left.mp4")]
    names = ["left.mp4", "notes.txt", "right.mp4", "views.json"]
    assert files_named(str(cameras)) == [str(cameras / name) for name in names]
    (cameras / "odd.json").write_text("[" * 100_000)
    for name in ("odd.json", "gone.json", "left.mp4"):
        assert files_named(str(cameras / name)) == [str(cameras / name)]


def test_an_encoder_of_the_wrong_kind_is_named():
    class Odd:
        source = "views"

    with pytest.raises(ValueError, match=r"source 'views' is a pave.side_channels.multiview.MultiViewEncoder, got"):
        read_source(Odd(), "video.mp4", None)
