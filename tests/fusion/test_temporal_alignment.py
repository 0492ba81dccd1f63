"""Windows against a slow rule written from the definition, and by hand where a number can be checked by eye."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.slow_reference import reads_by_index, reads_by_time
from pave.fusion.temporal_alignment import align, align_by_index, align_by_timestamps, frame_intervals

INF = math.inf


def read(windows, row: int, t: int) -> list[dict[int, float]]:
    """What a frame reads, as the slow rule writes it."""
    start, length = int(windows.start_BT[row, t]), int(windows.length_BT[row, t])
    K = windows.order_BK.shape[1]
    out = []
    for place in range(start, start + length):
        if place < K:
            out.append({int(windows.order_BK[row, place]): 1.0})
            continue
        made = windows.resampled
        left, right = int(made.left_BT[row, place - K]), int(made.right_BT[row, place - K])
        weight = float(made.weight_BT[row, place - K])
        out.append({left: 1.0} if left == right else {left: 1 - weight, right: weight})
    return out


def same(got: list[dict[int, float]], wanted: list[dict[int, float]]) -> bool:
    def plain(mix):
        return {k: v for k, v in mix.items() if v > 1e-9}

    return len(got) == len(wanted) and all(
        plain(g).keys() == plain(w).keys() and all(abs(g[k] - w[k]) < 1e-9 for k in plain(g)) for g, w in zip(got, wanted)
    )


def pad(rows: list[list[float]], value: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded values and validity; always at least one column."""
    width = max([len(row) for row in rows] + [1])
    values = torch.full((len(rows), width), value, dtype=torch.float64)
    valid = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        values[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
        valid[i, : len(row)] = True
    return values, valid


def row(*times: float) -> torch.Tensor:
    return torch.tensor([times], dtype=torch.float64)


def yes(count: int) -> torch.Tensor:
    return torch.ones(1, count, dtype=torch.bool)


def test_intervals_reach_halfway_and_outwards_by_half_of_the_only_gap():
    lower, upper = frame_intervals(yes(3), row(0, 1, 3))
    assert lower.tolist() == [[-0.5, 0.5, 2.0]]
    assert upper.tolist() == [[0.5, 2.0, 4.0]]


def test_frames_of_one_time_alone_own_everything():
    lower, upper = frame_intervals(torch.ones(1, 3, dtype=torch.bool), torch.full((1, 3), 2.0))
    assert lower.tolist() == [[-INF] * 3] and upper.tolist() == [[INF] * 3]


def test_single_frame_owns_everything():
    lower, upper = frame_intervals(yes(1), row(7.0))
    assert (lower.item(), upper.item()) == (-INF, INF)
    windows = align_by_timestamps(yes(1), row(7.0), yes(4), row(-100, 3, 8, 1e6))
    assert windows.length_BT.tolist() == [[4]]


def test_frames_of_equal_time_share_one_interval():
    lower, upper = frame_intervals(yes(5), row(0, 1, 2, 2, 2))
    assert lower.tolist() == [[-0.5, 0.5, 1.5, 1.5, 1.5]]
    assert upper.tolist() == [[0.5, 1.5, 2.5, 2.5, 2.5]]
    lower, upper = frame_intervals(yes(2), row(4, 4))
    assert lower.tolist() == [[-INF, -INF]] and upper.tolist() == [[INF, INF]]


def test_frames_need_not_be_sorted():
    times = row(0.0, 1.0, 3.0, 3.5, 9.0)
    order = torch.tensor([3, 0, 4, 2, 1])
    for n in (0, 1, 2):
        straight = frame_intervals(yes(5), times, neighbourhood_frames=n)
        shuffled = frame_intervals(yes(5), times[:, order], neighbourhood_frames=n)
        for a, b in zip(straight, shuffled):
            assert torch.equal(a[:, order], b)


def test_step_on_an_edge_belongs_to_the_later_frame():
    windows = align_by_timestamps(yes(2), row(0, 1), yes(4), row(-0.5, 0.5, 1.4999, 1.5))
    assert read(windows, 0, 0) == [{0: 1.0}]
    assert read(windows, 0, 1) == [{1: 1.0}, {2: 1.0}]


def test_early_and_late_steps_belong_to_no_frame():
    windows = align_by_timestamps(yes(2), row(0, 1), yes(3), row(-9, 0.1, 30))
    assert windows.length_BT.tolist() == [[1, 0]]


def test_neighbourhood_frames_and_seconds_widen_both_edges():
    times, steps = row(0, 2, 4, 6), row(0, 1.5, 2.5, 4.5, 6.5)
    windows = align_by_timestamps(yes(4), times, yes(5), steps, neighbourhood_frames=1)
    assert [len(read(windows, 0, t)) for t in range(4)] == [3, 4, 4, 2]
    windows = align_by_timestamps(yes(4), times, yes(5), steps, neighbourhood_seconds=0.5)
    assert [[next(iter(m)) for m in read(windows, 0, t)] for t in range(4)] == [[0], [1, 2], [2, 3], [3, 4]]


def test_nearest_takes_the_earlier_of_two_and_the_end_beyond_the_stream():
    windows = align_by_timestamps(yes(4), row(0, 10, 20, 30), yes(2), row(16, 24), empty_frames="nearest")
    assert [read(windows, 0, t) for t in range(4)] == [[{0: 1.0}], [{0: 1.0}], [{0: 1.0}, {1: 1.0}], [{1: 1.0}]]
    windows = align_by_timestamps(yes(3), row(0, 10, 20), yes(2), row(2, 18), empty_frames="nearest")
    assert read(windows, 0, 1) == [{0: 1.0}]


def test_nearest_among_steps_of_one_time_stands_next_to_the_frame_in_the_stream():
    """Of the steps at 1 s the last lies before the frames, of those at 9 s the first behind them."""
    frames, steps = torch.tensor([[4.0, 5.0, 6.0]]), torch.tensor([[9.0, 1.0, 9.0, 1.0]])
    every = torch.ones(1, 4, dtype=torch.bool)
    windows = align(every[:, :3], frames, every, steps, empty_frames="nearest")
    assert [read(windows, 0, t) for t in range(3)] == [
        [{3: 1.0}],
        [{3: 1.0}],
        [{0: 1.0}],
    ]  # 5 s is as far from both: the earlier


def test_interpolate_at_the_frame_clamped_at_the_ends():
    windows = align_by_timestamps(yes(4), row(-10, 0, 1, 2), yes(2), row(0.0, 2.0), empty_frames="interpolate")
    assert same(read(windows, 0, 0), [{0: 1.0}])
    assert same(read(windows, 0, 1), [{0: 1.0}])
    assert same(read(windows, 0, 2), [{0: 0.5, 1: 0.5}])
    windows = align_by_timestamps(yes(5), row(0, 1, 2, 3, 9), yes(2), row(0.0, 4.0), empty_frames="interpolate")
    assert same(read(windows, 0, 1), [{0: 0.75, 1: 0.25}])
    assert same(read(windows, 0, 4), [{1: 1.0}])


@pytest.mark.parametrize(("steps", "frames", "sizes"), [(10, 4, [3, 3, 2, 2]), (8, 4, [2, 2, 2, 2]), (4, 4, [1, 1, 1, 1])])
def test_index_gives_the_remainder_to_the_first_frames(steps, frames, sizes):
    windows = align_by_index(yes(frames), yes(steps))
    assert windows.length_BT.tolist() == [sizes]
    assert [next(iter(m)) for t in range(frames) for m in read(windows, 0, t)] == list(range(steps))
    assert windows.resampled is None


def test_index_resamples_a_short_stream_end_on_end():
    windows = align_by_index(yes(5), yes(3))
    assert same([read(windows, 0, t)[0] for t in range(5)], [{0: 1.0}, {0: 0.5, 1: 0.5}, {1: 1.0}, {1: 0.5, 2: 0.5}, {2: 1.0}])
    windows = align_by_index(yes(4), yes(1))
    assert [read(windows, 0, t) for t in range(4)] == [[{0: 1.0}]] * 4


def test_index_orders_by_time_where_times_are_known():
    windows = align_by_index(yes(2), yes(4), row(3, 0, 2, 1))
    assert [read(windows, 0, t) for t in range(2)] == [[{1: 1.0}, {3: 1.0}], [{2: 1.0}, {0: 1.0}]]


def test_missing_times_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"every video frame.*alignment 'index'"):
        align(yes(2), None, yes(2), row(0, 1))
    with pytest.raises(ValueError, match=r"every side step.*alignment 'index'"):
        align(yes(2), row(0, 1), yes(2), None)
    assert align(yes(2), None, yes(2), None, alignment="index").length_BT.tolist() == [[1, 1]]


def test_frame_time_that_is_not_finite_is_refused_unless_padded():
    with pytest.raises(ValueError, match="not finite"):
        align(yes(2), row(0, INF), yes(1), row(0))
    padded = torch.tensor([[True, True, False]])
    windows = align(padded, row(0, 1, math.nan), yes(1), row(0))
    assert windows.length_BT.tolist() == [[1, 0, 0]]


seconds = st.integers(-40, 40).map(lambda x: x / 4)  # quarters: ties and edges happen often, sums stay exact
streams = st.lists(seconds, min_size=0, max_size=9)
videos = st.lists(st.tuples(st.lists(seconds, min_size=1, max_size=7), streams), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(videos, st.integers(0, 2), st.sampled_from([0.0, 0.5, 3.25]), st.sampled_from(["skip", "nearest", "interpolate"]))
def test_timestamps_follow_the_rule_in_ragged_batches(batch, n, reach, empty_frames):
    """Unsorted and repeated times included."""
    frame_times, frame_valid = pad([frames for frames, _ in batch], math.nan)
    side_times, side_valid = pad([steps for _, steps in batch], math.nan)
    windows = align_by_timestamps(
        frame_valid,
        frame_times,
        side_valid,
        side_times,
        neighbourhood_frames=n,
        neighbourhood_seconds=reach,
        empty_frames=empty_frames,
    )
    for b, (frames, steps) in enumerate(batch):
        wanted = reads_by_time(frames, steps, n, reach, empty_frames)
        for t in range(len(frames)):
            got = read(windows, b, t)
            if empty_frames == "nearest" and len(wanted[t]) == 1 and len(got) == 1:
                assert steps[next(iter(got[0]))] == steps[next(iter(wanted[t][0]))]  # equal times are interchangeable
            elif empty_frames == "interpolate" and len(wanted[t]) == 1 and len(got) == 1:
                times = [sum(w * steps[k] for k, w in mix.items()) for mix in (got[0], wanted[t][0])]
                assert times[0] == pytest.approx(times[1])
            else:
                assert same(got, wanted[t])
        assert (windows.length_BT[b, len(frames) :] == 0).all()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 7), st.integers(0, 15)), min_size=1, max_size=4), st.integers(0, 2))
def test_index_follows_the_rule_in_ragged_batches(batch, n):
    _, frame_valid = pad([[0.0] * T for T, _ in batch], 0.0)
    _, side_valid = pad([[0.0] * K for _, K in batch], 0.0)
    windows = align_by_index(frame_valid, side_valid, neighbourhood_frames=n)
    for b, (T, K) in enumerate(batch):
        wanted = reads_by_index(T, K, n)
        assert all(same(read(windows, b, t), wanted[t]) for t in range(T))
        assert (windows.length_BT[b, T:] == 0).all()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 12), st.floats(0.05, 5000), st.floats(-1e4, 1e4), st.integers(0, 3))
def test_timestamps_equal_index_for_uniform_times_and_whole_chunks(T, a, duration, begin, n):
    """Frames and steps at the centres of equal parts of one duration."""
    K = T * a
    frame_times = begin + (torch.arange(T, dtype=torch.float64)[None] + 0.5) * duration / T
    side_times = begin + (torch.arange(K, dtype=torch.float64)[None] + 0.5) * duration / K
    by_time = align_by_timestamps(yes(T), frame_times, yes(K), side_times, neighbourhood_frames=n)
    by_index = align_by_index(yes(T), yes(K), side_times, neighbourhood_frames=n)
    assert torch.equal(by_time.start_BT, by_index.start_BT)
    assert torch.equal(by_time.length_BT, by_index.length_BT)


def test_gaps_inside_the_valid_frames_and_steps_are_skipped():
    """Validity is a mask, not a length: a step dropped in the middle leaves the others where they were."""
    valid = torch.tensor([[True, False, True, True]])
    windows = align_by_index(torch.tensor([[True, False, True]]), valid)
    assert windows.length_BT.tolist() == [[2, 0, 1]]
    assert read(windows, 0, 0) == [{0: 1.0}, {2: 1.0}]
    assert read(windows, 0, 2) == [{3: 1.0}]
    windows = align_by_timestamps(yes(2), row(0, 1), valid, row(0.0, 0.1, 0.2, 1.0))
    assert read(windows, 0, 0) == [{0: 1.0}, {2: 1.0}]
