"""Draws: their shares are the probabilities, top_k and top_p cut as they say, and a row draws by its own seed alone."""

import pytest
import torch

from pave.inference import Sampling
from pave.inference.sampling import RowSampler, draw

LOGITS = torch.tensor([0.5, 2.0, -1.0, 1.0, 0.0])


def shares(sampling, count=4000):
    """How often each token is drawn over an even grid of random numbers."""
    drawn = [draw(LOGITS, sampling, (number + 0.5) / count) for number in range(count)]
    return torch.bincount(torch.tensor(drawn), minlength=len(LOGITS)) / count


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_shares_are_probabilities(temperature):
    torch.testing.assert_close(
        shares(Sampling(temperature=temperature)), (LOGITS / temperature).softmax(dim=0), atol=1e-3, rtol=0
    )


def test_top_k_and_top_p_cut():
    probability = LOGITS.softmax(dim=0)
    two = torch.tensor([0.0, probability[1], 0.0, probability[3], 0.0]) / (probability[1] + probability[3])
    torch.testing.assert_close(shares(Sampling(temperature=1.0, top_k=2)), two, atol=1e-3, rtol=0)
    just = float(probability[1] + probability[3])
    torch.testing.assert_close(shares(Sampling(temperature=1.0, top_p=just - 1e-3)), two, atol=1e-3, rtol=0)
    assert (shares(Sampling(temperature=1.0, top_p=just + 1e-3)) > 0).sum() == 3
    assert shares(Sampling(temperature=5.0, top_p=1e-6))[1] == 1.0
    assert shares(Sampling(temperature=1.0, top_k=99)).gt(0).all()


def test_a_token_without_probability_is_never_drawn():
    cut = LOGITS.clone()
    cut[1] = float("-inf")
    assert {draw(cut, Sampling(temperature=9.0), u) for u in (0.0, 0.3, 0.6, 1 - 1e-16)} <= {0, 2, 3, 4}


def test_a_row_draws_by_its_seed_whatever_stands_beside_it():
    scores = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))

    def drawn(rows):
        sampler = RowSampler([sampling for sampling, _ in rows])
        picks = [sampler(None, scores[[row for _, row in rows]]) for _ in range(6)]
        return [[int(pick[place].argmax()) for pick in picks] for place in range(len(rows))]

    warm, other, greedy = Sampling(temperature=1.5, seed=3), Sampling(temperature=1.5, seed=4), Sampling()
    (alone,) = drawn([(warm, 0)])
    first, second, third = drawn([(other, 1), (greedy, 2), (warm, 0)])
    assert third == alone != first and len(set(alone)) > 1
    assert second == [int(scores[2].argmax())] * 6
    torch.manual_seed(5)
    once = drawn([(Sampling(temperature=1.5), 0)])
    assert once != drawn([(Sampling(temperature=1.5), 0)])
    torch.manual_seed(5)
    assert once == drawn([(Sampling(temperature=1.5), 0)])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "temperature must be a number from 0 to 1000, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be a number"),
        ({"top_p": 0}, "top_p must be a number above 0 and at most 1, got 0"),
        ({"top_p": 1.1}, "top_p must be a number above 0"),
        ({"top_k": 1.5}, "top_k must be a whole number of at least 0, got 1.5"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1, got 0"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"stop": "END"}, "stop must be a tuple of texts that are not empty, got 'END'"),
        ({"stop": ("",)}, "stop must be a tuple"),
    ],
)
def test_values_out_of_range_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**values)
