"""Rotary positions: the published numbers, and what must not matter."""

import pytest
import torch

from fusion.slow_reference import rotate
from pave.fusion.rope import (
    flat_grid,
    grid_positions,
    index_times,
    rotation,
    second_times,
    sections,
    square_grid,
    truncated_linspace,
)
from pave.fusion.temporal_alignment import align_by_index, align_by_timestamps


def test_published_sections_and_their_proportions_elsewhere():
    assert sections(128) == (16, 24, 24)
    assert sections(64) == (8, 12, 12)
    assert sections(8) == (2, 1, 1)
    for head_width in range(8, 264, 8):
        assert sum(sections(head_width)) == head_width // 2
        assert min(sections(head_width)) > 0
    with pytest.raises(ValueError, match="multiple of 8, got 12"):
        sections(12)


@pytest.mark.parametrize(
    ("cells", "side", "wanted"),
    [
        (2, 14, [3, 10]),
        (1, 14, [7]),
        (14, 24, [0, 2, 4, 6, 7, 9, 11, 12, 14, 16, 18, 19, 21, 23]),
        (14, 14, list(range(14))),
        (1, 1, [0]),
    ],
)
def test_published_grid_positions(cells, side, wanted):
    assert grid_positions(cells, side).tolist() == wanted


def test_truncated_linspace_is_the_float32_one():
    """Up to 14 numbers no rounding reaches an integer, so the vectorised CPU form gives the same."""
    for count in range(1, 15):
        for last in range(count - 1, 260):
            got = truncated_linspace(torch.tensor(last), torch.tensor(count), torch.arange(count))
            assert torch.equal(got, torch.linspace(0, last, count).long())
    differing = 0
    for count in range(15, 65):
        for last in range(count - 1, 200):
            got = truncated_linspace(torch.tensor(last), torch.tensor(count), torch.arange(count))
            exact = torch.arange(count) * last // (count - 1)
            assert ((exact - got) >= 0).all() and ((exact - got) <= 1).all()
            differing += not torch.equal(got, torch.linspace(0, last, count).long())
    assert differing < 0.01 * 50 * 160


def test_grid_runs_row_by_row():
    rows, columns = flat_grid((2, 3), 3)
    assert rows.tolist() == [0, 0, 0, 2, 2, 2]
    assert columns.tolist() == [0, 1, 2, 0, 1, 2]


def test_tokens_that_form_no_square_are_refused():
    assert square_grid(196, "tokens") == (14, 14)
    with pytest.raises(ValueError, match="6 side tokens per step form no square"):
        square_grid(6, "side tokens per step")


@pytest.mark.parametrize("head_width", [8, 16, 24, 128])
def test_rotation_turns_each_channel_by_its_own_axis(head_width):
    time = torch.tensor([[0.0, 5.0]])
    rows, columns = torch.tensor([0, 3]), torch.tensor([2, 7])
    tokens = torch.randn(1, 2, 2, 2 * head_width, generator=torch.Generator().manual_seed(0))
    turned = rotation(time, rows, columns, head_width).apply(tokens)
    for t in range(2):
        for s in range(2):
            position = (time[0, t].item(), rows[s].item(), columns[s].item())
            for h in range(2):
                part = slice(h * head_width, (h + 1) * head_width)
                torch.testing.assert_close(turned[0, t, s, part], rotate(tokens[0, t, s, part], position), atol=1e-5, rtol=0)


def test_rotation_keeps_the_dtype():
    tokens = torch.randn(1, 1, 1, 8, dtype=torch.bfloat16)
    assert rotation(torch.zeros(1, 1), torch.zeros(1), torch.zeros(1), 8).apply(tokens).dtype == torch.bfloat16


def test_index_times_of_ragged_videos():
    frames = torch.tensor([[True, True, True], [True, True, False]])
    side = torch.tensor([[True] * 7, [True] + [False] * 6])
    query, key = index_times(frames, side, align_by_index(frames, side))
    assert query[0].tolist() == [0, 3, 6]
    assert key[0, :7].tolist() == list(range(7))
    assert query[1, :2].tolist() == [0, 1]
    assert key[1, 7:9].tolist() == [0, 1]


def test_second_times_count_mean_frame_gaps_between_different_times():
    frames = torch.tensor([[True, True, True, True], [True, False, False, False]])
    frame_times = torch.tensor([[4.0, 6.0, 10.0, 10.0], [2.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    side = torch.tensor([[True, True], [True, False]])
    side_times = torch.tensor([[4.0, 11.5], [5.0, 0.0]], dtype=torch.float64)
    windows = align_by_timestamps(frames, frame_times, side, side_times)
    query, key = second_times(frames, frame_times, side, side_times, windows)
    torch.testing.assert_close(query, torch.tensor([[0, 2 / 3, 2, 2], [0, 0, 0, 0]], dtype=torch.float64))
    torch.testing.assert_close(key, torch.tensor([[0, 2.5], [3, 0]], dtype=torch.float64))
