"""Pictures as the file says that they are shown: mirrored, turned, with square pixels; and what is said about them."""

import itertools
from fractions import Fraction

import av
import av.filter
import numpy as np
import pytest

from media_files import bars, squashed, write_header_matrix
from pave.data.media import FrameSampling, FramesInPieces, MediaError, probe, read_frames, remarks, write_video

HEIGHT, WIDTH = 32, 64
EIGHT = [
    (a, b, c, d)
    for a, b, c, d in itertools.product((-1, 0, 1), repeat=4)
    if abs(a * d - b * c) == 1 and not a * b and not c * d
]


def corner(path, **options):
    """Three pictures of noise in large patches, so that no two orientations look alike."""
    picture = np.random.default_rng(0).integers(0, 255, (1, HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    write_video(path, picture.repeat(3, axis=0).repeat(8, axis=1).repeat(8, axis=2), fps=10, **options)
    return path


def shown(stored_HWC, matrix):
    """ISO 14496-12, 8.3.2: (x, y) is shown at (a x + c y, b x + d y), shifted so that both begin at 0."""
    a, b, c, d = matrix
    y, x = np.indices(stored_HWC.shape[:2])
    right, down = a * x + c * y, b * x + d * y
    picture = np.zeros((int(np.ptp(down)) + 1, int(np.ptp(right)) + 1, 3), dtype=np.uint8)
    picture[down - down.min(), right - right.min()] = stored_HWC
    return picture


@pytest.mark.parametrize("matrix", EIGHT, ids=str)
def test_all_eight_orientations_are_shown_as_the_file_says(tmp_path, matrix):
    path = corner(tmp_path / "a.mp4")
    stored = read_frames(path).frames_FHWC
    write_header_matrix(path, matrix)
    expected = np.stack([shown(frame, matrix) for frame in stored])
    clip = read_frames(path)
    np.testing.assert_array_equal(clip.frames_FHWC, expected)
    np.testing.assert_array_equal(
        np.concatenate([piece.frames_FHWC for piece in FramesInPieces(path, FrameSampling())]), expected
    )
    info = probe(path).video
    assert (info.height, info.width) == clip.size
    assert info.mirrored == (matrix[0] * matrix[3] - matrix[1] * matrix[2] < 0)
    turned = np.rot90(stored, info.rotation // 90, axes=(1, 2))
    np.testing.assert_array_equal(turned[:, :, ::-1] if info.mirrored else turned, expected)
    assert [code for code, _ in remarks(probe(path))] == (["picture-mirrored"] if info.mirrored else [])


def test_there_are_eight():
    assert len(EIGHT) == 8


def test_a_matrix_a_little_off_a_quarter_turn_is_one_and_a_matrix_of_zeros_says_nothing(tmp_path):
    path = corner(tmp_path / "a.mp4")
    stored = read_frames(path).frames_FHWC
    write_header_matrix(path, (0.01, 1, -1, 0.01))
    np.testing.assert_array_equal(read_frames(path).frames_FHWC, np.rot90(stored, -1, axes=(1, 2)))
    write_header_matrix(path, (0, 0, 0, 0))
    np.testing.assert_array_equal(read_frames(path).frames_FHWC, stored)
    write_header_matrix(path, (0.7071, 0.7071, 0.7071, -0.7071))
    with pytest.raises(MediaError, match=r"a\.mp4: the file states a rotation of (-?45|-?135) degrees; only quarter turns"):
        read_frames(path)


# --- pixels that are not square


def white(frame_HWC):
    """(height, width) of what is white."""
    ys, xs = np.nonzero(frame_HWC[:, :, 0] > 128)
    return np.ptp(ys) + 1, np.ptp(xs) + 1


@pytest.mark.parametrize(
    ("name", "codec", "aspect"),
    [
        ("a.mp4", "libx264", Fraction(16, 9)),
        ("a.mkv", "libx264", Fraction(16, 9)),
        ("a.ts", "libx264", Fraction(64, 45)),
        ("a.ts", "mpeg2video", Fraction(16, 9)),
        ("a.avi", "mpeg4", Fraction(4, 3)),
        ("a.mp4", "libx264", Fraction(8, 9)),
        ("a.mp4", "libx264", Fraction(1, 2)),
    ],
)
def test_pixels_are_square_when_they_are_read(tmp_path, name, codec, aspect):
    path = squashed(tmp_path / name, aspect, codec)
    clip = read_frames(path, FrameSampling(num_frames=3))
    assert clip.size == (144, int(144 * aspect))
    height, width = white(clip.frames_FHWC[0])
    assert height == 72 and abs(width - 72 * aspect) < 1.5
    info = probe(path)
    assert (info.video.height, info.video.width) == clip.size
    assert info.video.pixel_aspect == pytest.approx(float(aspect))
    ((code, sentence),) = remarks(info)
    assert code == "pixels-not-square" and f"{clip.size[1]}x144" in sentence


def test_square_pixels_are_not_touched(tmp_path):
    path = squashed(tmp_path / "a.mp4", Fraction(1))
    assert read_frames(path).size == (144, 144) and not list(remarks(probe(path)))


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (0, 1, 1, 0)])
def test_pixels_are_made_square_before_the_picture_is_turned(tmp_path, matrix):
    path = squashed(tmp_path / "a.mp4", Fraction(16, 9))
    before = read_frames(path).frames_FHWC
    write_header_matrix(path, matrix)
    clip = read_frames(path)
    assert clip.size == (256, 144) and abs(white(clip.frames_FHWC[0])[0] - 128) < 1.5
    np.testing.assert_array_equal(clip.frames_FHWC, np.stack([shown(frame, matrix) for frame in before]))


def test_a_pixel_aspect_that_cannot_be_right_is_an_error(tmp_path):
    for aspect in (Fraction(40), Fraction(1, 40)):
        path = squashed(tmp_path / "a.mp4", aspect)
        with pytest.raises(
            MediaError, match=rf"a\.mp4: the file states pixels {aspect} times as wide as high, which cannot be right"
        ):
            read_frames(path)


# --- how colours become RGB


def filtered(path, scale):
    """What FFmpeg's own filters make of a file, as its program would."""
    pictures = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            graph = av.filter.Graph()
            nodes = [graph.add_buffer(template=container.streams.video[0]), graph.add("scale", scale)]
            graph.link_nodes(*nodes, graph.add("format", "rgb24"), graph.add("buffersink")).configure()
            graph.vpush(frame)
            pictures.append(graph.vpull().to_ndarray())
    return np.stack(pictures)


@pytest.mark.parametrize(
    ("aspect", "options", "pix_fmt"),
    [
        (Fraction(1), {}, "yuv420p"),
        (Fraction(16, 9), {}, "yuv420p"),
        (Fraction(1), {}, "yuv420p10le"),
        (Fraction(1), {}, "yuv444p"),
        (Fraction(8, 9), {"x264-params": "interlaced=1"}, "yuv420p"),
    ],
)
def test_pictures_are_those_of_ffmpegs_filters(tmp_path, aspect, options, pix_fmt):
    path = squashed(tmp_path / "a.mp4", aspect, pix_fmt=pix_fmt, **options)
    np.testing.assert_array_equal(read_frames(path).frames_FHWC, filtered(path, f"w={int(144 * aspect)}:h=144"))


# --- what is said and not undone


def test_a_high_dynamic_range_and_half_pictures_are_told(tmp_path):
    def written(name, options, color_trc=None):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream("libx264", rate=10, options=options)
            stream.width, stream.height, stream.pix_fmt = 128, 48, "yuv420p"
            if color_trc is not None:
                stream.codec_context.color_trc = color_trc
            for tick, pixels in enumerate(bars(4)):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
                if color_trc is not None:
                    frame.color_trc = color_trc
                frame.pts, frame.time_base = tick, Fraction(1, 10)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return probe(tmp_path / name)

    plain = written("a.mp4", {})
    assert (plain.video.hdr, plain.video.interlaced) == (None, False) and not list(remarks(plain))
    for number, name in ((16, "PQ"), (18, "HLG")):
        found = written("b.mp4", {}, number)
        assert found.video.hdr == name
        assert [code for code, _ in remarks(found)] == ["picture-hdr"]
    woven = written("c.mp4", {"x264-params": "interlaced=1"})
    assert woven.video.interlaced
    assert [code for code, _ in remarks(woven)] == ["picture-interlaced"]
