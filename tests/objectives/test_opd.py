"""On-policy distillation: advantages by hand, and the gradient of the reverse KL they stand for."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from posttrain.objectives.base import Groups, StepTotals, TokenBatch
from posttrain.objectives.opd import OPD, distillation_advantages

NAN = float("nan")


def groups(gap: torch.Tensor, rewards: torch.Tensor, mask: torch.Tensor | None = None) -> Groups:
    return Groups(rewards, rewards.unsqueeze(-1), torch.ones(1), teacher_gap=gap, mask=mask)


def test_advantages_by_hand():
    # one prompt, two responses of 3 and 2 tokens; the rewards 1 and 0 are +-1/2 from their mean
    gap = torch.tensor([[[0.5, -1.0, 0.0], [2.0, -3.0, 9.0]]])
    mask = torch.tensor([[[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]])
    rewards = torch.tensor([[1.0, 0.0]])
    alone = OPD().advantages(groups(gap, rewards, mask))["advantages"]
    assert_close(alone, torch.tensor([[[0.5, -1.0, 0.0], [2.0, -3.0, 0.0]]]))
    both = OPD(reward_coef=2.0).advantages(groups(gap, rewards, mask))["advantages"]
    assert_close(both, torch.tensor([[[1.5, 0.0, 1.0], [1.0, -4.0, 0.0]]]))
    held = OPD(gap_clip=1.5).advantages(groups(gap, rewards, mask))["advantages"]
    assert_close(held, torch.tensor([[[0.5, -1.0, 0.0], [1.5, -1.5, 0.0]]]))


def test_a_response_without_a_reward_still_hears_the_teacher():
    gap, ones = torch.tensor([[[1.0], [1.0], [1.0]]]), torch.ones(1, 3, 1)
    found = distillation_advantages(gap, ones, torch.tensor([[1.0, NAN, 0.0]]), reward_coef=1.0)
    assert_close(found.flatten(), torch.tensor([1.5, 1.0, 0.5]))


def test_the_expected_gradient_is_that_of_the_reverse_kl():
    """Over all tokens that could have been drawn at a state, each as often as the policy draws it."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(7, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(7, generator=generator, dtype=torch.float64).log_softmax(-1)
    logprobs = student.log_softmax(-1)
    kl = (logprobs.exp() * (logprobs - teacher)).sum()
    (expected,) = torch.autograd.grad(kl, student)

    logprobs = student.log_softmax(-1)
    old = logprobs.detach()
    gap, ones = (teacher - old).view(1, 7, 1), torch.ones(1, 7, 1, dtype=torch.float64)
    advantages = OPD().advantages(groups(gap, torch.zeros(1, 7, dtype=torch.float64), ones))["advantages"]
    batch = TokenBatch(logprobs.view(7, 1), old.view(7, 1), ones.view(7, 1), advantages.view(7, 1))
    losses = OPD().token_loss(batch).flatten()
    (found,) = torch.autograd.grad((old.exp() * losses).sum(), student)
    assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert found.abs().max() > 0.01


def test_a_teacher_that_agrees_teaches_nothing():
    gap = torch.zeros(2, 2, 3)
    objective = OPD()
    found = objective.advantages(groups(gap, torch.tensor([[1.0, 0.0], [1.0, 1.0]])))["advantages"]
    assert (found == 0).all()
    assert objective.rollout_metrics(groups(gap, torch.zeros(2, 2)))["reverse_kl"] == 0


def test_the_reverse_kl_is_a_mean_over_tokens():
    gap = torch.tensor([[[-1.0, -2.0], [-6.0, 50.0]]])
    mask = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    found = OPD(gap_clip=1.5).rollout_metrics(groups(gap, torch.zeros(1, 2), mask))
    assert found["reverse_kl"] == 3.0
    assert found["gap_clipped"] == pytest.approx(2 / 3)


def test_every_token_of_the_step_weighs_the_same():
    losses, mask = torch.tensor([[2.0, 4.0], [6.0, 1.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    totals = StepTotals(torch.tensor(6.0), torch.tensor(2.0), 8)
    assert OPD().reduce(losses, mask, totals) == 2.0


def test_without_a_teacher_it_says_what_to_use():
    with pytest.raises(ValueError, match="OPDTrainer brings one"):
        OPD().advantages(Groups(torch.zeros(1, 2), torch.zeros(1, 2, 1), torch.ones(1)))


def test_what_it_asks_of_a_recipe():
    assert not OPD().needs_rewards
    assert OPD(reward_coef=0.5).needs_rewards
    assert OPD(teacher_model="t", teacher_dtype="bfloat16").frozen_models == {"t": "bfloat16"}
    assert OPD().learns_from_equal is not None
