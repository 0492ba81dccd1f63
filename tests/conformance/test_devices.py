"""A patched model away from the CPU: what the caller gives may lie anywhere, and no operation mixes two devices."""

from __future__ import annotations

import pytest
import torch

from cases import CASES, patched, side_tokens, small_config
from other_device import OtherDevice, move, to_cpu, to_device
from pave import SideTokens

CONFIGS = {
    "timestamps": small_config(),
    "index, rope": small_config(alignment="index", rope=True),
    "pre_projector, gate": small_config(query_source="pre_projector", gate=True),
    "interpolate, rope": small_config(empty_frames="interpolate", rope=True),
    "nearest": small_config(empty_frames="nearest", neighbourhood_frames=1),
    "concat": small_config(kind="concat"),
    "interleave": small_config(kind="interleave"),
}


def test_the_other_device_refuses_mixtures():
    with OtherDevice():
        there = to_device(torch.ones(2))
        assert (there + 1).device == (there * torch.ones(2, device=there.device)).device == there.device
        assert there.to("cpu").device.type == torch.ones(2).device.type == "cpu"
        for mixed in (lambda: there + torch.ones(2), lambda: torch.where(there > 0, torch.ones(2), 0.0)):
            with pytest.raises(RuntimeError, match="expected all tensors on one device"):
                mixed()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", CASES)
def test_frame_times_and_side_channels_may_stay_on_the_cpu(name, config):
    """Loaders keep frame times as arrays, which nothing moves; side tokens are moved here at the latest."""
    case = CASES[name]
    model, processor = patched(case, config)
    batch = case.batch(processor)
    times = batch.pop("frame_times")
    side = side_tokens()
    valid = side.valid_BK.clone()
    valid[0] = False
    given = (None, {"audio": side}, {"audio": SideTokens(side.embeds_BKMC, valid, side.times_BK)})
    with torch.no_grad():
        expected = [model(**batch, side_channels=g, frame_times=times.numpy()).logits for g in given]
    move(model)
    batch = {key: to_device(value) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    for channels, wanted in zip(given, expected, strict=True):
        for frame_times in (times.numpy(), times.tolist(), to_device(times)):
            with torch.no_grad(), OtherDevice():
                got = model(**batch, side_channels=channels, frame_times=frame_times).logits
            torch.testing.assert_close(to_cpu(got), wanted)
