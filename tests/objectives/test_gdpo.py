"""GDPO: two rewards by hand, what GRPO cannot tell apart, one reward, a float64 reference, what was not judged."""

from __future__ import annotations

import math

import pytest
import torch
from small_recipe import POLICY, Load
from torch import Tensor, tensor
from torch.testing import assert_close

from posttrain.objectives.base import Groups
from posttrain.objectives.gdpo import GDPO, decoupled_advantages
from posttrain.objectives.grpo import GRPO
from posttrain.ops.groups import group_zscore
from posttrain.run.plan import make_plan

NAN = math.nan


def reference(rewards: Tensor, weights: Tensor) -> Tensor:
    """The paper's three lines, without a word about what was not judged."""
    z = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    total = (z * weights).sum(2)
    return (total - total.mean()) / (total.std() + 1e-4)


def test_two_rewards_by_hand():
    # (1, 0) once and (0, 1) twice in one group: z_1 = (3, -1, -1, -1)/2, z_2 = (-1, 1, 1, -1) sqrt(3)/2, times 1/2
    rewards = tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]]], dtype=torch.float64)
    half = math.sqrt(3) / 4
    total = tensor([[1.5 - half, -0.5 + half, -0.5 + half, -0.5 - half]], dtype=torch.float64)
    found = decoupled_advantages(rewards, tensor([1.0, 0.5], dtype=torch.float64))
    assert_close(found, total / total.std(), rtol=1e-3, atol=1e-3)  # but for the epsilons


def test_it_tells_apart_what_sums_to_the_same():
    rewards = tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]]])
    groups = Groups(rewards.sum(2), rewards, torch.ones(2))
    summed, apart = (cls().advantages(groups)["advantages"][0] for cls in (GRPO, GDPO))
    assert summed[0] == summed[1]
    assert apart[0] > apart[1] + 0.2  # the rarer success counts more


def test_matches_the_papers_lines():
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(5, 8, 3, generator=generator, dtype=torch.float64)
    weights = tensor([1.0, 0.3, 2.0], dtype=torch.float64)
    assert_close(decoupled_advantages(rewards, weights), reference(rewards, weights), rtol=1e-12, atol=1e-12)
    scaled = rewards * tensor([1.0, 10.0, 0.1], dtype=torch.float64)
    assert_close(decoupled_advantages(scaled, weights), reference(rewards, weights), rtol=5e-3, atol=5e-3)


def test_one_reward_is_grpo_over_the_spread_of_the_batch():
    rewards = torch.rand(4, 6, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = group_zscore(rewards[..., 0])
    assert_close(decoupled_advantages(rewards, torch.ones(1).double()), z / (z.std() + 1e-4))


def test_what_was_not_judged_has_no_say():
    rewards = tensor([[[1.0, 2.0], [0.0, NAN], [NAN, NAN], [0.0, 1.0]], [[0.0, 0.0]] * 4])
    found = decoupled_advantages(rewards, torch.ones(2))
    first = tensor([2.0, -1.0, NAN, -1.0]) / math.sqrt(3)
    second = tensor([1.0, 0.0, NAN, -1.0]) / math.sqrt(2)
    total = torch.cat([first + second, torch.zeros(4)])
    spread = total[~total.isnan()].std()
    assert_close(found.flatten(), torch.where(total.isnan(), 0.0, total / spread), rtol=1e-3, atol=1e-3)
    assert (decoupled_advantages(torch.full((2, 3, 2), NAN), torch.ones(2)) == 0).all()


@pytest.mark.parametrize("count", [1, 2])
def test_a_single_reward_is_said(load: Load, count: int):
    rewards = [{"name": "exact_match"}, {"name": "format_regex", "args": {"pattern": "[0-9]+"}}][:count]
    notes = make_plan(load(POLICY, method="gdpo", objective=None, rewards=rewards)).warnings
    assert any("'gdpo' is GRPO" in one for one in notes) == (count == 1)
