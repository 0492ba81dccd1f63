"""Raw clips and features check what they are given."""

import numpy as np
import pytest
import torch

from pave.side_channels import AudioClip, SideFeatures
from pave.tokens import SideTokens


def test_a_clip_takes_arrays_lists_and_tensors():
    for samples in (np.array([0.5, -0.5]), [0.5, -0.5], torch.tensor([0.5, -0.5], dtype=torch.float64)):
        clip = AudioClip(samples, 4, 1.5)
        assert clip.samples.dtype == np.float32
        assert clip.samples.tolist() == [0.5, -0.5]
    assert (len(clip), clip.duration) == (2, 0.5)
    later = clip.shifted(-2.0)
    assert (later.start_time, later.samples.tolist(), clip.start_time) == (-0.5, [0.5, -0.5], 1.5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((np.zeros((2, 3, 4)), 8000), r"vector with at least one sample, .* got shape \(2, 3, 4\)"),
        ((np.zeros(0), 8000), "at least one sample"),
        ((np.array([0.0, np.nan]), 8000), "a NaN or an infinity"),
        ((np.zeros(3), 0), "sample_rate must be at least 1 Hz, got 0"),
        ((np.zeros(3), 8000, float("inf")), "start_time must be finite"),
    ],
)
def test_bad_clips_are_refused(arguments, words):
    with pytest.raises(ValueError, match=f"AudioClip: .*{words}"):
        AudioClip(*arguments)


def test_features_fit_the_token_container():
    features = SideFeatures(torch.rand(3, 5), torch.tensor([0.0, 1.0, 2.0]))
    assert features.features_KMC.shape == (3, 1, 5)
    assert features.times_K.dtype == torch.float64
    tokens = SideTokens.from_videos([features.features_KMC, None], [features.times_K, None])
    assert tokens.valid_BK.tolist() == [[True] * 3, [False] * 3]


@pytest.mark.parametrize(
    ("features", "times", "words"),
    [
        (torch.zeros(3), torch.zeros(3), "floating tensor of shape"),
        (torch.zeros(3, 1, 2, dtype=torch.int64), torch.zeros(3), "floating tensor .* got torch.int64"),
        (torch.zeros(3, 1, 2), torch.zeros(2), r"3 steps but times of shape \(2,\)"),
        (torch.zeros(2, 1, 2), torch.tensor([0.0, float("nan")]), "a time that is not finite"),
    ],
)
def test_bad_features_are_refused(features, times, words):
    with pytest.raises(ValueError, match=f"SideFeatures: .*{words}"):
        SideFeatures(features, times)
