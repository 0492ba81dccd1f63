"""The comparison on clips with both channels, as small as it can be: that it runs, and that its world is what it says."""

import json

import pytest

from evidence.both_channels import BOTH, run, write_world
from pave.playground.sensors import draw_sensed
from pave.playground.world import draw_scene


def test_clips_have_both_channels_and_a_question_that_needs_both(tmp_path):
    samples = write_world(tmp_path, "test", 1, 6, "test", ("audio", "sensor"))
    assert len(samples) == 6 * 10
    orders = {sample.video: sample for sample in samples if sample.type == BOTH}
    for index, sample in enumerate(orders.values(), start=1):
        assert (tmp_path / sample.side_channels["sensor"]).is_file() and "audio" not in sample.side_channels
        earlier = draw_scene(0, "test", index).sounds[0].start < draw_sensed(0, "test", index).shake.start
        assert sample.answer == ("yes" if earlier else "no")
    assert {sample.answer for sample in orders.values()} == {"yes", "no"}
    alone = write_world(tmp_path, "test", 1, 1, "sensor_only", ("sensor",))
    assert alone[0].side_channels["audio"] is None and alone[0].side_channels["sensor"]


@pytest.mark.slow
def test_it_runs_from_rendering_to_the_tables(tmp_path):
    text = run(tmp_path, clips=2, test=1, steps=1)
    assert (tmp_path / "together.md").read_text() == text + "\n"
    results = json.loads((tmp_path / "together.json").read_text())
    assert "with hearing and feeling, 10 questions" in text and len(results["ways"]) == 6
    groups = {tuple(group["patches"]): group for group in results["added"]["groups"]}
    assert set(groups) == {("hearing", "feeling"), ("hearing",), ("feeling",)}
    assert groups["hearing",]["differing_from_alone"]["hearing"] == 0
    assert all(not run["failures"] for runs in results["ways"].values() for run in runs.values())
