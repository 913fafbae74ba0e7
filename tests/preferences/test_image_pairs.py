"""Diffusion-DPO and SePPO on images: by hand, the published vector, the DDPM's form, the sign and its traps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from posttrain.preferences.diffusion_dpo import (
    DiffusionDPO,
    ErrorBatch,
    ddpm_alpha_bars,
    drawn_times,
    noised,
    squared_errors,
    time_on_line,
)
from posttrain.preferences.seppo_diffusion import SePPODiffusion


def batch(*errors: float | list[float]) -> ErrorBatch:
    """winner, loser, ref_winner, ref_loser."""
    rows = [torch.tensor(e if isinstance(e, list) else [e], dtype=torch.float64) for e in errors]
    return ErrorBatch(*rows)


def test_the_published_vector():
    """e = (w .1000 / .1004, r .2003 / .2000) at beta 5000: inside 1.75."""
    given = batch(0.1000, 0.2003, 0.1004, 0.2000)
    for method in (DiffusionDPO(), SePPODiffusion()):
        assert method.pair_loss(given).item() == pytest.approx(0.160224150438, abs=1e-11)


def test_loss_and_gradient_by_hand():
    """z = beta / 2 [(0.5 - 0.4) - (0.3 - 0.6)] = 0.4 at beta 2; dL/de_w = +beta/2 sigma(-z), dL/de_l its opposite."""
    given = batch(0.4, 0.6, 0.5, 0.3)
    given.winner.requires_grad_()
    given.loser.requires_grad_()
    loss = DiffusionDPO(beta=2.0).pair_loss(given)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.4)))
    loss.sum().backward()
    push = 1 / (1 + math.exp(0.4))
    assert given.winner.grad is not None
    assert given.loser.grad is not None
    assert given.winner.grad.item() == pytest.approx(push)
    assert given.loser.grad.item() == pytest.approx(-push)


def test_a_reference_that_is_the_policy_gives_log_2():
    given = batch([0.1, 3.0], [0.2, 0.5], [0.1, 3.0], [0.2, 0.5])
    assert_close(DiffusionDPO().pair_loss(given), torch.full((2,), math.log(2), dtype=torch.float64))
    assert DiffusionDPO().metrics(given)["accuracy"].tolist() == [0.0, 0.0]


def test_half_precision_is_refused():
    rows = [torch.ones(2, dtype=torch.bfloat16)] * 4
    with pytest.raises(ValueError, match="differ in the fourth decimal"):
        ErrorBatch(*rows)


def test_errors_by_hand():
    clean, noise = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.5, 2.0]])
    velocity, times = torch.tensor([[0.0, 1.0]]), torch.tensor([0.25])
    assert noised(clean, noise, times).tolist() == [[0.875, -0.25]]
    assert squared_errors(velocity, clean, noise, times, "velocity").item() == pytest.approx((0.25 + 4) / 2)
    assert squared_errors(velocity, clean, noise, times, "epsilon").item() == pytest.approx(0.5625 * 4.25 / 2)


def test_the_epsilon_form_is_a_ddpms():
    """A model of noise at a DDPM's points, against its velocity at the line's: Wallace et al.'s |eps - eps_theta|^2."""
    torch.manual_seed(0)
    weight = torch.randn(6, 6, dtype=torch.float64)

    def says_noise(point: Tensor) -> Tensor:
        return torch.tanh(point @ weight)

    alpha_bar = ddpm_alpha_bars()[[0, 300, 999]]
    clean, noise = torch.randn(2, 3, 6, dtype=torch.float64)
    signal, spread = alpha_bar.sqrt()[:, None], (1 - alpha_bar).sqrt()[:, None]
    expected = (says_noise(signal * clean + spread * noise) - noise).square().mean(1)

    times = time_on_line(alpha_bar)
    point = noised(clean, noise, times)
    guessed = says_noise(point * (signal + spread))  # the DDPM's point is the line's, scaled
    velocity = (guessed - point) / (1 - times)[:, None]  # noise - image, as the guess has them
    assert_close(squared_errors(velocity, clean, noise, times, "epsilon"), expected, rtol=1e-10, atol=1e-12)


def test_the_schedule_is_stable_diffusions():
    alpha_bar = ddpm_alpha_bars()
    assert alpha_bar[0].item() == pytest.approx(1 - 0.00085)
    assert alpha_bar[-1].item() == pytest.approx(0.0046602, rel=1e-4)
    drawn = drawn_times(torch.tensor([0.0, 0.9995, 1 - 2**-24]), "ddpm")
    assert_close(drawn.double(), time_on_line(alpha_bar[[0, 999, 999]]), rtol=1e-6, atol=0)


def test_times_of_other_laws():
    uniform = torch.tensor([0.5, 0.8413447])
    assert drawn_times(uniform, "uniform").tolist() == uniform.tolist()
    assert_close(drawn_times(uniform, "logit_normal"), torch.tensor([0.5, 0.7310586]), atol=1e-5, rtol=0)


# SePPO


def test_a_worse_winner_flips_the_sample():
    """Row 1: the policy is better on the winner. Row 2: worse, so both errors are pushed down. Row 3: a tie, +1."""
    given = batch([0.4, 0.6, 0.5], [0.3] * 3, [0.5] * 3, [0.6] * 3)
    for error in (given.winner, given.loser):
        error.requires_grad_()
    method = SePPODiffusion(beta=2.0)
    inside = torch.tensor([0.1 - 0.3, -0.1 + 0.3, 0.0 - 0.3], dtype=torch.float64)
    loss = method.pair_loss(given)
    assert_close(loss, torch.log1p(torch.exp(-inside)))
    loss.sum().backward()
    push = torch.sigmoid(-inside)
    assert given.winner.grad is not None
    assert given.loser.grad is not None
    assert_close(given.winner.grad, push)  # whatever the sign
    assert_close(given.loser.grad, push * torch.tensor([-1.0, 1.0, -1.0], dtype=torch.float64))
    assert method.metrics(given)["flip_rate"].tolist() == [0, 1, 0]


def test_gradient_is_that_of_finite_differences_and_passes_no_sign():
    given = [torch.tensor(values, dtype=torch.float64) for values in ([0.41, 0.63], [0.3, 0.2])]
    fixed = [torch.tensor(values, dtype=torch.float64) for values in ([0.5, 0.5], [0.33, 0.28])]

    def loss(winner: Tensor, loser: Tensor) -> Tensor:
        return SePPODiffusion(beta=6.0).pair_loss(ErrorBatch(winner, loser, *fixed))

    assert torch.autograd.gradcheck(loss, [one.requires_grad_() for one in given])


def test_the_sign_is_the_winners_own_and_each_pairs_own():
    """The sample's error does not enter it, nor does another pair's."""
    worse, better = batch(0.6, 0.1, 0.5, 0.9), batch(0.6, 0.9, 0.5, 0.1)
    method = SePPODiffusion()
    assert method.metrics(worse)["flip_rate"].tolist() == method.metrics(better)["flip_rate"].tolist() == [1]
    mixed = batch([0.6, 0.1], [0.1, 0.1], [0.5, 0.5], [0.9, 0.9])
    assert method.metrics(mixed)["flip_rate"].tolist() == [1, 0]


def test_indicator_none_and_dead_band():
    given = batch(0.6, 0.3, 0.5, 0.6)
    inside: dict[Any, float] = {"sign": 0.2, "indicator": -0.1, "none": -0.4}
    for flip, value in inside.items():
        loss = SePPODiffusion(beta=2.0, flip=flip).pair_loss(given)
        assert loss.item() == pytest.approx(math.log1p(math.exp(-value))), flip
    kept = SePPODiffusion(beta=2.0, deadband=0.11).pair_loss(given)
    assert kept.item() == pytest.approx(math.log1p(math.exp(0.4)))
