"""Lanes are thinned to what a screen shows, and lose nothing of what they sum up."""

import base64

import numpy as np
import pytest
import torch

from pave.data.items import PatchItem
from pave.inference.attention import FusionView
from pave.serving.lanes import channel_lanes, frame_lane, sensor_lane, sound_lane
from pave.side_channels import AudioClip, SideFeatures
from pave.side_channels.sensor import SensorSeries

FRAMES, STEPS = 4, 5000


def item_with(features, frames=FRAMES, size=(30, 90)):
    pixels = np.zeros((frames, *size, 3), dtype=np.uint8)
    pixels[np.arange(frames), ..., 0] = 50 * np.arange(frames)[:, None, None]
    return PatchItem("a", pixels, np.arange(frames) + 0.5, (("?", None),), {"p.c": features})


def test_many_steps_are_put_together_in_the_order_of_time():
    rng = np.random.default_rng(0)
    order = rng.permutation(STEPS)  # steps need not come in order
    times = torch.arange(STEPS).double()[order] / 1000
    features = SideFeatures(torch.as_tensor(order).float()[:, None, None].expand(STEPS, 2, 100).clone(), times)
    weights = rng.random((2, STEPS))  # two time steps of the base for four frames
    weights /= weights.sum(axis=1, keepdims=True)
    view = FusionView(np.array([[1.0, 3.0], [2.0, 6.0]]), None, weights)
    lanes = channel_lanes(item_with(features), "p.c", None, view)
    steps = lanes["steps"]
    assert (steps["count"], steps["width"], steps["rows"], len(steps["times"])) == (STEPS, 100, 48, 1200)
    assert steps["times"] == sorted(steps["times"]) and np.mean(steps["times"]) == pytest.approx(2.5, abs=0.01)
    shades = np.frombuffer(base64.b64decode(steps["shades"]), dtype=np.uint8).reshape(1200, 48)
    assert (np.diff(shades[:, 0].astype(int)) >= 0).all() and shades[0, 0] == 0 and shades[-1, 0] == 255
    rows = lanes["attention"]
    assert [sum(row["weights"]) for row in rows] == pytest.approx([1, 1, 1, 1], abs=0.1)
    assert rows[0] == rows[1] != rows[2] == rows[3]  # merged frames share a row
    last = weights[1][np.argsort(order)][-5:]
    assert any(rows[3]["weights"][-1] == pytest.approx(last[-n:].sum(), abs=1e-4) for n in (4, 5))
    assert lanes["change"] == {"frames": [2.0, 2.0, 4.0, 4.0], "tokens": [[1.0, 3.0], [1.0, 3.0], [2.0, 6.0], [2.0, 6.0]]}
    assert lanes["gate"] is None


def test_attention_is_told_without_the_zeros_around_it():
    features = SideFeatures(torch.zeros(6, 1, 2), torch.arange(6).double())
    weights = np.array([[0, 0.25, 0, 0.75, 0, 0], [0, 0, 0, 0, 0, 0]], dtype=float)
    lanes = channel_lanes(item_with(features, 2), "p.c", None, FusionView(np.ones((2, 1)), np.full((2, 1), 0.5), weights))
    assert lanes["attention"] == [{"first": 1, "weights": [0.25, 0.0, 0.75]}, {"first": 0, "weights": []}]
    assert lanes["gate"]["frames"] == [0.5, 0.5]


def test_tokens_are_left_out_where_there_are_too_many():
    features = SideFeatures(torch.zeros(3, 1, 2), torch.arange(3).double())
    view = FusionView(np.full((FRAMES, 5000), 0.2), None, None)
    lanes = channel_lanes(item_with(features), "p.c", None, view)
    assert lanes["change"] == {"frames": [0.2] * FRAMES, "tokens": None} and lanes["attention"] is None


def test_waves_keep_their_peaks():
    samples = np.zeros(16_001, dtype=np.float32)
    samples[8000], samples[12_000] = 1.5, -0.5
    lane = sound_lane(AudioClip(samples, 8000, start_time=-0.5))
    assert (lane["start"], lane["seconds"], len(lane["low"])) == (-0.5, 2.0, 600)
    assert lane["high"].index(127) == 299 or lane["high"].index(127) == 300  # clipped, and in its stretch
    assert min(lane["low"]) == pytest.approx(-64, abs=1) and sum(value != 0 for value in lane["low"]) == 1
    assert len(sound_lane(AudioClip(samples[:3], 8000))["high"]) == 3 and sound_lane(None) is None


def test_sensors_are_drawn_over_their_own_range_with_their_gaps():
    values = np.stack([np.linspace(-5, 5, 2000), np.full(2000, 3.0), *np.zeros((6, 2000))], axis=1)
    values[0, 1] = np.nan
    lane = sensor_lane(SensorSeries(values, np.arange(2000) / 100, tuple("abcdefgh")))
    assert len(lane["times"]) <= 600 and lane["times"][-1] == 19.99 and lane["left_out"] == 2
    first, second = lane["curves"][:2]
    assert (first["low"], first["high"], first["values"][0], first["values"][-1]) == (-5, 5, 0, 1)
    assert (second["low"], second["high"], second["values"][:2]) == (3, 3, [None, 0.0])


@pytest.mark.parametrize(("size", "width"), [((30, 90), 128), ((64, 64), 64), ((2000, 10), 1)])
def test_pictures_of_frames_are_small(size, width):
    item = item_with(None, size=size)
    lane = frame_lane(item)
    assert (lane["width"], lane["height"], lane["times"]) == (width, 64, [0.5, 1.5, 2.5, 3.5])
    assert len(lane["picture"]) < 10_000
