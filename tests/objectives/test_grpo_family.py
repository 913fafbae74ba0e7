"""GRPO, Dr.GRPO, DAPO, GSPO, CISPO, REINFORCE: against the formulas TRL 1.16 uses, and by hand.

The trainer's parity suite compares with TRL itself; here the formulas are written out, so that this room
needs no TRL.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from posttrain.objectives.base import Groups, StepTotals, TokenBatch
from posttrain.objectives.cispo import CISPO
from posttrain.objectives.dapo import DAPO
from posttrain.objectives.dr_grpo import DrGRPO
from posttrain.objectives.grpo import GRPO
from posttrain.objectives.gspo import GSPO
from posttrain.objectives.reinforce import REINFORCE

LIMIT = 12


def random_batch(seed: int, spread: float = 0.5, responses: int = 6, tokens: int = 9) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)
    old = -2 * torch.rand(responses, tokens, generator=generator, dtype=torch.float64)
    new = old + spread * torch.randn(responses, tokens, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, tokens + 1, (responses,), generator=generator)
    mask = (torch.arange(tokens) < lengths.unsqueeze(1)).double()
    advantages = torch.randn(responses, 1, generator=generator, dtype=torch.float64)
    return TokenBatch(new.requires_grad_(), old, mask, advantages)


def totals_of(batch: TokenBatch) -> StepTotals:
    return StepTotals(batch.mask.sum(), tensor(float(len(batch.mask))), LIMIT)


def trl_loss(
    batch: TokenBatch, kind: str, level: str, low: float, high: float, delta: float | None
) -> Tensor:
    """TRL 1.16's loss body for one micro-batch that is the whole optimizer step, in the order of its own
    terms."""
    mask = batch.mask
    log_ratio = batch.logprobs - batch.old_logprobs
    if level == "sequence":
        log_ratio = ((log_ratio * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).unsqueeze(-1)
    ratio = log_ratio.exp()
    if kind == "cispo":
        losses = -ratio.clamp(max=high).detach() * batch.advantages * batch.logprobs
    else:
        clipped = ratio.clamp(1 - low, 1 + high)
        ratio = ratio if delta is None else ratio.clamp(max=delta)
        losses = -torch.min(ratio * batch.advantages, clipped * batch.advantages)
    if kind == "grpo":
        return ((losses * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()
    if kind == "dr_grpo":
        return (losses * mask).sum() / (len(mask) * LIMIT)
    return (losses * mask).sum() / mask.sum()


CASES = [
    (GRPO(), "grpo", "token", 0.2, 0.2, None),
    (GRPO(clip_low=0.1, clip_high=0.3, dual_clip=1.8), "grpo", "token", 0.1, 0.3, 1.8),
    (DrGRPO(), "dr_grpo", "token", 0.2, 0.2, None),
    (DAPO(), "dapo", "token", 0.2, 0.28, None),
    (DAPO(dual_clip=2.0), "dapo", "token", 0.2, 0.28, 2.0),
    (GSPO(), "grpo", "sequence", 3e-4, 4e-4, None),
    (GSPO(clip_low=0.1, clip_high=0.1, dual_clip=1.2), "grpo", "sequence", 0.1, 0.1, 1.2),
    (CISPO(ratio_max=1.3), "cispo", "token", 0.0, 1.3, None),
]


@pytest.mark.parametrize(("objective", "kind", "level", "low", "high", "delta"), CASES)
def test_loss_and_gradient_are_trls(objective, kind, level, low, high, delta):
    for seed, spread in ((0, 0.0), (1, 0.3), (2, 1.0)):
        batch = random_batch(seed, spread)
        expected = trl_loss(batch, kind, level, low, high, delta)
        (expected_gradient,) = torch.autograd.grad(expected, batch.logprobs)
        found = objective.reduce(objective.token_loss(batch), batch.mask, totals_of(batch))
        (gradient,) = torch.autograd.grad(found, batch.logprobs)
        assert_close(found, expected, rtol=1e-12, atol=1e-14)
        assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-14)


def test_advantages_are_trls():
    rewards = tensor([[1.0, 0.0, 0.5, 1.0], [0.0, 0.0, 0.0, 1.0], [0.3, 0.3, 0.3, 0.3]])
    groups = Groups(rewards, rewards.unsqueeze(-1), torch.ones(1))
    centred = rewards - rewards.mean(1, keepdim=True)
    by_group = centred / (rewards.std(1, keepdim=True) + 1e-4)
    by_batch = centred / (rewards.std() + 1e-4)
    for cls in (GRPO, DAPO, GSPO, CISPO):
        assert_close(cls().advantages(groups), {"advantages": by_group})
        assert_close(cls(scale="batch").advantages(groups), {"advantages": by_batch})
        assert_close(cls(scale="none").advantages(groups), {"advantages": centred})
    assert_close(DrGRPO().advantages(groups), {"advantages": centred})
    assert_close(REINFORCE().advantages(groups), {"advantages": centred})


def test_reinforce_without_baseline_is_the_reward():
    rewards = tensor([[1.0, float("nan"), -0.5]])
    groups = Groups(rewards, rewards.unsqueeze(-1), torch.ones(1))
    assert_close(REINFORCE(baseline="none").advantages(groups), {"advantages": tensor([[1.0, 0.0, -0.5]])})


def test_clip_higher_by_hand():
    ratio = tensor([[1.5], [0.5]])
    batch = TokenBatch(ratio.log(), torch.zeros(2, 1), torch.ones(2, 1), tensor([[1.0], [-1.0]]))
    assert_close(DAPO().token_loss(batch), tensor([[-1.28], [0.8]]))
    assert_close(REINFORCE().token_loss(batch), tensor([[-1.5], [0.5]]))


def test_on_policy_gradient_is_minus_the_advantage_over_the_divisor():
    batch = random_batch(3, spread=0.0)
    lengths = batch.mask.sum(1, keepdim=True)
    divisors = {
        GRPO(): lengths * 6,
        DrGRPO(): torch.full_like(lengths, 6 * LIMIT),
        DAPO(): batch.mask.sum().expand(6, 1),
        GSPO(): lengths * 6,
        CISPO(): batch.mask.sum().expand(6, 1),
        REINFORCE(): lengths * 6,
    }
    for objective, divisor in divisors.items():
        loss = objective.reduce(objective.token_loss(batch), batch.mask, totals_of(batch))
        (gradient,) = torch.autograd.grad(loss, batch.logprobs)
        assert_close(gradient, -batch.advantages * batch.mask / divisor, rtol=1e-12, atol=1e-14)


def test_gspo_has_one_ratio_a_response():
    batch = random_batch(4)
    ratio = GSPO().ratio(batch)
    assert ratio.shape == (6, 1)
    mean = ((batch.logprobs - batch.old_logprobs) * batch.mask).sum(1) / batch.mask.sum(1)
    assert_close(ratio.squeeze(1).log(), mean)


def test_reinforce_never_loses_a_token():
    batch = random_batch(5, spread=2.0)
    (gradient,) = torch.autograd.grad(REINFORCE().token_loss(batch).sum(), batch.logprobs)
    assert_close(gradient, -(batch.logprobs - batch.old_logprobs).exp().detach() * batch.advantages)
    assert REINFORCE().clip_bounds(batch) is None


def test_bounds_are_absolute():
    batch = random_batch(6)
    assert GRPO().clip_bounds(batch) == (0.8, 1.2)
    assert DAPO().clip_bounds(batch) == (0.8, 1.28)
    assert GSPO().clip_bounds(batch) == (1 - 3e-4, 1 + 4e-4)
    assert CISPO().clip_bounds(batch) == (0.0, 5.0)


def test_a_ratio_beyond_the_limit_is_held():
    batch = TokenBatch(tensor([[0.0]]), tensor([[-300.0]]), torch.ones(1, 1), tensor([[-1.0]]))
    assert_close(GRPO().token_loss(batch), tensor([[math.exp(20.0)]]))
