"""Points of a rendered scene are where they are known to be, whatever camera saw them."""

import numpy as np
import pytest
import torch

from pave.config import EncoderConfig
from pave.side_channels import SideEncoder, build_encoder
from pave.side_channels.frames import Frames
from pave.side_channels.frames_pixels import FramesPixelsEncoder
from pave.side_channels.geometry import check_pose, invert_pose, project, rescale_intrinsics, transform, unproject
from pave.side_channels.scene3d import PosedPicture, Scene3DEncoder, mean_points
from rendered_scene import BALL, FLOOR_Y, RADIUS, intrinsics, look, render

H, W, FOCAL = 24, 32, 30.0
K = intrinsics(H, W, FOCAL)
POSES = [look(), look(0.15, 0.1, (-0.4, -0.3, 0.5)), look(-0.2, 0.05, (0.8, 0.1, 0.2))]
RENDERED = [render(pose, K, H, W) for pose in POSES]
PIXELS = {"name": "frames_pixels", "settings": {"grid": 4, "detail": 1}}


def picture(i, **changes):
    depth, _, rgb = RENDERED[i]
    values = {
        "rgb_HWC": rgb,
        "depth_HW": depth.astype(np.float32),
        "intrinsics_33": K,
        "depth_intrinsics_33": K,
        "pose_44": POSES[i],
        "time": float(i),
    }
    return PosedPicture(**{**values, **changes})


@pytest.mark.parametrize("i", range(3))
def test_unprojected_points_are_the_true_ones(i):
    depth, truth, _ = RENDERED[i]
    hit = depth > 0
    world = transform(POSES[i], unproject(depth, K)[hit])
    np.testing.assert_allclose(world, truth[hit], atol=1e-9)
    floor = np.abs(world[:, 1] - FLOOR_Y) < 1e-9
    ball = np.abs(np.linalg.norm(world - BALL, axis=1) - RADIUS) < 1e-9
    assert (floor | ball).all() and floor.sum() > 50 and ball.sum() > 20


def test_two_cameras_agree_on_the_points_that_both_see():
    depth, truth, _ = RENDERED[0]
    agreed = hidden = 0
    for point in truth[(depth > 0) & (depth < 10)][::5]:
        (seen,) = transform(invert_pose(POSES[1]), point[None])
        ((u, v),) = project(seen[None], K)
        aimed = K - [[0, 0, u], [0, 0, v], [0, 0, 0]]  # a picture of the one pixel in which the point is
        found, _, _ = render(POSES[1], aimed, 1, 1)
        if found[0, 0] < seen[2] - 1e-6:
            hidden += 1  # behind the ball
            continue
        world = transform(POSES[1], unproject(found, aimed)[0])
        np.testing.assert_allclose(world[0], point, atol=1e-9)
        agreed += 1
    assert agreed > 40 and hidden < 0.2 * agreed


def test_pixel_centres_are_whole_numbers():
    point = unproject(np.full((3, 3), 2.0), np.array([[4.0, 0, 1], [0, 4, 1], [0, 0, 1]]))
    assert point[1, 1].tolist() == [0, 0, 2] and point[1, 2].tolist() == [0.5, 0, 2] and point[0, 1].tolist() == [0, -0.5, 2]
    assert project(point.reshape(-1, 3), np.array([[4.0, 0, 1], [0, 4, 1], [0, 0, 1]])).reshape(3, 3, 2)[2, 0].tolist() == [
        0,
        2,
    ]


def test_rescaled_intrinsics_keep_every_ray():
    small = rescale_intrinsics(K, (H, W), (3 * H, 3 * W))
    fine = unproject(np.ones((3 * H, 3 * W)), small)
    coarse = unproject(np.ones((H, W)), K)
    np.testing.assert_allclose(fine[1::3, 1::3], coarse, atol=1e-12)  # the middle of three small pixels is the large one's
    assert rescale_intrinsics(small, (3 * H, 3 * W), (H, W)) == pytest.approx(K)


def cells(array, grid):
    return (
        array.reshape(grid, H // grid, grid, W // grid, *array.shape[2:]).swapaxes(1, 2).reshape(grid**2, -1, *array.shape[2:])
    )


@pytest.mark.parametrize("i", range(3))
def test_a_token_says_where_its_patch_is(i):
    encoder = Scene3DEncoder(encoder=PIXELS, frequencies=3, longest_wavelength=8.0, max_depth=20)
    features = encoder.encode([picture(i)])
    assert encoder.width == 7 + 4 + 18 and isinstance(encoder, SideEncoder)
    assert features.times_K.tolist() == [i]
    looks, place = features.features_KMC[0].split([7, 22], dim=1)
    depth, truth, rgb = RENDERED[i]
    alone = FramesPixelsEncoder(grid=4, detail=1).encode([Frames(rgb[None], np.array([0.0]))])
    assert torch.equal(looks, alone.features_KMC[0])
    valid = (cells(depth, 4) > 0) & (cells(depth, 4) <= 20)
    for token in range(16):
        if not valid[token].any():
            assert (place[token] == 0).all()
            continue
        mean = cells(truth, 4)[token][valid[token]].mean(axis=0)
        phases = 2 * np.pi * mean[:, None] / [8, 4, 2]
        waves = np.concatenate([np.sin(phases), np.cos(phases)], axis=1).ravel()
        np.testing.assert_allclose(place[token], [1, *mean, *waves], atol=1e-4)
    assert valid.any(axis=1).sum() > 0 and (i != 0 or not valid.any(axis=1).all())


def test_the_first_camera_can_be_the_common_frame():
    encoder = Scene3DEncoder(encoder=PIXELS, frequencies=0, common_frame="first_camera")
    moved = look(0.7, -0.3, (5, 6, 7))
    here = encoder.encode([picture(1), picture(2)]).features_KMC
    there = encoder.encode([picture(i, pose_44=moved @ POSES[i]) for i in (1, 2)]).features_KMC
    torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-4)  # wherever the world's origin is
    means, counts = mean_points(picture(1), 4, 10.0)
    torch.testing.assert_close(here[0, :, 8:], torch.from_numpy(means).float())
    assert (here[0, :, 7] == torch.from_numpy(counts > 0)).all()
    world = Scene3DEncoder(encoder=PIXELS, frequencies=0)
    again = [picture(1), picture(2)], [picture(i, pose_44=moved @ POSES[i]) for i in (1, 2)]
    first, second = (world.encode(pictures).features_KMC for pictures in again)
    seen = first[..., 7] > 0
    expected = transform(moved, first[..., 8:][seen].double().numpy())
    np.testing.assert_allclose(second[..., 8:][seen], expected, atol=1e-4)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf, -np.inf, 10.5])
def test_invalid_depth_is_left_out(bad):
    depth = np.full((H, W), 2.0, dtype=np.float32)
    depth[: H // 2, : W // 4] = bad  # all of the tokens 0 and 4, and half of none
    depth[H // 2, 0] = bad
    points, counts = mean_points(picture(0, depth_HW=depth), 4, 10.0)
    assert counts.reshape(4, 4).tolist() == [[0, 48, 48, 48], [0, 48, 48, 48], [47, 48, 48, 48], [48, 48, 48, 48]]
    assert points[0].tolist() == [0, 0, 0] and points[8, 2] == 2.0
    features = Scene3DEncoder(encoder=PIXELS, max_depth=10.0).encode([picture(0, depth_HW=depth)]).features_KMC
    assert features.isfinite().all()
    assert features[0, :, 7].tolist() == [0.0 if i in (0, 4) else 1.0 for i in range(16)]
    assert (features[0, [0, 4], 7:] == 0).all()


def test_a_depth_map_may_have_its_own_size_and_field_of_view():
    wide_K = intrinsics(40, 60, 28.0)  # sees more than the picture does, in finer pixels
    wide, truth, _ = render(POSES[1], wide_K, 40, 60)
    posed = picture(1, depth_HW=wide.astype(np.float32), depth_intrinsics_33=wide_K)
    points, counts = mean_points(posed, 4, 10.0)
    same, own_counts = mean_points(picture(1), 4, 10.0)
    both = (counts > 20) & (own_counts > 20)
    assert both.sum() >= 5
    assert counts.sum() < ((wide > 0) & (wide <= 10)).sum()  # what the picture does not show is in no cell
    np.testing.assert_allclose(points[both], same[both], rtol=0.06, atol=0.06)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rgb_HWC": np.zeros((H, W), np.uint8)}, r"rgb_HWC must be uint8 \(height, width, 3\)"),
        ({"depth_HW": np.zeros((H, W), np.uint16)}, r"depth_HW must be floating .* got uint16"),
        ({"time": float("nan")}, "time must be finite"),
        ({"intrinsics_33": intrinsics(4 * H, 4 * W, FOCAL)}, "lies outside the picture of 32x24; .* belong to another size"),
        ({"depth_intrinsics_33": np.diag([1.0, -1.0, 1.0])}, "the depth map: intrinsics must be"),
        ({"pose_44": np.diag([1.0, 1.0, 2.0, 1.0])}, "the pose is not rigid"),
        ({"pose_44": np.diag([1.0, 1.0, -1.0, 1.0])}, "the pose is not rigid"),
        ({"pose_44": np.eye(4).T + np.eye(4, k=-3)}, "the pose is not rigid"),
        ({"pose_44": np.eye(3)}, r"must be 4 x 4 finite numbers, got shape \(3, 3\)"),
        ({"pose_44": np.full((4, 4), -np.inf)}, "must be 4 x 4 finite"),
    ],
)
def test_bad_pictures_are_refused(changes, words):
    with pytest.raises(ValueError, match=f"PosedPicture: ?.*{words}"):
        picture(0, **changes)


def test_a_pose_of_few_digits_is_still_rigid():
    check_pose(np.round(look(0.4, -0.2, (1, 2, 3)), 4), "pose")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"common_frame": "camera"}, "common_frame must be one of world, first_camera, got 'camera'"),
        ({"max_depth": 0}, "max_depth must be a positive number"),
        ({"frequencies": -1}, "frequencies"),
        ({"encoder": {"name": "log_mel"}}, "an encoder of frames"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        build_encoder(EncoderConfig(name="scene3d", settings={"encoder": PIXELS, **settings}))


def test_spec_builds_the_same_encoder():
    encoder = Scene3DEncoder(encoder=PIXELS, max_depth=5.0, common_frame="first_camera")
    again = build_encoder(EncoderConfig.from_dict(encoder.spec().to_dict()))
    assert again.spec() == encoder.spec()
    assert torch.equal(again.encode([picture(0)]).features_KMC, encoder.encode([picture(0)]).features_KMC)


def test_models_that_do_not_see_single_whole_pictures_are_refused(tmp_path):
    from tiny_vision_models import save_tiny_vision

    path, _ = save_tiny_vision("dinov2", tmp_path)
    whole = {"name": "vision_transformers", "model": path}
    features = Scene3DEncoder(encoder=whole).encode([picture(0), picture(1)])
    assert features.features_KMC.shape == (2, 4, 16 + 4 + 36)
    with pytest.raises(ValueError, match="must give a step for each picture and see all of it"):
        Scene3DEncoder(encoder={**whole, "settings": {"whole_picture": False}})
