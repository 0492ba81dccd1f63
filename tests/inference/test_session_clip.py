"""Which frames are complete: tried against every further step that may come, with the alignment itself as the judge."""

from __future__ import annotations

import math

import pytest
import torch

from pave import FusionConfig
from pave.fusion.temporal_alignment import align
from pave.inference.session_clip import Reader, check_streams, choose_clip, clip_of, complete_frames, final_length
from pave.video_llms import LlavaOnevisionInterface, Qwen2_5VLInterface

ALIGNMENTS = {
    "skip": {},
    "nearest": {"empty_frames": "nearest"},
    "interpolate": {"empty_frames": "interpolate"},
    "neighbours": {"neighbourhood_frames": 1, "empty_frames": "nearest"},
    "seconds": {"neighbourhood_seconds": 0.7, "empty_frames": "interpolate"},
}
SINGLE, PAIRS = LlavaOnevisionInterface(), Qwen2_5VLInterface()


def times(*seconds: float) -> torch.Tensor:
    return torch.tensor(seconds, dtype=torch.float64)


def what_is_read(times_T, steps_K, fusion) -> list[list[float]]:
    """Per frame the times of the steps that it reads; of an interpolated one those of both and the weight."""
    if not len(steps_K):
        return [[] for _ in times_T]
    windows = align(
        torch.ones(1, len(times_T), dtype=torch.bool),
        times_T[None],
        torch.ones(1, len(steps_K), dtype=torch.bool),
        steps_K[None],
        neighbourhood_frames=fusion.neighbourhood_frames,
        neighbourhood_seconds=fusion.neighbourhood_seconds,
        empty_frames=fusion.empty_frames,
    )
    order, K = windows.order_BK[0].tolist(), len(steps_K)
    found = []
    for frame in range(len(times_T)):
        start, length = int(windows.start_BT[0, frame]), int(windows.length_BT[0, frame])
        if length and start >= K:
            made = windows.resampled
            two = [float(steps_K[int(side[0, start - K])]) for side in (made.left_BT, made.right_BT)]
            found.append([*two, float(made.weight_BT[0, start - K])])
        else:
            found.append([float(steps_K[order[place]]) for place in range(start, start + length)])
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ALIGNMENTS)
def test_a_frame_is_complete_exactly_if_no_further_step_can_change_what_it_reads(name, seed):
    fusion = FusionConfig(**ALIGNMENTS[name])
    generator = torch.Generator().manual_seed(seed)
    T, K = int(torch.randint(1, 7, (), generator=generator)), int(torch.randint(0, 9, (), generator=generator))
    frames = (torch.rand(T, generator=generator, dtype=torch.float64) * 8).sort().values
    steps = (torch.rand(K, generator=generator, dtype=torch.float64) * 8).sort().values
    for watermark in [*(torch.rand(4, generator=generator).double() * 10).tolist(), *steps[-1:].tolist(), 3.0]:
        for at in (math.inf, 5.0):
            clip, come = frames[frames < at], steps[(steps <= watermark) & (steps < at)]
            complete = complete_frames(clip, Reader("a", fusion, come, watermark), at).tolist()
            before = what_is_read(clip, come, fusion)
            changed = [False] * len(clip)
            for step in [watermark, watermark + 0.01, watermark + 1.3, *clip[clip > watermark].tolist()]:
                after = what_is_read(clip, torch.cat([come, times(step)]).sort().values, fusion) if step < at else before
                changed = [was or x != y for was, x, y in zip(changed, before, after, strict=True)]
            assert [not c for c in changed] == complete, (watermark, at, frames, come)


def test_the_newest_clip_is_cut_where_a_channel_is_waited_for():
    fusion = FusionConfig()
    frames = times(0, 1, 2, 3, 4)
    sound = Reader("sound", fusion, times(0.5, 1.0), 2.5)
    depth = Reader("depth", fusion, times(), 9.0)
    assert choose_clip(frames, [depth], SINGLE) == range(5)
    assert choose_clip(frames, [sound, depth], SINGLE) == range(3)
    assert choose_clip(frames, [Reader("sound", fusion, times(), 2.49)], SINGLE) == range(2)
    assert choose_clip(frames, [Reader("sound", fusion, times(), -math.inf)], SINGLE) == range(0)
    assert choose_clip(frames, [], SINGLE) == range(5)
    assert choose_clip(frames[:3], [Reader("sound", fusion, times(), 2.2)], SINGLE, at=2.2) == range(
        3
    )  # the clip ends at 2.2 s
    assert choose_clip(frames, [sound], SINGLE, max_frames=2) == range(1, 3)
    assert choose_clip(frames, [sound], SINGLE, max_frames=1) == range(0)  # a frame alone reads every step


def test_a_shorter_clip_need_not_be_complete_where_a_longer_one_is():
    frames = times(0, 10, 10.1)
    assert choose_clip(frames, [Reader("a", FusionConfig(), times(), 10.2)], SINGLE) == range(3)
    assert choose_clip(frames[:2], [Reader("a", FusionConfig(), times(), 10.2)], SINGLE) == range(0)


def test_steps_of_merged_frames_are_complete_by_the_time_of_the_step():
    frames = times(0, 1, 2, 3, 4, 5)  # steps at 0.5, 2.5, 4.5
    assert choose_clip(frames, [Reader("a", FusionConfig(), times(), 3.5)], PAIRS) == range(4)
    assert choose_clip(frames, [Reader("a", FusionConfig(), times(), 3.4)], PAIRS) == range(
        3
    )  # steps at 0.5 and 2.0, up to 2.75
    assert clip_of(6, PAIRS, 3) == range(4, 6) and clip_of(5, PAIRS, 2) == range(4, 5) and clip_of(6, PAIRS, 1) == range(4, 6)
    assert clip_of(6, SINGLE, 4) == range(2, 6) and clip_of(3, SINGLE) == range(3)


def test_final_frames_need_the_next_frame_and_the_watermark():
    frames = times(0, 1, 2, 3, 4)
    wide = Reader("a", FusionConfig(), times(), 100.0)
    assert final_length(frames, [wide], SINGLE, 4.0) == 4
    assert final_length(frames, [wide], SINGLE, 3.0) == 3  # another frame may still come before that of 4 s
    assert final_length(frames, [wide], SINGLE, math.inf) == 5
    assert final_length(frames, [Reader("a", FusionConfig(), times(), 2.5)], SINGLE, 4.0) == 3
    assert final_length(frames, [Reader("a", FusionConfig(neighbourhood_frames=2), times(), 99.0)], SINGLE, 4.0) == 2
    assert final_length(frames, [wide], PAIRS, 4.0) == 2  # steps at 0.5 and 2.5; that of the last frame is not whole
    assert final_length(times(0, 1, 2, 2), [wide], SINGLE, 2.0) == 2  # two frames of one time wait for the next time
    assert final_length(frames, [], SINGLE, 4.0) == 5


@pytest.mark.parametrize(
    "fusion, reason",
    [
        (FusionConfig(alignment="index"), "known only when the stream has ended"),
        (FusionConfig(kind="concat"), "a stream has no end"),
        (FusionConfig(kind="interleave"), "a stream has no end"),
    ],
)
def test_what_needs_the_end_of_the_stream_is_refused(fusion, reason):
    with pytest.raises(ValueError, match=f"side channel p.audio: .*{reason}"):
        check_streams("p.audio", fusion)
