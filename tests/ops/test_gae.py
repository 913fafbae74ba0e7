"""GAE by hand, against a float64 loop, and at the settings where it is something simpler; the critic's loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from posttrain.ops.gae import explained_variance, gae, value_loss, whitened


def test_by_hand():
    # delta_3 = 1 - .3, delta_2 = 0 + .9 x .3 - .2 = .07, delta_1 = .9 x .2 - .1 = .08; gamma lambda = .45
    rewards, values, mask = (
        tensor([[0.0, 0.0, 1.0, 5.0]]),
        tensor([[0.1, 0.2, 0.3, 9.0]]),
        tensor([[1, 1, 1, 0]]),
    )
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=0.5)
    assert_close(advantages, tensor([[0.08 + 0.45 * (0.07 + 0.45 * 0.7), 0.07 + 0.45 * 0.7, 0.7, 0.0]]))
    assert_close(returns, tensor([[0.08 + 0.45 * 0.385 + 0.1, 0.385 + 0.2, 1.0, 0.0]]))


def test_undiscounted_without_a_critic_it_is_the_return():
    rewards = tensor([[0.5, -1.0, 2.0], [1.0, 0.0, 0.0]])
    mask = tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    advantages, returns = gae(rewards, torch.zeros(2, 3), mask, gamma=1.0, lam=1.0)
    assert_close(advantages, tensor([[1.5, 1.0, 2.0], [1.0, 0.0, 0.0]]))
    assert torch.equal(returns, advantages)


def test_at_lambda_one_the_return_knows_no_critic_and_at_zero_only_the_next_value():
    generator = torch.Generator().manual_seed(0)
    rewards, values = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.ones(3, 5)
    _, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    assert_close(returns, rewards.flip(1).cumsum(1).flip(1))
    advantages, _ = gae(rewards, values, mask, gamma=0.9, lam=0.0)
    following = torch.cat([values[:, 1:], torch.zeros(3, 1, dtype=torch.float64)], dim=1)
    assert_close(advantages, rewards + 0.9 * following - values)


def test_matches_a_loop_over_the_tokens_that_are_actions():
    """A tool's output in the middle is passed over: the tokens around it follow each other."""
    generator = torch.Generator().manual_seed(1)
    rewards, values = (torch.randn(4, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = (torch.rand(4, 9, generator=generator) < 0.7).double()
    mask[3] = 0
    found, returns = gae(rewards, values, mask, gamma=0.97, lam=0.8)
    for row in range(4):
        places = [t for t in range(9) if mask[row, t]]
        expected = torch.zeros(9, dtype=torch.float64)
        for i, t in enumerate(places):
            for step, place in enumerate(places[i:]):
                behind = values[row, places[i + step + 1]] if i + step + 1 < len(places) else 0.0
                delta = rewards[row, place] + 0.97 * behind - values[row, place]
                expected[t] += (0.97 * 0.8) ** step * delta
        assert_close(found[row], expected)
        assert_close(returns[row], (expected + values[row]) * mask[row])


def test_the_value_loss_is_the_worse_of_plain_and_held():
    old, returns = tensor([[0.0, 0.0, 0.0]]), tensor([[1.0, 1.0, -1.0]])
    values = tensor([[0.5, 0.1, 0.5]])
    assert_close(value_loss(values, old, returns, None), tensor([[0.125, 0.405, 1.125]]))
    # held at .2: (.2 - 1)^2 / 2 is worse than (.5 - 1)^2 / 2; .1 is inside; of the third the plain one is worse
    assert_close(value_loss(values, old, returns, 0.2), tensor([[0.32, 0.405, 1.125]]))


def test_a_value_past_its_bound_is_pulled_no_further():
    values = tensor([[0.5, 0.5]], requires_grad=True)
    value_loss(values, torch.zeros(1, 2), tensor([[1.0, -1.0]]), 0.2).sum().backward()
    assert_close(values.grad, tensor([[0.0, 1.5]]))  # but back, yes


def test_whitening_is_over_what_counts():
    values, mask = tensor([[1.0, 3.0, 100.0], [5.0, 7.0, -3.0]]), tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    assert_close(whitened(values, mask), tensor([[-3.0, -1.0, 0.0], [1.0, 3.0, 0.0]]) / math.sqrt(5))
    assert (whitened(values, tensor([[1.0, 0, 0], [0, 0, 0]])) == 0).all()


@pytest.mark.parametrize(
    ("values", "expected"), [([1.0, 2.0, 3.0], 1.0), ([2.0, 2.0, 2.0], 0.0), ([3.0, 2.0, 1.0], -3.0)]
)
def test_explained_variance(values, expected):
    returns, mask = tensor([[1.0, 2.0, 3.0, 50.0]]), tensor([[1.0, 1.0, 1.0, 0.0]])
    assert explained_variance(tensor([[*values, 9.0]]), returns, mask).item() == pytest.approx(expected)
    assert explained_variance(tensor([[*values, 9.0]]), torch.ones(1, 4), mask).isnan()
