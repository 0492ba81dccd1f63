"""Small media files for tests. Every video frame carries its own index as black and white bars, so a wrong frame shows."""

import struct
from fractions import Fraction

import av
import numpy as np

HEIGHT, WIDTH, BITS = 48, 128, 8
VARIABLE_STEPS = [1, 2, 1, 3, 1, 1, 7, 2]


def bars(count, height=HEIGHT, width=WIDTH):
    frames = np.zeros((count, height, width, 3), dtype=np.uint8)
    step = width // BITS
    for index in range(count):
        for bit in range(BITS):
            if index >> bit & 1:
                frames[index, :, bit * step : (bit + 1) * step] = 255
    return frames


def indices(frames_FHWC):
    step = frames_FHWC.shape[2] // BITS
    middle = frames_FHWC[:, 4:-4].astype(float)
    bright = [middle[:, :, bit * step + 4 : (bit + 1) * step - 4].mean(axis=(1, 2, 3)) > 128 for bit in range(BITS)]
    return [int(sum(int(bright[bit][i]) << bit for bit in range(BITS))) for i in range(len(frames_FHWC))]


def encode(
    path,
    ticks,
    unit=Fraction(1, 20),
    codec="libx264",
    first=0,
    gop=12,
    b_frames=3,
    container_options=None,
    fmt=None,
    options=None,
):
    """A file with one frame at each of ``ticks`` (counts of ``unit`` seconds), many keyframes and B-frames."""
    with av.open(str(path), "w", format=fmt, options=container_options or {}) as container:
        usual = {
            "libx264": {"preset": "veryfast", "crf": "18", "x264-params": "scenecut=0"},
            "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
        }
        stream = container.add_stream(codec, rate=1 / unit, options={**usual.get(codec, {}), **(options or {})})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = gop
        if codec != "libvpx-vp9":
            stream.codec_context.max_b_frames = b_frames
        if codec != "mpeg4":
            stream.codec_context.time_base = unit
        for pixels, tick in zip(bars(len(ticks)), ticks, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = first + tick, unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


CONSTANT = list(range(100))
VARIABLE = [0, *np.cumsum(np.resize(VARIABLE_STEPS, 99)).tolist()]


def noise(seconds, rate, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, int(seconds * rate)).astype(np.float32)


def write_sound(
    path, samples_nC, rate, codec, sample_format, layout, starts=None, container_format=None, piece=1000, options=None
):
    """A sound file; ``starts`` are the (source, destination) samples of pieces, to leave gaps."""
    with av.open(str(path), "w", format=container_format, options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        stream.codec_context.format = sample_format
        size = stream.codec_context.frame_size or piece
        shift = 0
        for start in range(0, len(samples_nC), size):
            if starts and start >= starts[0]:
                shift = starts[1]
            block = samples_nC[start : start + size]
            data = np.ascontiguousarray(block.T if sample_format.endswith("p") else block.reshape(1, -1))
            frame = av.AudioFrame.from_ndarray(data, format=sample_format, layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, start + shift, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_header_matrix(path, matrix):
    """Write a display matrix (a, b, c, d) into the track header of an mp4."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (round(value * 65536) for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def several(path, audio=(False, True, False), video=(True,)):
    """A file with tracks of which some are flagged default: sound track i is a constant (i + 1) / 10, picture track i a grey 60 (i + 1)."""
    default = av.stream.Disposition.default
    with av.open(str(path), "w") as container:
        pictures = [container.add_stream("libx264", rate=10) for _ in video]
        sounds = [container.add_stream("flac", rate=8000, layout="mono") for _ in audio]
        for stream, flag in zip([*pictures, *sounds], [*video, *audio], strict=True):
            stream.disposition = default if flag else av.stream.Disposition(0)
        for stream in pictures:
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for stream in sounds:
            stream.codec_context.format = "s16"
        for number, stream in enumerate(pictures):
            for tick in range(10):
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 60 * (number + 1), np.uint8), format="rgb24")
                frame.pts, frame.time_base = tick, Fraction(1, 10)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        for number, stream in enumerate(sounds):
            samples = np.full((1, 8000), 3277 * (number + 1), np.int16)
            for start in range(0, 8000, 4000):
                frame = av.AudioFrame.from_ndarray(samples[:, start : start + 4000], format="s16", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = 8000, start, Fraction(1, 8000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


def squashed(path, aspect, codec="libx264", pix_fmt="yuv420p", height=144, width=144, **options):
    """A white square in stored pixels, in the middle, on coloured dots that are less bright."""
    picture = np.random.default_rng(0).integers(0, 90, (height, width, 3), dtype=np.uint8)
    picture[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4] = 255
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.sample_aspect_ratio = aspect
        for tick in range(5):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
