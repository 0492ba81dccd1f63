"""The fusion module against numbers of the authors' released implementation, element by element."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pave.patching.convert import fusion_from_reference

CASES = sorted((Path(__file__).parents[1] / "golden" / "module").glob("case*"))


def load(case: Path):
    config = json.loads((case / "config.json").read_text())
    return config, load_file(case / "weights.safetensors"), load_file(case / "inputs.safetensors")


def run(module, inputs):
    with torch.no_grad():
        return module(inputs["x"], inputs["frame_num"], inputs["slow_feats"], int(inputs["chunk_num"]))


def test_cases_are_there():
    assert len(CASES) >= 3


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_the_released_implementation(case):
    config, weights, inputs = load(case)
    module = fusion_from_reference(config, weights)
    assert not module.training
    wanted = load_file(case / "output.safetensors")["output"]
    torch.testing.assert_close(run(module, inputs), wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_read_weight_matters_and_each_dropped_one_does_not(case):
    config, weights, inputs = load(case)
    wanted = run(fusion_from_reference(config, weights), inputs)
    for name in weights:
        changed = dict(weights)
        # a constant shift of one key bias, for instance, leaves every softmax as it is, but not the values made with it
        changed[name] = weights[name] + torch.linspace(0.3, 0.6, weights[name].numel()).view(weights[name].shape)
        same = torch.equal(run(fusion_from_reference(config, changed), inputs), wanted)
        assert same == ("v_linear" in name), name
