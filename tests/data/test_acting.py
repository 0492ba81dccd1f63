"""How much of a stream can act: by its times, its values and its content, and what is said of it."""

import re

import numpy as np
import pytest
import torch

from pave.config import FusionConfig, SideChannelConfig
from pave.data.acting import LEAST_ACTING, ActingWatch, how_much_acts
from pave.data.doctor.inside import agreement, look_at_pictures
from pave.data.media import FrameSampling
from pave.fusion.temporal_alignment import align
from pave.side_channels import SideFeatures
from pave.side_channels.geometry import invert_pose
from pave.side_channels.scene3d import PosedPicture
from rendered_scene import intrinsics, look, render

FRAMES = np.arange(8) + 0.5  # of a video of 8 s
TIMED = FusionConfig()


def stream(times, values=None):
    times = torch.as_tensor(times, dtype=torch.float64)
    return SideFeatures(torch.ones(len(times), 2) if values is None else values, times)


STEPS = torch.arange(16) / 2 + 0.25


@pytest.mark.parametrize(
    ("times", "fusion", "share", "words"),
    [
        (STEPS, {}, 1.0, ""),
        (STEPS * 1000, {}, 0.0, "16 lie outside of what frames reach, 0 to 8 s .*it looks like milliseconds read as seconds"),
        (STEPS * 1e6, {}, 0.0, "it looks like microseconds read as seconds"),
        (STEPS * 1e9, {}, 0.0, "it looks like nanoseconds read as seconds"),
        (STEPS + 1.7e6, {}, 0.0, r"\(the stream: 1\.7e\+06 to 1\.7e\+06 s\); it looks like a clock with another zero"),
        (STEPS + 6, {}, 0.25, "12 lie outside"),
        (STEPS - 4, {}, 0.5, "8 lie outside"),
        (STEPS + 6, {"neighbourhood_seconds": 2}, 0.5, "outside of what frames reach, -2 to 10 s"),
        (STEPS + 6, {"neighbourhood_frames": 3}, 0.25, "reach, 0 to 8 s"),
        (STEPS + 6, {"alignment": "index"}, 0.25, "reach, 0 to 8 s"),
        (STEPS + 6, {"kind": "concat", "neighbourhood_seconds": 2}, 0.25, "reach, 0 to 8 s"),
    ],
)
def test_steps_count_where_a_frame_can_reach_them(times, fusion, share, words):
    found = how_much_acts(stream(times), FRAMES, FusionConfig(**fusion))
    assert (found.steps, found.share) == (16, share)
    assert found.is_little == (share < LEAST_ACTING) and bool(found.why) == bool(words)
    assert re.search(words, str(found)) is not None


def test_what_counts_is_what_the_alignment_lets_act():
    """The share of random streams is the share of the steps that some frame reads, by the alignment itself."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        frames = np.sort(rng.uniform(0, 10, rng.integers(1, 9)))
        times = torch.from_numpy(rng.uniform(-5, 15, rng.integers(1, 30)))
        settings = {"neighbourhood_frames": int(rng.integers(0, 3)), "neighbourhood_seconds": float(rng.choice([0, 1.5]))}
        valid = torch.ones(1, len(frames), dtype=torch.bool)
        windows = align(
            valid, torch.from_numpy(frames)[None], torch.ones(1, len(times), dtype=torch.bool), times[None], **settings
        )
        read = set()
        for start, length in zip(windows.start_BT[0].tolist(), windows.length_BT[0].tolist(), strict=True):
            read.update(range(start, start + length))
        assert how_much_acts(stream(times), frames, FusionConfig(**settings)).share == pytest.approx(len(read) / len(times))


def test_steps_that_are_not_finite_or_hold_nothing_valid_do_not_count():
    values = torch.ones(16, 2)
    values[:4, 1], values[4, 0] = np.nan, np.inf
    found = how_much_acts(stream(STEPS, values), FRAMES, TIMED)
    assert found.share == 11 / 16 and found.why == ("5 hold NaN or infinity",)

    class Halves:
        unusable = "without a valid depth"

        def usable(self, features):
            return torch.tensor([0.5] * 8 + [0.0] * 8)

    found = how_much_acts(stream(STEPS), FRAMES, TIMED, Halves())
    assert found.share == 0.25 and str(found) == "25 % of its 16 steps can act: 75 % is without a valid depth"
    assert str(how_much_acts(stream([]), FRAMES, TIMED)) == "nothing of its 0 steps can act: there is not a single step"


def test_what_lies_outside_of_a_window_that_was_asked_for_is_no_fault():
    window = FrameSampling(num_frames=2, start=2, end=4)
    frames = np.array([2.5, 3.5])
    assert how_much_acts(stream(STEPS), frames, TIMED).share == 0.25
    assert how_much_acts(stream(STEPS), frames, TIMED, sampling=window).share == 1
    assert how_much_acts(stream(STEPS * 1000), frames, TIMED, sampling=window).share == 0
    assert how_much_acts(stream(STEPS - 4), frames, TIMED, sampling=window).share == 4 / 12


def test_a_watch_says_once_for_each_channel_who_is_worst():
    channels = {name: SideChannelConfig(width=2) for name in ("imu", "audio", "depth")}
    watch = ActingWatch(channels, {})
    for i in range(10):
        good = stream(STEPS)
        watch.note(f"s{i}", "imu", stream(STEPS * 1000 if i < 7 else STEPS), FRAMES)
        watch.note(f"s{i}", "audio", good, FRAMES)
        watch.note(f"s{i}", "depth", stream(STEPS + 100) if i else None, FRAMES)
        watch.note(f"s{i}", "imu", good, FRAMES)  # a sample is looked at once
        watch.note(f"none{i}", "imu", stream([]), FRAMES)
    assert watch.idle() == ["depth"]
    said = watch.sentences("samples looked at")
    assert list(said) == ["imu", "depth"]
    assert said["imu"].startswith(
        "side channel 'imu': in 7 of 10 samples looked at that have it, nothing of it can act ('s0' 0 %, 's1' 0 %, 's2' 0 %, 's3' 0 %, "
        "'s4' 0 % and 2 more); in 's0', nothing of its 16 steps can act: 16 lie outside"
    )
    assert "in 9 of 9 samples" in said["depth"]
    watch.clear()
    assert watch.sentences() == {} and watch.idle() == []


# --- poses of another convention

H, W = 24, 32
K = intrinsics(H, W, 30.0)
POSES = [look(0.1 * i, 0.05 * i, (0.2 * i, -0.1 * i, 0.3 * i)) for i in range(4)]
FLIP = np.diag([1.0, -1, -1, 1])


@pytest.fixture(scope="module")
def rendered():
    return [render(pose, K, H, W) for pose in POSES]


def pictures(rendered, poses, scale=1.0):
    depths = [np.where(depth < 60, depth * scale, 0).astype(np.float32) for depth, _, _ in rendered]
    return [
        PosedPicture(rgb, depth, K, K, pose, float(i))
        for i, ((_, _, rgb), depth, pose) in enumerate(zip(rendered, depths, poses, strict=True))
    ]


@pytest.mark.parametrize(
    ("convert", "name"),
    [
        (lambda pose: pose, None),
        (lambda pose: pose @ FLIP, "OpenGL's axes (y up, z backward)"),
        (invert_pose, "world-to-camera"),
        (lambda pose: invert_pose(pose @ FLIP), "world-to-camera in OpenGL's axes"),
        (lambda pose: FLIP @ pose, None),  # another world with the same cameras
        (lambda pose: np.eye(4), None),  # a camera that stands still says nothing
    ],
)
def test_poses_of_another_convention_are_told_by_where_the_points_fall(rendered, convert, name):
    found = list(look_at_pictures(pictures(rendered, [convert(pose) for pose in POSES])))
    assert [code for code, _ in found] == ([] if name is None else ["scene3d-axes"])
    if name is not None:
        assert found[0][1].endswith(f"if the poses are {name}")


def test_the_right_poses_agree_and_depths_of_no_size_are_named(rendered):
    right, others = pictures(rendered, POSES), ([pose @ FLIP for pose in POSES], [invert_pose(pose) for pose in POSES])
    assert agreement(right, POSES) > 0.4 > 4 * max(agreement(right, poses) for poses in others)
    assert list(look_at_pictures(pictures(rendered, POSES)[:1])) == []
    small = pictures(rendered, [pose * np.array([[1, 1, 1, 1e-3]] * 3 + [[1, 1, 1, 1]]) for pose in POSES], scale=1e-3)
    ((code, message),) = look_at_pictures(small)
    assert code == "scene3d-near" and message.startswith("the middle depth is 0.00")
