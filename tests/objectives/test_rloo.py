"""RLOO: the leave-one-out baseline by hand, the gradient of whole responses, TRL's own formula."""

from __future__ import annotations

import math

import pytest
import torch
from small_recipe import POLICY, Load
from torch import tensor
from torch.testing import assert_close

from posttrain.objectives.base import Groups, TokenBatch
from posttrain.objectives.rloo import RLOO, leave_one_out
from posttrain.objectives.step import step_losses
from posttrain.ops.groups import group_centered

NAN = math.nan


def batch(seed: int = 0, spread: float = 0.0) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)
    old = -2 * torch.rand(6, 7, generator=generator, dtype=torch.float64)
    new = old + spread * torch.randn(6, 7, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, 8, (6, 1), generator=generator)
    mask = (torch.arange(7) < lengths).double()
    return TokenBatch(
        new.requires_grad_(), old, mask, torch.randn(6, 1, generator=generator, dtype=torch.float64)
    )


def test_each_response_is_compared_with_the_mean_of_the_others():
    # 1 - (0+0+1)/3, 0 - (1+0+1)/3; then 3 - (1+2)/2, 1 - (3+2)/2, 2 - (3+1)/2
    assert_close(leave_one_out(tensor([[1.0, 0.0, 0.0, 1.0]])), tensor([[2.0, -2.0, -2.0, 2.0]]) / 3)
    assert_close(leave_one_out(tensor([[3.0, 1.0, 2.0]])), tensor([[1.5, -1.5, 0.0]]))
    rewards = torch.randn(5, 8, dtype=torch.float64)
    assert_close(leave_one_out(rewards), group_centered(rewards) * 8 / 7)


def test_equal_unjudged_and_lonely_rewards_give_nothing():
    assert leave_one_out(tensor([[0.7, 0.7, 0.7]])).abs().max() < 1e-6
    assert leave_one_out(tensor([[1.0, NAN, 0.0]])).tolist() == [[1.0, 0.0, -1.0]]
    assert leave_one_out(tensor([[NAN, 4.0, NAN]])).tolist() == [[0.0, 0.0, 0.0]]
    assert leave_one_out(tensor([[2.0]])).tolist() == [[0.0]]


def test_on_fresh_samples_the_gradient_is_the_score_of_the_whole_response():
    """-A_i / B at every token of response i, whatever its length."""
    one = batch()
    (loss,) = step_losses(RLOO(), [one], max_completion_length=7).losses
    loss.backward()
    assert one.logprobs.grad is not None
    assert_close(one.logprobs.grad, -one.advantages * one.mask / 6)
    assert_close(loss.detach(), -one.advantages.mean())  # each ratio is 1, however long the response


@pytest.mark.parametrize("clip", [None, 0.2])
def test_on_stale_samples_it_is_trls_formula(clip):
    one = batch(1, spread=0.2)
    log_ratio = ((one.logprobs - one.old_logprobs) * one.mask).sum(-1)
    ratio, advantages = log_ratio.exp(), one.advantages[:, 0]
    low, high = (0.0, math.inf) if clip is None else (1 - clip, 1 + clip)
    expected = -torch.min(ratio * advantages, ratio.clamp(low, high) * advantages).mean()
    (wanted,) = torch.autograd.grad(expected, one.logprobs)
    (loss,) = step_losses(RLOO(clip=clip), [one], max_completion_length=7).losses
    (found,) = torch.autograd.grad(loss, one.logprobs)
    assert_close(loss, expected)
    assert_close(found, wanted)
    assert (wanted == 0).any()


def test_advantages_come_from_the_rewards_of_the_groups():
    rewards = tensor([[1.0, 0.0], [0.5, 0.5]])
    groups = Groups(rewards, rewards.unsqueeze(-1), torch.ones(1))
    assert RLOO().advantages(groups)["advantages"].tolist() == [[1.0, -1.0], [0.0, 0.0]]


def test_a_group_of_one_has_no_baseline(load: Load):
    from posttrain.run.plan import make_plan

    recipe = load(POLICY, method="rloo", objective=None, rollout={"group_size": 1})
    assert any("leaves method 'rloo' no other response" in one for one in make_plan(recipe).refusals)
