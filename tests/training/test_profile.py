"""Where the time of a step goes: the parts add up to the step, each is charged to what it is, and nothing stays behind."""

from __future__ import annotations

import json
import time

import pytest

from pave.cli import main
from pave.training import run_recipe
from pave.training.profile import PARTS, PROFILE_FILE, PartClock, StepProfile
from tiny_training import assert_same, make_world, plan


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


def test_every_moment_is_charged_to_the_innermost_part():
    at = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0, 21.0, 28.0])
    clock = PartClock(lambda: next(at))
    with clock.part("forward"):  # at 1
        with clock.part("fusion"):  # 3 to 6
            pass
    with clock.part("saving"):  # 10 to 28, all that is inside too
        with clock.part("forward"):
            total, parts = clock.cut()
    assert total == 21.0
    assert {k: v for k, v in parts.items() if v} == {"other": 1.0 + 5.0, "forward": 2.0 + 4.0, "fusion": 3.0, "saving": 6.0}
