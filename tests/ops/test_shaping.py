"""LUFFY's policy shaping: by hand, its derivative, and where probabilities are too small for a division."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from posttrain.ops.shaping import shaped_probability, shaped_surrogate


def test_by_hand() -> None:
    logprobs = torch.tensor([[0.1, 0.4, 1.0]], dtype=torch.float64).log()
    assert_close(shaped_probability(logprobs, 0.1), torch.tensor([[0.5, 0.8, 1 / 1.1]], dtype=torch.float64))
    assert_close(
        shaped_surrogate(logprobs, torch.tensor([[-2.0]], dtype=torch.float64), 0.1),
        torch.tensor([[1.0, 1.6, 2 / 1.1]], dtype=torch.float64),
    )


def test_one_gamma_a_row() -> None:
    logprobs = torch.full((2, 3), math.log(0.5), dtype=torch.float64)
    gamma = torch.tensor([[0.5], [1.5]], dtype=torch.float64)
    assert_close(shaped_probability(logprobs, gamma)[:, 0], torch.tensor([0.5, 0.25], dtype=torch.float64))


@pytest.mark.parametrize("advantage", [1.5, -0.5])
def test_the_gradient_is_largest_where_p_is_gamma(advantage: float) -> None:
    """d/d log p of -A p / (p + gamma) is -A gamma p / (p + gamma)^2: 1/4 at p = gamma, less on both sides."""
    p = torch.tensor([[0.01, 0.1, 0.9]], dtype=torch.float64)
    logprobs = p.log().requires_grad_()
    shaped_surrogate(logprobs, torch.tensor([[advantage]], dtype=torch.float64), 0.1).sum().backward()
    assert logprobs.grad is not None
    assert_close(logprobs.grad, -advantage * 0.1 * p / (p + 0.1).square())
    assert logprobs.grad.abs().argmax() == 1


def test_a_token_that_the_policy_finds_impossible_keeps_a_finite_gradient() -> None:
    logprobs = torch.tensor([[-200.0, -20.0]], requires_grad=True)  # e^-200 is 0 in float32
    shaped_surrogate(logprobs, torch.ones(1, 1), 0.1).sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.isfinite().all()
    assert_close(logprobs.grad[0, 1], torch.tensor(-10 * math.exp(-20.0)), rtol=1e-5, atol=0)
