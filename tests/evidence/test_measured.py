"""The measurement at tiny size: what it records, that it is taken once, and that the clock is in the fusion."""

import json

import pytest
import torch

from cases import CASES, small_config
from pave.evidence import measured
from pave.evidence.measured import FILE, Measured, measure_prefill, measured_once, peak_bytes


def test_a_prompt_is_measured_in_rounds():
    model, _ = CASES["llava_onevision"].build()
    got = measure_prefill(small_config(), frames=3, rounds=2, dtype="float32", base="tiny", config=model.config)
    assert (got.base, got.frames, got.rounds, got.dtype) == ("tiny", 3, 2, "float32")
    assert got.tokens == 3 * 4 + 1 + 64
    assert 0 < got.fusion_seconds < got.base_seconds * got.ratio * 2
    assert Measured.from_dict(got.to_dict()) == got


def test_the_patch_is_on_in_its_turn_only(monkeypatch):
    """Every second prompt has side channels, and the modules of the fusion run in those alone."""
    calls = []
    plain = measured._clocked

    def watched(slot, device):
        slot.register_forward_hook(lambda *_: calls.append(1))
        return plain(slot, device)

    monkeypatch.setattr(measured, "_clocked", watched)
    model, _ = CASES["llava_onevision"].build()
    measure_prefill(small_config(), frames=2, rounds=3, dtype="float32", config=model.config)
    assert len(calls) == 4


def test_a_measurement_is_read_back_and_not_taken_again(tmp_path):
    known = Measured(
        base="b", frames=1, tokens=2, dtype="float32", rounds=1, base_seconds=2.0, ratio=1.5, fusion_seconds=0.1,
        base_bytes=None, patched_bytes=None, machine="m",
    )  # fmt: skip
    (tmp_path / FILE).write_text(json.dumps(known.to_dict()))
    assert measured_once(small_config(), tmp_path) == known
    (tmp_path / FILE).write_text("{")
    with pytest.raises(ValueError, match=r"measured\.json: not valid JSON; remove it"):
        measured_once(small_config(), tmp_path)


def test_memory_is_a_high_water_mark():
    before = peak_bytes()
    if before is None:
        pytest.skip("the system does not say")
    held = torch.ones(60_000_000)
    assert peak_bytes() >= before and peak_bytes() > held.nbytes
    del held
    assert peak_bytes() > 240_000_000
