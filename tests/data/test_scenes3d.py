"""Depth and poses from real files: PNG and array depth maps, the JSON description, ScanNet's folders."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pave.config import EncoderConfig, SideChannelConfig
from pave.data.dataset import PatchDataset
from pave.data.media import FrameSampling, MediaError, read_depth, read_picture, write_video
from pave.data.samples import Sample
from pave.data.scenes3d import read_scene
from pave.data.sources import read_source
from pave.side_channels import build_encoder
from pave.side_channels.geometry import transform, unproject
from rendered_scene import intrinsics, look, render

H, W = 24, 32
K = intrinsics(H, W, 30.0)
POSES = [look(0.05 * i, 0.02 * i, (0.1 * i, 0, 0)) for i in range(4)]
RENDERED = [render(pose, K, H, W) for pose in POSES]
CAMERA = {"fx": 30.0, "fy": 30.0, "cx": K[0, 2], "cy": K[1, 2], "width": W, "height": H}
SETTINGS = {"encoder": {"name": "frames_pixels", "settings": {"detail": 1}}}


def save_depth(path, depth):
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".png":
        stored = np.rint(np.where(depth < 65, depth, 0) * 1000)  # 16 bits hold up to 65.535 m
        Image.fromarray(stored.astype(np.uint16)).save(path)
    elif path.suffix == ".npz":
        np.savez(path, depth=depth.astype(np.float32), other=np.zeros(3))
    else:
        np.save(path, depth.astype(np.float32))


def write_json(folder, depth_ending=".png", indices=range(4), **changes):
    frames = []
    for i in indices:
        depth, _, rgb = RENDERED[i]
        Image.fromarray(rgb).save(folder / f"{i}.png")
        save_depth(folder / f"depth{i}{depth_ending}", depth)
        frames.append({"rgb": f"{i}.png", "depth": f"depth{i}{depth_ending}", "pose": POSES[i].tolist(), "time": 0.5 * i})
    content = {"intrinsics": CAMERA, "frames": frames, **changes}
    (folder / "scene.json").write_text(json.dumps(content))
    return str(folder / "scene.json")


def write_scannet(folder, numbers=(0, 20, 40, 60), color_scale=1, lost=()):
    """ScanNet's layout; the colour pictures are larger than the depth maps and have their own intrinsics."""
    for name in ("color", "depth", "pose", "intrinsic"):
        (folder / name).mkdir(exist_ok=True)
    color_K = intrinsics(2 * H, 2 * W, 60.0)
    for i, number in enumerate(numbers):
        _, _, rgb = render(POSES[i], color_K, 2 * H, 2 * W)
        picture = Image.fromarray(rgb)
        picture.resize((int(2 * W * color_scale), int(2 * H * color_scale))).save(
            folder / "color" / f"{number}.jpg", quality=95
        )
        save_depth(folder / "depth" / f"{number}.png", RENDERED[i][0])
        pose = np.full((4, 4), -np.inf) if i in lost else POSES[i]
        np.savetxt(folder / "pose" / f"{number}.txt", pose, fmt="%.6f")
    for name, matrix in (("color", color_K), ("depth", K)):
        whole = np.eye(4)
        whole[:3, :3] = matrix
        np.savetxt(folder / "intrinsic" / f"intrinsic_{name}.txt", whole, fmt="%.6f")
    return str(folder)


def read(path, **settings):
    return read_scene(path, **{"max_frames": None, "frame_rate": 30.0, **settings})


@pytest.mark.parametrize("ending", [".png", ".npy", ".npz"])
def test_a_description_gives_the_true_points(ending, tmp_path):
    recording = read(write_json(tmp_path, ending))
    for _ in range(2):  # it may be gone through again
        pictures = list(recording)
        assert [picture.time for picture in pictures] == [0, 0.5, 1, 1.5]
        for picture, (depth, truth, rgb) in zip(pictures, RENDERED, strict=True):
            assert np.array_equal(picture.rgb_HWC, rgb)
            hit = (depth > 0) & (depth < 60)
            assert (picture.depth_HW[depth == 0] == 0).all()
            world = transform(picture.pose_44, unproject(picture.depth_HW, picture.depth_intrinsics_33)[hit])
            np.testing.assert_allclose(world, truth[hit], atol=1e-3)  # half a millimetre along z, more along the ray


def test_units_are_as_stated(tmp_path):
    stored = np.array([[0, 1, 1500], [65535, 2, 3]], dtype=np.uint16)
    Image.fromarray(stored).save(tmp_path / "d.png")
    assert read_depth(tmp_path / "d.png").tolist() == (stored / np.float32(1000)).tolist()
    assert read_depth(tmp_path / "d.png", 0.0002)[0, 2] == np.float32(0.3)
    np.save(tmp_path / "d.npy", stored)  # whole numbers are millimetres, in whatever kind of file
    assert read_depth(tmp_path / "d.npy").tolist() == read_depth(tmp_path / "d.png").tolist()
    assert read_depth(tmp_path / "d.npy", 1.0)[0, 2] == 1500
    np.save(tmp_path / "f.npy", stored.astype(np.float32))
    assert read_depth(tmp_path / "f.npy")[0, 2] == 1500 and read_depth(tmp_path / "f.npy", 0.001)[0, 2] == np.float32(1.5)
    assert np.isinf(read_depth(tmp_path / "f.npy", 1e308)[0, 2])
    half = next(iter(read(write_json(tmp_path, depth_unit=0.0005)))).depth_HW
    near = RENDERED[0][0] < 65
    np.testing.assert_allclose(half[near], np.rint(RENDERED[0][0][near] * 1000) * 0.0005, rtol=1e-6)


def test_scannet_folders_have_two_cameras_of_one_place(tmp_path):
    pictures = list(read(write_scannet(tmp_path)))
    assert [picture.time for picture in pictures] == [0, 20 / 30, 40 / 30, 2]
    assert pictures[0].rgb_HWC.shape == (2 * H, 2 * W, 3) and pictures[0].depth_HW.shape == (H, W)
    depth, truth, _ = RENDERED[2]
    hit = (depth > 0) & (depth < 60)
    world = transform(pictures[2].pose_44, unproject(pictures[2].depth_HW, pictures[2].depth_intrinsics_33)[hit])
    np.testing.assert_allclose(world, truth[hit], atol=2e-3)
    encoder = build_encoder(EncoderConfig(name="scene3d", settings=SETTINGS))
    from_folder = encoder.encode(read_source(encoder, "unused.mp4", str(tmp_path))).features_KMC
    (tmp_path / "json").mkdir()
    from_json = encoder.encode(read_source(encoder, "unused.mp4", write_json(tmp_path / "json"))).features_KMC
    assert (from_folder[..., 7] == from_json[..., 7]).all()
    torch.testing.assert_close(from_folder[..., 8:11], from_json[..., 8:11], atol=0.02, rtol=0.02)


def test_lost_poses_are_counted_and_left_out(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        recording = read(write_scannet(tmp_path, lost=(1, 2)))
    assert "2 of 4 pictures have no valid pose and are left out" in caplog.text
    assert [picture.time for picture in recording] == [0, 2]
    path = changed(tmp_path, lambda content: content["frames"][0].update(pose=None))
    assert [picture.time for picture in read(path)] == [0.5, 1, 1.5]
    with pytest.raises(ValueError, match="none of the 4 pictures has a valid pose"):
        read(write_scannet(tmp_path, lost=range(4)))


def test_pictures_are_thinned_evenly(tmp_path):
    path = write_json(tmp_path)
    assert [shot.time for shot in read(path, max_frames=2).shots] == [0.5, 1.5]
    assert [shot.time for shot in read(path, max_frames=1).shots] == [1.0]
    assert [shot.time for shot in read(write_scannet(tmp_path), frame_rate=10.0).shots] == [0, 2, 4, 6]


def test_intrinsics_of_another_size_are_caught_or_rescaled_on_request(tmp_path):
    double = {"fx": 60.0, "fy": 60.0, "cx": W - 0.5, "cy": H - 0.5, "width": 2 * W, "height": 2 * H}
    with pytest.raises(
        ValueError, match="the intrinsics are for 64x48, but the color picture has 32x24; give depth_intrinsics"
    ):
        list(read(write_json(tmp_path, intrinsics=double)))
    rescaled = list(read(write_json(tmp_path, intrinsics=double, rescale_intrinsics=True)))
    assert rescaled[0].intrinsics_33 == pytest.approx(K) and rescaled[0].depth_intrinsics_33 == pytest.approx(K)
    odd = {**double, "width": 2 * W + 16}
    with pytest.raises(ValueError, match="which is of another shape"):
        list(read(write_json(tmp_path, intrinsics=odd, rescale_intrinsics=True)))
    with pytest.raises(ValueError, match="for 64x48, but the depth picture has 32x24"):
        list(read(write_json(tmp_path, depth_intrinsics=double)))
    for scale in (0.5, 2):  # pictures that were resized without their intrinsics
        with pytest.raises(ValueError, match=r"intrinsic_color.txt has its principal point at .* measured for another size"):
            list(read(write_scannet(tmp_path, color_scale=scale)))


def changed(folder, change):
    path = Path(write_json(folder))
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["frames"][1].update(pose=np.diag([2.0, 2, 2, 1]).tolist()), "1.png: the pose is not rigid"),
        (lambda c: c["frames"][1].update(pose=[[1, 0], [0, 1]]), r"a pose must be 4 x 4 finite numbers, got shape \(2, 2\)"),
        (lambda c: c["frames"][1].update(pose="eye"), r"frames\[1\]: pose must be 4 rows of 4 numbers, or null"),
        (lambda c: c["frames"][1].update(time=None), r"frames\[1\]: time: a number is needed, got None"),
        (lambda c: c["frames"][1].update(time=0), r"frames\[1\]: the time 0 does not come after 0; sort the frames"),
        (lambda c: c["frames"][1].pop("depth"), r"frames\[1\]: the key 'depth' is missing"),
        (
            lambda c: c["frames"][1].update(colour="1.png"),
            r"frames\[1\]: unknown key 'colour'; known keys: rgb, depth, pose, time",
        ),
        (lambda c: c.update(frames=[]), "frames must be a list with at least one entry"),
        (lambda c: c["intrinsics"].pop("width"), "intrinsics: the key 'width' is missing"),
        (lambda c: c.update(depth_unit=0), "depth_unit is the metres of a stored 1 and above 0, got 0"),
        (lambda c: c.update(rescale_intrinsics=1), "rescale_intrinsics must be true or false, got 1"),
        (lambda c: c["frames"][1].update(rgb="gone.png"), r"gone\.png: there is no such file"),
    ],
)
def test_bad_descriptions_are_refused(change, words, tmp_path):
    with pytest.raises(ValueError, match=words) as caught:
        list(read(changed(tmp_path, change)))
    assert str(tmp_path) in str(caught.value)


BIG = 10**400
DIGITS = r"scene\.json: a number of 401 digits is too large"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["frames"][1]["pose"][0].__setitem__(3, BIG), DIGITS),
        (
            lambda c: c["frames"][1]["pose"][0].__setitem__(3, 1e300),
            r"1\.png: the pose puts the camera 1e\+300 m from the origin",
        ),
        (lambda c: c["frames"][1]["pose"][0].__setitem__(0, 1e300), "the pose is not rigid"),
        (lambda c: c["frames"][1]["pose"][0].__setitem__(0, "1_0"), r"frames\[1\]: pose must be 4 rows of 4 numbers"),
        (lambda c: c["frames"][1].update(time=BIG), DIGITS),
        (lambda c: c["intrinsics"].update(fx=BIG), DIGITS),
        (lambda c: c["intrinsics"].update(width=BIG), DIGITS),
        (lambda c: c["intrinsics"].update(height=0), "intrinsics: height is a whole number of pixels, at least 1, got 0"),
        (lambda c: c["intrinsics"].update(height=0.5), "intrinsics: height is a whole number of pixels, at least 1, got 0.5"),
        (
            lambda c: (c["intrinsics"].update(width=-W), c.update(rescale_intrinsics=True)),
            "intrinsics: width is a whole number of pixels, at least 1, got -32",
        ),
        (lambda c: c["intrinsics"].update(fx=1e-300), "fx of 1e-300 pixels is no lens's for a picture of 32x24"),
        (lambda c: c["intrinsics"].update(fx=0.9, fy=0.9, cx=0.5, cy=0.5), "fx of 0.9 pixels is no lens's"),
        (lambda c: c["intrinsics"].update(fy=1e300), r"fy of 1e\+300 pixels is no lens's"),
        (lambda c: c.update(depth_unit=BIG), DIGITS),
    ],
)
def test_numbers_out_of_range_are_one_sentence(change, words, tmp_path):
    with pytest.raises(ValueError, match=words) as caught:
        list(read(changed(tmp_path, change)))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_numbers_of_text_files_are_strict(tmp_path):
    for name, text, words in (
        ("pose/20.txt", "1 0 0 1_000\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", r"20\.txt: rows of numbers are expected"),
        ("pose/20.txt", f"1 0 0 {BIG}\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", r"20\.txt: rows of numbers are expected"),
        ("intrinsic/intrinsic_depth.txt", "30 0 nan\n0 30 11.5\n0 0 1\n", r"intrinsic_depth\.txt: .* finite numbers"),
    ):
        path = write_scannet(tmp_path)
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=words):
            read(path)


def scaled(folder, factor, usable=()):
    """A scene whose depth maps hold floating point times a factor, but for those in ``usable``."""
    path = write_json(folder, ".npy")
    for i, (depth, _, _) in enumerate(RENDERED):
        near = np.where(depth < 9, depth, 0)
        np.save(folder / f"depth{i}.npy", (near * (1.0 if i in usable else factor)).astype(np.float32))
    return path


def test_depth_of_which_nothing_can_be_used_is_an_error(tmp_path):
    encoder = build_encoder(EncoderConfig(name="scene3d", settings=SETTINGS))
    with pytest.raises(
        ValueError, match=r"every depth is beyond max_depth 10 m \(the middle one is [2-9]\d{3} m\).*depth_unit"
    ):
        encoder.encode(read(scaled(tmp_path, 1000)))
    with pytest.raises(ValueError, match=r"every depth is negative, behind the camera; .*change its sign"):
        encoder.encode(read(scaled(tmp_path, -1)))
    good, nothing = encoder.encode(read(scaled(tmp_path, 1))), encoder.encode(read(scaled(tmp_path, 0)))
    part = encoder.encode(read(scaled(tmp_path, 1000, usable=(2,))))
    share = encoder.usable(good)
    assert (share > 0.5).all() and encoder.usable(nothing).tolist() == [0, 0, 0, 0]
    assert encoder.usable(part).tolist() == [0, 0, float(share[2]), 0]


def test_bad_folders_are_refused(tmp_path):
    path = write_scannet(tmp_path)
    last = tmp_path / "depth" / "60.png"
    kept = last.read_bytes()
    last.unlink()
    with pytest.raises(ValueError, match="color holds 4 pictures but depth holds 3 files"):
        read(path)
    (tmp_path / "depth" / "80.png").write_bytes(kept)
    with pytest.raises(ValueError, match="number 60 is in only one of color and depth"):
        read(path)
    (tmp_path / "depth" / "80.png").rename(last)
    (tmp_path / "pose" / "0.txt").write_text("1 0 0\n0 1\n")
    with pytest.raises(ValueError, match=r"0\.txt: rows of numbers are expected"):
        read(path)
    (tmp_path / "pose" / "0.txt").write_text("1 0 0\n0 1 0\n")
    with pytest.raises(ValueError, match=r"0\.txt: a pose must be 4 x 4 numbers, got shape \(2, 3\)"):
        read(path)
    write_scannet(tmp_path)
    (tmp_path / "intrinsic" / "intrinsic_depth.txt").unlink()
    with pytest.raises(ValueError, match=r"intrinsic_depth\.txt: there is no such file"):
        read(path)
    (tmp_path / "color" / "first.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"first\.jpg: files must be called by different whole numbers"):
        read(path)
    with pytest.raises(ValueError, match="a folder 'color' is expected"):
        read(str(tmp_path / "pose"))


def test_bad_pictures_are_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "rgb.png")
    np.save(tmp_path / "three.npy", np.zeros((2, 2, 2)))
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 2)), b=np.zeros((2, 2)))
    np.save(tmp_path / "objects.npy", np.array([[{}]]), allow_pickle=True)
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    for name, words in (
        ("gone.png", "there is no such file"),
        ("broken.png", "the picture is damaged"),
        ("cut.png", "the picture is damaged"),
        ("rgb.png", "a PNG of 16-bit greys, but this one is of the mode 'RGB'"),
        ("three.npy", r"one number for each pixel, got float64 of shape \(2, 2, 2\)"),
        ("two.npz", "an array named 'depth' is expected, got a, b"),
        ("objects.npy", "the file is damaged or no array"),
        ("depth.exr", "depth maps are .png, .npy or .npz files, not .exr"),
    ):
        with pytest.raises(MediaError, match=f"{name}: .*{words}"):
            read_depth(tmp_path / name)
    with pytest.raises(MediaError, match="the picture is damaged"):
        read_picture(tmp_path / "broken.png")
    assert read_picture(tmp_path / "rgb.png").shape == (4, 4, 3)


def test_a_sample_names_a_scene_or_lacks_the_channel(tmp_path):
    write_video(tmp_path / "video.mp4", np.zeros((8, 16, 16, 3), np.uint8), fps=4, durable=False)
    encoder = build_encoder(EncoderConfig(name="scene3d", settings=SETTINGS))
    samples = [
        Sample(id="1", video=str(tmp_path / "video.mp4"), question="?", side_channels={"space": write_json(tmp_path)}),
        Sample(id="2", video=str(tmp_path / "video.mp4"), question="?"),
    ]
    channels = {"space": SideChannelConfig(kind="depth", width=encoder.width, encoder=encoder.spec())}
    dataset = PatchDataset(samples, FrameSampling(num_frames=4), {"space": encoder}, channels)
    assert dataset[0].side["space"].features_KMC.shape == (4, 4, encoder.width)
    assert dataset[1].side["space"] is None
