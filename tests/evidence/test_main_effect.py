"""A slice of the evidence that is small enough for every change: it fails if a patch no longer learns from its channel."""

from pathlib import Path

import pytest

from evidence.execution import execute_all
from evidence.plan import PATCH, VIDEO_ONLY, Plan, run
from evidence.scores import accuracy, difference
from evidence.worlds import WORLDS, write_world
from pave.demo.plan import SILENT, video_only_patch

SLICE = Plan(seeds=(0,), train_clips=200, test_clips=60, steps=100)


@pytest.mark.slow
def test_a_patch_learns_from_its_channel_what_lora_cannot(tmp_path: Path):
    """The question ``sensor_vision`` needs a frame and the sensor at the same moment; guessing scores 50 %."""
    world = WORLDS["sensor"]
    write_world("sensor", tmp_path / "data", SLICE.train_clips, SLICE.test_clips)
    patch = run("sensor", PATCH, world.patch(), SLICE, 0, counterfactuals=("swapped",))
    video = run("sensor", VIDEO_ONLY, video_only_patch(), SLICE, 0)
    execute_all([patch, video], {"sensor": tmp_path / "data"}, tmp_path, processes=2)
    gain, interval = difference([video], [patch], tmp_path, ["sensor_vision"])
    assert gain > 0.2 and interval.low > 0.1
    assert accuracy([patch], tmp_path, ["sensor_vision"]).mean > 0.85
    assert accuracy([patch], tmp_path, ["sensor_vision"], "swapped").mean < 0.75  # it is the stream that it reads
    assert accuracy([patch], tmp_path, SILENT).mean > 0.85
