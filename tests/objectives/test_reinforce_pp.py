"""REINFORCE++: returns and normalisation by hand, what the mean over tokens weighs, a float64 loop, DAPO's clip."""

from __future__ import annotations

import math

import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from posttrain.objectives.base import Groups, TokenBatch
from posttrain.objectives.capo import CAPO
from posttrain.objectives.dapo import DAPO
from posttrain.objectives.reinforce_pp import REINFORCEPlusPlus, batch_normalised, penalised_returns
from posttrain.objectives.step import step_losses

NAN = math.nan


def groups_of(rewards: Tensor, **more: object) -> Groups:
    return Groups(rewards, rewards.unsqueeze(-1), torch.ones(1, dtype=rewards.dtype), **more)  # type: ignore[arg-type]  # by name


def advantages(groups: Groups, **settings: str) -> Tensor:
    return REINFORCEPlusPlus(**settings).advantages(groups)["advantages"]  # type: ignore[arg-type]  # as a recipe


def test_a_token_pays_for_the_kl_from_itself_to_the_end():
    kl = tensor([[[0.5, -1.0, 2.0], [1.0, 0.0, 0.0]]])
    found = penalised_returns(tensor([[1.0, 0.0]]), kl, 0.1)
    assert_close(found, tensor([[[0.85, 0.9, 0.8], [-0.1, 0.0, 0.0]]]))


def test_every_token_of_the_batch_counts_once():
    # three tokens of reward 1 and one of 0: mean 3/4, variance 3/16
    groups = groups_of(tensor([[1.0, 0.0]]), lengths=tensor([[3, 1]]))
    assert_close(advantages(groups), tensor([[1.0, -3.0]]) / math.sqrt(3))
    # without lengths each response counts once
    assert_close(advantages(groups_of(tensor([[1.0, 0.0]]))), tensor([[1.0, -1.0]]))


def test_equal_groups_are_pushed_by_the_rest_of_the_batch_only_without_a_baseline():
    groups = groups_of(tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]))
    assert_close(advantages(groups), tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0]]))
    # -1/2 and 1/2 in one of three groups: the variance is 1/12
    expected = tensor([[0.0, 0.0], [-math.sqrt(3), math.sqrt(3)], [0.0, 0.0]])
    assert_close(advantages(groups, baseline="group"), expected)


def test_equal_rewards_and_unjudged_responses_teach_nothing():
    assert (advantages(groups_of(torch.ones(2, 3))) == 0).all()
    assert (advantages(groups_of(torch.full((2, 3), NAN))) == 0).all()
    for baseline in ("none", "group"):
        found = advantages(groups_of(tensor([[1.0, NAN, 0.0]])), baseline=baseline)
        assert_close(found, tensor([[1.0, 0.0, -1.0]]))


def test_matches_a_loop_over_tokens():
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    rewards[1, 2] = NAN
    lengths = torch.randint(1, 6, (3, 4), generator=generator)
    kl = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    kl *= torch.arange(5) < lengths.unsqueeze(2)
    values: dict[tuple[int, int, int], float] = {}
    for p, g in ((p, g) for p in range(3) for g in range(4) if (p, g) != (1, 2)):
        for t in range(int(lengths[p, g])):
            values[p, g, t] = float(rewards[p, g]) - 0.3 * sum(kl[p, g, t:].tolist())
    mean = sum(values.values()) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values.values()) / len(values))
    expected = torch.zeros(3, 4, 5, dtype=torch.float64)
    for place, value in values.items():
        expected[place] = (value - mean) / spread
    found = advantages(groups_of(rewards, lengths=lengths, token_kl=kl, beta=0.3))
    assert_close(found, expected, rtol=1e-10, atol=1e-12)
    # with the group's mean as baseline, the KL belongs to the loss
    assert advantages(groups_of(rewards, lengths=lengths, token_kl=kl, beta=0.3), baseline="group").dim() == 2


def test_a_kl_of_zero_changes_nothing():
    rewards, lengths = tensor([[1.0, 0.0], [0.5, 1.0]]), tensor([[3, 2], [1, 3]])
    plain = advantages(groups_of(rewards, lengths=lengths)).unsqueeze(2)
    kl = torch.zeros(2, 2, 3)
    found = advantages(groups_of(rewards, lengths=lengths, token_kl=kl, beta=0.5))
    assert_close(found, plain * (torch.arange(3) < lengths.unsqueeze(2)))


def test_values_may_have_any_mean():
    values = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    counts = torch.randint(1, 9, (4, 4), generator=torch.Generator().manual_seed(2))
    found = batch_normalised(values * 7 - 3, counts)
    assert_close(found, batch_normalised(values, counts))
    assert_close((found * counts).sum() + 1, tensor(1.0, dtype=torch.float64))
    assert_close((found.square() * counts).sum() / counts.sum(), tensor(1.0, dtype=torch.float64))


def test_the_loss_is_ppos_over_tokens():
    generator = torch.Generator().manual_seed(3)
    old = -2 * torch.rand(4, 6, generator=generator, dtype=torch.float64)
    new = old + 0.4 * torch.randn(4, 6, generator=generator, dtype=torch.float64)
    mask = (torch.arange(6) < tensor([[6], [2], [4], [1]])).double()
    batch = TokenBatch(new, old, mask, torch.randn(4, 6, generator=generator, dtype=torch.float64))
    mine, dapo = (
        step_losses(one, [batch], max_completion_length=6).losses[0]
        for one in (REINFORCEPlusPlus(clip_high=0.28), DAPO())
    )
    assert_close(mine, dapo, rtol=0, atol=0)


def test_who_takes_the_kl():
    assert REINFORCEPlusPlus().kl_in_reward
    assert not REINFORCEPlusPlus(baseline="group").kl_in_reward
    assert CAPO(base="reinforce_pp").kl_in_reward
    assert not CAPO(base="grpo").kl_in_reward
