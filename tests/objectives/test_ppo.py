"""PPO and PPO-max: where reward and KL stand, GRPO as a special case, the running moments' vectors."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from posttrain.objectives.base import Groups, TokenBatch
from posttrain.objectives.capo import CAPO
from posttrain.objectives.grpo import GRPO
from posttrain.objectives.ppo import PPO
from posttrain.objectives.ppo_max import PPOMax, RunningMoments
from posttrain.objectives.step import step_losses

NAN = math.nan
PLAIN: dict[str, Any] = {"whiten": False, "gamma": 1.0, "gae_lambda": 1.0}


def groups_of(rewards: Tensor, **more: Any) -> Groups:
    return Groups(rewards, rewards.unsqueeze(-1), torch.ones(1, dtype=rewards.dtype), **more)


def test_the_reward_stands_at_the_last_token_and_each_pays_its_kl():
    mask = tensor([[[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]])
    kl, values = tensor([[[0.5, 0.0, -1.0], [1.0, 1.0, 7.0]]]), tensor([[[0.1, 0.2, 0.3], [0.4, 0.5, 9.0]]])
    groups = groups_of(tensor([[1.0, 2.0]]), token_kl=kl, beta=0.1, values=values, mask=mask)
    found = PPO(**PLAIN).advantages(groups)
    returns = tensor([[[-0.05 + 0.1 + 1.0, 0.1 + 1.0, 0.1 + 1.0], [-0.2 + 2.0, -0.1 + 2.0, 0.0]]])
    assert_close(found["returns"], returns)
    assert_close(found["advantages"], (returns - values) * mask)
    assert_close(found["values"], values * mask)
    in_the_loss = PPO(**PLAIN, kl="loss").advantages(groups)
    assert_close(in_the_loss["returns"], tensor([[[1.0, 1.0, 1.0], [2.0, 2.0, 0.0]]]))


def test_a_response_that_no_one_judged_moves_neither_policy_nor_critic():
    mask = torch.ones(1, 3, 2)
    values = torch.full((1, 3, 2), 0.5)
    objective = PPO(whiten=True)
    found = objective.advantages(groups_of(tensor([[1.0, NAN, 0.0]]), values=values, mask=mask))
    assert (found["advantages"][0, 1] == 0).all()
    kept = found["advantages"][0, [0, 2]]
    assert_close(kept.mean(), tensor(0.0), atol=1e-6, rtol=0)  # whitened over the judged alone
    new = torch.full((3, 2), 0.7, requires_grad=True)
    streams = {name: found[name][0] for name in ("returns", "values")} | {
        "judged": found["judged"][0, :, None]
    }
    batch = TokenBatch(
        torch.zeros(3, 2), torch.zeros(3, 2), torch.ones(3, 2), found["advantages"][0], streams=streams
    )
    totals = step_losses(objective, [batch], max_completion_length=2).totals
    objective.critic_loss(new, batch, totals).backward()
    assert new.grad is not None
    assert (new.grad[1] == 0).all()
    assert (new.grad[[0, 2]] != 0).any()


def test_the_critics_loss_is_a_mean_over_the_tokens_of_the_step():
    objective = PPO(value_clip=None)
    streams = {
        "returns": tensor([[1.0, 2.0], [0.0, 0.0]]),
        "values": torch.zeros(2, 2),
        "judged": torch.ones(2, 1),
    }
    mask = tensor([[1.0, 1.0], [1.0, 0.0]])
    batch = TokenBatch(torch.zeros(2, 2), torch.zeros(2, 2), mask, torch.zeros(2, 1), streams=streams)
    names = ("logprobs", "old_logprobs", "mask", "advantages")
    parts = []
    for row in (slice(0, 1), slice(1, 2)):
        cut = {name: vars(batch)[name][row] for name in names}
        parts.append(replace(batch, **cut, streams={name: one[row] for name, one in streams.items()}))
    totals = step_losses(objective, parts, max_completion_length=2).totals
    new = tensor([[0.0, 0.0], [0.5, 9.0]])
    shares = [objective.critic_loss(new[i : i + 1], part, totals) for i, part in enumerate(parts)]
    assert_close(sum(shares), tensor((1.0 + 4.0 + 0.25) / 2 / 3))


def test_with_a_groups_baseline_it_is_grpo():
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    ours, grpo = PPO(baseline="group", loss_over="responses"), GRPO()
    advantages = grpo.advantages(groups_of(rewards))["advantages"]
    assert torch.equal(ours.advantages(groups_of(rewards))["advantages"], advantages)
    new = torch.randn(12, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    old = new.detach() + 0.3 * torch.randn(12, 5, generator=generator, dtype=torch.float64)
    mask = (torch.rand(12, 5, generator=generator) < 0.8).double()
    batch = TokenBatch(new, old, mask, advantages.reshape(-1, 1))
    found = []
    for objective in (ours, grpo):
        loss = step_losses(objective, [batch], max_completion_length=5).losses[0]
        found.append((loss, *torch.autograd.grad(loss, new)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_running_moments_take_the_rollout_in_before_it_is_normalised():
    objective = PPOMax(reward_clip=0.8)
    first = objective.observe_rewards(groups_of(tensor([[1.0, 3.0, 5.0, 7.0]], dtype=torch.float64))).rewards
    assert_close(first, tensor([[-0.8, -0.387298334621, 0.387298334621, 0.8]], dtype=torch.float64))
    assert objective.moments.std == pytest.approx(2.581988897472)
    second = objective.observe_rewards(groups_of(tensor([[2.0, -2.0]], dtype=torch.float64))).rewards
    assert objective.moments.std == pytest.approx(3.141125063837)
    assert second[0, 0].item() == pytest.approx(-0.212238179989)


def test_moments_batch_by_batch_are_those_of_all_numbers_and_survive_a_resume():
    values = torch.randn(57, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e6
    values[5] = NAN
    first, then = PPOMax(), PPOMax()
    for part in values[:30].split(7):
        first.moments.update(part)
    then.load_state_dict(first.state_dict())
    for part in values[30:].split(4):
        then.moments.update(part)
    known = values[~values.isnan()]
    assert then.moments.count == 56
    assert then.moments.mean == pytest.approx(known.mean().item(), rel=1e-12)
    assert then.moments.std == pytest.approx(known.std().item(), rel=1e-6)


@pytest.mark.parametrize("rewards", [[[2.0]], [[3.0, 3.0, 3.0]], [[NAN, NAN]]])
def test_rewards_that_cannot_be_told_apart_are_nothing_and_not_infinite(rewards):
    found = PPOMax().observe_rewards(groups_of(tensor(rewards))).rewards
    assert torch.equal(found.isnan(), tensor(rewards).isnan())
    assert (found.nan_to_num() == 0).all()
    assert math.isnan(RunningMoments().std)


def test_scaling_alone_keeps_the_mean_as_the_authors_scripts_do():
    objective = PPOMax(reward_norm="scale", reward_clip=None)
    found = objective.observe_rewards(groups_of(tensor([[1.0, 3.0, 5.0, 7.0]]))).rewards
    assert_close(found, tensor([[1.0, 3.0, 5.0, 7.0]]) / 2.581988897472)


def test_the_kl_is_not_normalised_with_the_reward():
    objective = PPOMax(reward_clip=None, **PLAIN)
    kl = torch.full((1, 2, 2), 0.5)
    groups = groups_of(
        tensor([[0.0, 2.0]]), token_kl=kl, beta=0.2, values=torch.zeros(1, 2, 2), mask=torch.ones(1, 2, 2)
    )
    returns = objective.advantages(objective.observe_rewards(groups))["returns"]
    half = 1 / math.sqrt(2)  # (0 - 1) and (2 - 1) over the standard deviation, sqrt 2
    assert_close(returns, tensor([[[-half - 0.2, -half - 0.1], [half - 0.2, half - 0.1]]]))


def test_with_everything_off_ppo_max_is_ppo():
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 3, generator=generator), torch.randn(2, 3, 4, generator=generator)
    groups = groups_of(rewards, values=values, mask=torch.ones(2, 3, 4), token_kl=values * 0.1, beta=0.3)
    off = PPOMax(reward_norm="none", reward_clip=None, whiten=True)
    found, plain = off.advantages(off.observe_rewards(groups)), PPO().advantages(groups)
    for name, stream in plain.items():
        assert torch.equal(found[name], stream)


def test_advantages_are_clipped_after_they_are_whitened():
    groups = groups_of(tensor([[0.0, 1.0, 10.0]]), values=torch.zeros(1, 3, 1), mask=torch.ones(1, 3, 1))
    found = PPO(advantage_clip=0.5).advantages(groups)["advantages"].reshape(-1)
    assert_close(found[[0, 2]], tensor([-0.5, 0.5]))


def test_a_method_around_it_answers_for_it():
    outer = CAPO(base="ppo", base_settings={"share_trunk": True})
    assert outer.uses_critic
    assert outer.needs == {"hidden", "candidates", "trunk"}
    assert not CAPO(base="grpo").uses_critic


@pytest.mark.parametrize(
    ("settings", "train", "said"),
    [
        ({"baseline": "group", "critic_warmup": 3}, {}, "critic_warmup of a critic"),
        ({"share_trunk": True, "critic_model": "x"}, {}, "critic_model has no effect"),
        ({}, {"fp16": True}, "fp16"),
    ],
)
def test_refusals(settings, train, said):
    run: Any = type(
        "Run", (), {"place": "objective", "train": type("Train", (), {"fp16": False, "beta": 0.1, **train})}
    )
    assert any(said in fault for fault in PPO(**settings).faults(run))
    assert not list(
        PPO(critic_warmup=3).faults(
            type("Run", (), {"place": "objective", "train": type("T", (), {"fp16": False})})
        )
    )  # type: ignore[arg-type]  # what is read of it
