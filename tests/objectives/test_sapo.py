"""SAPO: the gate and its gradient by hand, GRPO on fresh samples, REINFORCE as the gate widens, TRL's formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from posttrain.objectives.base import Objective, StepTotals, TokenBatch
from posttrain.objectives.grpo import GRPO
from posttrain.objectives.reinforce import REINFORCE
from posttrain.objectives.sapo import SAPO


def tokens(ratios: list[float], advantages: list[float]) -> TokenBatch:
    new = tensor([ratios], dtype=torch.float64).log().requires_grad_()
    return TokenBatch(
        new, torch.zeros_like(new), torch.ones_like(new), tensor([advantages], dtype=torch.float64)
    )


def random_batch(seed: int, spread: float) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)
    old = -2 * torch.rand(6, 9, generator=generator, dtype=torch.float64)
    new = old + spread * torch.randn(6, 9, generator=generator, dtype=torch.float64)
    mask = (torch.arange(9) < torch.randint(1, 10, (6, 1), generator=generator)).double()
    advantages = torch.randn(6, 1, generator=generator, dtype=torch.float64)
    return TokenBatch(new.requires_grad_(), old, mask, advantages)


def loss_and_gradient(objective: Objective, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    totals = StepTotals(batch.mask.sum(), tensor(float(len(batch.mask))), 12)
    loss = objective.reduce(objective.token_loss(batch), batch.mask, totals)
    return loss.detach(), torch.autograd.grad(loss, batch.logprobs)[0]


def test_gate_and_gradient_by_hand():
    # sigmoid(ln 3) = 3/4 at ratio 1 + ln(3)/tau; sigmoid(-ln 3) = 1/4
    up, down = 1 + math.log(3) / 2, 1 - math.log(3) / 4
    batch = tokens([up, 1.0, down, 1.0], [1.0, 1.0, -2.0, -2.0])
    losses = SAPO(gate_positive=2.0, gate_negative=4.0).token_loss(batch)
    assert_close(losses, tensor([[-1.5, -1.0, 0.5, 1.0]], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(losses.sum(), batch.logprobs)
    # 4 x 3/4 x 1/4 x ratio = 3/4 ratio, and 1 at ratio 1
    assert_close(gradient, tensor([[-0.75 * up, -1.0, 1.5 * down, 2.0]], dtype=torch.float64))


def test_fresh_samples_have_the_gradient_of_grpo_at_any_temperature():
    batch = random_batch(0, spread=0.0)
    _, expected = loss_and_gradient(GRPO(), batch)
    for temperature in (0.1, 1.0, 7.0):
        _, found = loss_and_gradient(SAPO(gate_positive=temperature, gate_negative=temperature), batch)
        assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_a_wide_gate_is_reinforce():
    batch = random_batch(1, spread=0.5)
    _, expected = loss_and_gradient(REINFORCE(), batch)
    _, found = loss_and_gradient(SAPO(gate_positive=1e-5, gate_negative=1e-5), batch)
    assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_negative_advantages_fade_faster_and_none_is_cut_off():
    ratios = [0.3, 0.7, 1.0, 1.4, 3.0]
    up, down = (tokens(ratios, [sign] * 5) for sign in (1.0, -1.0))
    weights = [loss_and_gradient(SAPO(), batch)[1].abs() * 5 for batch in (up, down)]
    away = tensor([[True, True, False, True, True]])
    assert (weights[1] < weights[0])[away].all()
    assert_close(weights[0][~away], weights[1][~away])
    assert (weights[1] > 0).all()


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
def test_loss_and_gradient_are_trls(spread: float):
    batch = random_batch(2, spread)
    ratio = (batch.logprobs - batch.old_logprobs).exp()
    temperature = torch.where(batch.advantages > 0, 1.5, 2.5).double()
    losses = -torch.sigmoid(temperature * (ratio - 1)) * 4 / temperature * batch.advantages
    expected = ((losses * batch.mask).sum(-1) / batch.mask.sum(-1)).mean()
    (wanted,) = torch.autograd.grad(expected, batch.logprobs)
    loss, found = loss_and_gradient(SAPO(gate_positive=1.5, gate_negative=2.5), batch)
    assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-14)
    assert_close(found, wanted, rtol=1e-12, atol=1e-14)
