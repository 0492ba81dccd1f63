"""The order of samples in a staged run."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from pave.training.sampler import Stage, StagedSampler

TYPES = ["sound"] * 6 + ["silent"] * 10 + ["both"] * 4


def test_stages_draw_the_types_they_name_in_the_shares_they_give():
    stages = [Stage(steps=50, weights={"sound": 1}), Stage(steps=400, weights={"sound": 1, "silent": 3})]
    sampler = StagedSampler(TYPES, stages, samples_per_step=4, seed=0)
    drawn = [TYPES[i] for i in sampler]
    assert len(drawn) == len(sampler) == 450 * 4 and sampler.num_steps == 450
    assert set(drawn[:200]) == {"sound"}
    later = Counter(drawn[200:])
    assert set(later) == {"sound", "silent"}
    assert later["silent"] / 1600 == pytest.approx(0.75, abs=0.03)


def test_every_sample_of_a_type_comes_once_before_any_comes_again():
    sampler = StagedSampler(TYPES, [Stage(steps=5, weights={"sound": 1}), Stage(steps=7, weights={"sound": 2})], 1, seed=3)
    drawn = list(sampler)
    assert sorted(drawn[:6]) == sorted(drawn[6:]) == [0, 1, 2, 3, 4, 5]  # the pass goes on across the stages
    assert drawn[:6] != drawn[6:]


def test_a_stage_without_weights_passes_over_all_samples():
    drawn = list(StagedSampler(TYPES, [Stage(steps=10)], 4, seed=1))
    assert sorted(drawn[:20]) == sorted(drawn[20:]) == list(range(20))


def test_order_is_a_function_of_the_seed():
    def order(seed):
        return list(StagedSampler(TYPES, [Stage(steps=9, weights={"sound": 1, "both": 1})], 3, seed))

    sampler = StagedSampler(TYPES, [Stage(steps=9, weights={"sound": 1, "both": 1})], 3, 5)
    assert list(islice(sampler, 4)) == order(5)[:4] and list(sampler) == order(5)  # iterating twice starts again
    assert order(5) != order(6)


def test_bad_stages_are_refused():
    with pytest.raises(ValueError, match=r"stage 2: no training sample has the type 'sounds'.*'both', 'silent', 'sound'"):
        StagedSampler(TYPES, [Stage(steps=1), Stage(steps=1, weights={"sounds": 1})], 1, 0)
    for values in ({"steps": 0}, {"steps": 1, "weights": {"a": -1}}, {"steps": 1, "weights": {"a": 0}}):
        with pytest.raises(ValueError):
            Stage(**values)
