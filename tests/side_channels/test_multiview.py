"""Several cameras: every view's frames at their own times on the video's clock, marked with the view."""

import numpy as np
import pytest
import torch

from pave.config import EncoderConfig
from pave.side_channels import SideEncoder, build_encoder
from pave.side_channels.frames import Frames
from pave.side_channels.frames_pixels import FramesPixelsEncoder
from pave.side_channels.multiview import MultiViewEncoder, View

PIXELS = {"name": "frames_pixels", "settings": {"grid": 2, "detail": 1}}
ALONE = FramesPixelsEncoder(grid=2, detail=1)


def film(count, seed, times):
    frames = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return [Frames(frames, np.asarray(times, dtype=float))]


LEFT, RIGHT = film(3, 1, [0, 1, 2]), film(2, 2, [0, 1])


def test_steps_are_the_views_own_frames_on_the_videos_clock():
    encoder = MultiViewEncoder(views=["left", "right"], encoder=PIXELS)
    assert isinstance(encoder, SideEncoder) and (encoder.width, encoder.tokens_per_step) == (9, 4)
    features = encoder.encode({"right": View(RIGHT, 0.25), "left": View(LEFT, -0.5)})
    assert features.times_K.tolist() == [-0.5, 0.25, 0.5, 1.25, 1.5]
    for view, steps, code in ((LEFT, [0, 2, 4], [1, 0]), (RIGHT, [1, 3], [0, 1])):
        own = features.features_KMC[steps]
        assert torch.equal(own[..., :7], ALONE.encode(view).features_KMC)
        assert (own[..., 7:] == torch.tensor(code)).all()


def test_equal_times_stand_in_the_order_of_the_views():
    encoder = MultiViewEncoder(views=["left", "right"], encoder=PIXELS)
    features = encoder.encode({"right": View(RIGHT), "left": View(LEFT)})
    assert features.times_K.tolist() == [0, 0, 1, 1, 2]
    assert features.features_KMC[:, 0, 7].tolist() == [1, 0, 1, 0, 1]


def test_a_missing_view_gives_no_steps_and_changes_no_other():
    encoder = MultiViewEncoder(views=["left", "right"], encoder=PIXELS)
    both = encoder.encode({"left": View(LEFT), "right": View(RIGHT, 9.0)})
    for views in ({"left": View(LEFT)}, {"left": View(LEFT), "right": None}):
        alone = encoder.encode(views)
        assert torch.equal(alone.features_KMC, both.features_KMC[:3]) and torch.equal(alone.times_K, both.times_K[:3])


def test_spec_holds_the_whole_frame_encoder():
    encoder = MultiViewEncoder(views=["left"], encoder={"name": "frames_pixels", "settings": {"fps": 3}})
    spec = encoder.spec().to_dict()
    assert spec["settings"]["encoder"]["settings"] == {"fps": 3, "max_frames": None, "grid": 2, "detail": 4}
    assert (encoder.fps, encoder.max_frames) == (3, None)
    assert build_encoder(EncoderConfig.from_dict(spec)).spec().to_dict() == spec


@pytest.mark.parametrize(
    ("views", "words"),
    [
        ({"top": View(LEFT)}, "there is a view 'top', but the encoder's views are left, right"),
        ({"left": None}, "none of the views left, right is there"),
        ({"left": View([])}, "view 'left': the video gave no frame"),
    ],
)
def test_bad_views_are_refused(views, words):
    with pytest.raises(ValueError, match=words):
        MultiViewEncoder(views=["left", "right"], encoder=PIXELS).encode(views)
    with pytest.raises(ValueError, match="offset_seconds must be finite"):
        View(LEFT, float("nan"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"views": [], "encoder": PIXELS}, "views must be names of cameras"),
        ({"views": ["a", "a"], "encoder": PIXELS}, "all different"),
        ({"views": ["a"], "encoder": {"name": "log_mel"}}, "an encoder of frames, such as 'frames_pixels', got 'log_mel'"),
        ({"views": ["a"], "encoder": {"nam": "log_mel"}}, "multiview: encoder: unknown key 'nam'; did you mean 'name'"),
        ({"views": ["a"], "encoder": "frames_pixels"}, "encoder must be a mapping"),
        ({"views": ["a"]}, "cannot be built"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        build_encoder(EncoderConfig(name="multiview", settings=settings))
