"""The measurement at tiny size: what it records, that it is taken once, and that the clock is in the fusion."""

import json

import pytest
import torch

from benchmarks import prefill
from benchmarks.prefill import Measurement, forget_peak, measure_prefill, peak_bytes
from cases import CASES, small_config
from evidence.contents import SECTIONS
from evidence.measurement import FILE, measured_once
from evidence.plan import SHORT, Plan


def test_a_prompt_is_measured_in_rounds():
    model, _ = CASES["llava_onevision"].build()
    got = measure_prefill(small_config(), frames=3, rounds=2, dtype="float32", base="tiny", config=model.config)
    assert (got.base, got.frames, got.rounds, got.dtype) == ("tiny", 3, 2, "float32")
    assert got.tokens == 3 * 4 + 1 + 64
    assert 0 < got.fusion_seconds < got.base_seconds * got.ratio * 2
    assert got.patch == small_config().to_dict()
    assert Measurement.from_dict(json.loads(json.dumps(got.to_dict()))).to_dict() == json.loads(json.dumps(got.to_dict()))


def test_the_patch_is_on_in_its_turn_only(monkeypatch):
    """Every second prompt has side channels, and the modules of the fusion run in those alone."""
    calls = []
    plain = prefill._clocked

    def watched(slot, device):
        slot.register_forward_hook(lambda *_: calls.append(1))
        return plain(slot, device)

    monkeypatch.setattr(prefill, "_clocked", watched)
    model, _ = CASES["llava_onevision"].build()
    measure_prefill(small_config(), frames=2, rounds=3, dtype="float32", config=model.config)
    assert len(calls) == 4


def test_a_measurement_is_read_back_and_not_taken_again(tmp_path):
    known = Measurement(
        base="b", frames=1, tokens=2, dtype="float32", rounds=1, base_seconds=2.0, ratio=1.5, fusion_seconds=0.1,
        base_bytes=None, patched_bytes=None, machine="m", patch=json.loads(json.dumps(small_config().to_dict())),
    )  # fmt: skip
    (tmp_path / FILE).write_text(json.dumps(known.to_dict()))
    assert measured_once(small_config(), tmp_path, frames=1, rounds=1) == known
    with pytest.raises(ValueError, match=r"measured\.json was measured with another frames than it would be now; remove it"):
        measured_once(small_config(), tmp_path, frames=2, rounds=1)
    with pytest.raises(ValueError, match=r"measured with another patch"):
        measured_once(small_config(gate="bias"), tmp_path, frames=1, rounds=1)
    older = known.to_dict()
    del older["patch"]
    (tmp_path / FILE).write_text(json.dumps(older))
    with pytest.raises(ValueError, match=r"measured\.json: patch: .*required; remove the file to measure anew"):
        SECTIONS["cost"].check(Plan(), tmp_path)
    SECTIONS["cost"].check(SHORT, tmp_path)  # it measures nothing
    (tmp_path / FILE).write_text("{")
    with pytest.raises(ValueError, match=r"measured\.json: not JSON: .*; remove it"):
        measured_once(small_config(), tmp_path)


def test_memory_is_a_high_water_mark_that_can_be_set_back():
    if not forget_peak("cpu"):
        pytest.skip("only Linux says how much a process has held, and forgets it")
    before = peak_bytes("cpu")
    held = torch.ones(60_000_000)
    raised = peak_bytes("cpu")
    assert raised >= before + 0.9 * held.nbytes
    del held
    assert peak_bytes("cpu") > raised - 10_000_000  # Linux counts in batches of pages
    forget_peak("cpu")
    assert peak_bytes("cpu") < raised - 100_000_000


def test_the_memory_of_a_prompt_is_its_own(monkeypatch):
    """What was held before, as by the making of the weights, is no part of it, and base and patched model have one each."""
    if not forget_peak("cpu"):
        pytest.skip("only Linux says how much a process has held, and forgets it")
    torch.ones(150_000_000)
    high = peak_bytes("cpu")

    calls = []

    def big():
        calls.append(1)
        torch.ones(160_000_000 if len(calls) == 1 else 80_000_000)  # the first is not counted

    def held_while_patched(slot, device):
        slot.register_forward_hook(lambda *_: big())
        return clocked(slot, device)

    clocked = prefill._clocked
    monkeypatch.setattr(prefill, "_clocked", held_while_patched)
    model, _ = CASES["llava_onevision"].build()
    got = measure_prefill(small_config(), frames=2, rounds=1, dtype="float32", config=model.config)
    assert got.base_bytes < high - 300_000_000
    assert got.base_bytes + 250_000_000 < got.patched_bytes < got.base_bytes + 450_000_000
    monkeypatch.setattr(prefill, "forget_peak", lambda device: False)
    unknown = measure_prefill(small_config(), frames=2, rounds=1, dtype="float32", config=model.config)
    assert unknown.base_bytes is None and unknown.patched_bytes is None
