"""What must not matter to a fusion module: how videos are batched, padded, ordered, and where their clock starts."""

import pytest
import torch

from fusion.slow_reference import make_module
from pave.tokens import SideTokens, VideoTokens

S, M, C, Q = 4, 4, 5, 6
SHAPES = [(4, 9), (6, 3), (1, 5), (5, 1), (3, 0), (2, 30)]
OPTIONS = {
    "timestamps": {"alignment": "timestamps"},
    "timestamps, wide, rope": {
        "alignment": "timestamps",
        "neighbourhood_frames": 1,
        "neighbourhood_seconds": 0.3,
        "rope": True,
    },
    "timestamps, nearest": {"alignment": "timestamps", "empty_frames": "nearest"},
    "timestamps, interpolate, rope": {"alignment": "timestamps", "empty_frames": "interpolate", "rope": True},
    "index": {"alignment": "index"},
    "index, wide, rope, shared": {
        "alignment": "index",
        "neighbourhood_frames": 1,
        "rope": True,
        "share_key_value_projection": True,
    },
}


def videos():
    generator = torch.Generator().manual_seed(7)

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    return [
        {
            "queries": rand(T, S, Q) * 4 - 2,
            "frame_times": (rand(T) * 10).sort().values,
            "features": rand(K, M, C) * 4 - 2 if K else None,
            "side_times": (rand(K) * 12 - 1) if K else None,
        }
        for T, K in SHAPES
    ]


def batch(rows, extra_frames=0, extra_steps=0):
    """One padded batch; the padding is filled with noise that differs with the padding."""
    T = max(len(v["queries"]) for v in rows) + extra_frames
    queries = torch.randn(len(rows), T, S, Q, dtype=torch.float64) * 50
    valid = torch.zeros(len(rows), T, dtype=torch.bool)
    times = torch.randn(len(rows), T, dtype=torch.float64) * 50
    for b, v in enumerate(rows):
        t = len(v["queries"])
        queries[b, :t], valid[b, :t], times[b, :t] = v["queries"], True, v["frame_times"]
    side = SideTokens.from_videos([v["features"] for v in rows], [v["side_times"] for v in rows], width=C, tokens_per_step=M)
    if extra_steps:
        noise = torch.randn(len(rows), extra_steps, M, C, dtype=torch.float64) * 50
        side = SideTokens(
            torch.cat([side.embeds_BKMC, noise], dim=1),
            torch.cat([side.valid_BK, torch.zeros(len(rows), extra_steps, dtype=torch.bool)], dim=1),
            torch.cat([side.times_BK, torch.full((len(rows), extra_steps), torch.nan, dtype=torch.float64)], dim=1),
        )
    return VideoTokens(queries, valid, times), side


def run(module, rows, **padding):
    video, side = batch(rows, **padding)
    out = module(video, side)
    return [out[b, : len(v["queries"])] for b, v in enumerate(rows)], out


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_batched_equals_one_by_one(options):
    module, rows = make_module(**options), videos()
    together, _ = run(module, rows)
    for row, got in zip(rows, together):
        torch.testing.assert_close(got, run(module, [row])[0][0], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients_of_a_batch_are_the_sum_of_its_videos(options):
    module, rows = make_module(**options), videos()

    def gradients(groups):
        module.zero_grad()
        for group in groups:
            sum(out.square().sum() for out in run(module, group)[0]).backward()
        return [p.grad.clone() for p in module.parameters()]

    for one, other in zip(gradients([rows]), gradients([[row] for row in rows])):
        assert torch.isfinite(one).all()
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_padding_is_never_read(options):
    module, rows = make_module(**options), videos()
    plain, _ = run(module, rows)
    padded, out = run(module, rows, extra_frames=2, extra_steps=3)
    for a, b in zip(plain, padded):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)
    for b, row in enumerate(rows):
        assert (out[b, len(row["queries"]) :] == 0).all()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_missing_channel_is_exactly_zero_and_leaves_the_others_alone(options):
    module, rows = make_module(**options), videos()
    together, out = run(module, rows)
    assert (out[4] == 0).all()
    assert all((out[b] != 0).any() for b in (0, 1, 2, 5))  # video 3 has one step, which may be out of reach
    without, _ = run(module, [row for b, row in enumerate(rows) if b != 4])
    for a, b in zip([o for i, o in enumerate(together) if i != 4], without):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_order_of_side_steps_and_of_videos_does_not_matter(options):
    module, rows = make_module(**options), videos()
    plain, _ = run(module, rows)
    shuffled = []
    for row in rows:
        order = torch.randperm(0 if row["features"] is None else len(row["features"]))
        parts = {k: None if row[k] is None else row[k][order] for k in ("features", "side_times")}
        shuffled.append({**row, **parts})
    for a, b in zip(plain, reversed(run(module, shuffled[::-1])[0])):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_where_the_clock_starts_does_not_matter(options):
    """A day into a recording; rope angles are float32, so they are compared less closely."""
    module, rows = make_module(**options), videos()
    plain, _ = run(module, rows)
    later = [
        {
            **row,
            "frame_times": row["frame_times"] + 86400,
            "side_times": None if row["side_times"] is None else row["side_times"] + 86400,
        }
        for row in rows
    ]
    tolerance = 1e-5 if options.get("rope") else 1e-8
    for a, b in zip(plain, run(module, later)[0]):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def test_order_of_frames_does_not_matter_under_timestamps():
    module, rows = make_module(neighbourhood_frames=1, rope=True), videos()
    plain, _ = run(module, rows)
    orders = [torch.randperm(len(row["queries"])) for row in rows]
    shuffled = [{**r, "queries": r["queries"][o], "frame_times": r["frame_times"][o]} for r, o in zip(rows, orders)]
    for a, b, order in zip(plain, run(module, shuffled)[0], orders):
        torch.testing.assert_close(a[order], b, atol=1e-9, rtol=1e-9)


def test_frame_repeated_as_padding_changes_no_other_frame():
    """Samplers repeat the last frame of a short video; the copies get what the last frame gets."""
    module, rows = make_module(), videos()[:1]
    plain = run(module, rows)[0][0]
    row = rows[0]
    doubled = {
        **row,
        "queries": torch.cat([row["queries"], row["queries"][-1:], row["queries"][-1:]]),
        "frame_times": torch.cat([row["frame_times"], row["frame_times"][-1:], row["frame_times"][-1:]]),
    }
    got = run(module, [doubled])[0][0]
    torch.testing.assert_close(got, plain[[0, 1, 2, 3, 3, 3]], atol=1e-10, rtol=1e-10)
