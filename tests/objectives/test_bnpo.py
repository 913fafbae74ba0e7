"""BNPO: worked vectors, the exact variances, every case in which the released code fails, and the
objective."""

from __future__ import annotations

import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from posttrain.objectives.base import Groups, StepTotals, TokenBatch
from posttrain.objectives.bnpo import (
    BNPO,
    beta_normalized_advantages,
    beta_weights,
    fit_beta,
    success_rates,
)
from posttrain.objectives.grpo import GRPO
from posttrain.objectives.reinforce import REINFORCE

NAN = float("nan")
R1 = tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]], dtype=torch.float64)
A1 = tensor(
    [
        [0.6305770992, -0.2101923664, -0.2101923664, -0.2101923664],
        [0.3870634694, 0.3870634694, -0.3870634694, -0.3870634694],
        [0.2444166280, 0.2444166280, 0.2444166280, -0.7332498840],
        [0.6305770992, -0.2101923664, -0.2101923664, -0.2101923664],
    ],
    dtype=torch.float64,
)


def groups_of(rewards: torch.Tensor, *parts: torch.Tensor) -> Groups:
    per_function = torch.stack(parts or (rewards,), dim=-1)
    return Groups(rewards, per_function, torch.ones(per_function.size(-1)))


# The fit and the advantages


def test_vector():
    rates = success_rates(R1)
    alpha, beta = fit_beta(rates)
    assert float(alpha) == pytest.approx(1.4805871212, abs=1e-10)
    assert float(beta) == pytest.approx(1.6178977273, abs=1e-10)
    weights = tensor([0.8407694655, 0.7741269387, 0.9776665120, 0.8407694655], dtype=torch.float64)
    assert_close(beta_weights(rates, alpha, beta), weights, atol=1e-10, rtol=0)
    assert_close(beta_normalized_advantages(R1), A1, atol=1e-10, rtol=0)
    assert_close(beta_normalized_advantages(R1.float()), A1.float(), atol=1e-6, rtol=0)


def test_affine_rewards_are_mapped_first():
    assert_close(beta_normalized_advantages(2 * R1 - 1, reward_range=(-1, 1)), A1, atol=1e-10, rtol=0)
    assert_close(beta_normalized_advantages(3 * R1 + 5, reward_range=(5, 8)), A1, atol=1e-10, rtol=0)


def test_vector_with_a_fixed_shape():
    found = beta_normalized_advantages(R1, alpha=1.5, beta=1.5)
    row = tensor([0.6801747616, -0.2267249205, -0.2267249205, -0.2267249205], dtype=torch.float64)
    assert_close(found[0], row, atol=1e-10, rtol=0)
    assert_close(found[1].abs(), torch.full((4,), 0.3926990817, dtype=torch.float64), atol=1e-10, rtol=0)


def test_shape_one_one_is_reinforce_with_a_group_baseline():
    centred = R1 - R1.mean(1, keepdim=True)
    assert_close(beta_normalized_advantages(R1, alpha=1.0, beta=1.0), centred)
    mine = BNPO(fixed_shape=(1.0, 1.0)).advantages(groups_of(R1))
    assert_close(mine, REINFORCE().advantages(groups_of(R1)))


def test_shape_three_halves_is_grpo_up_to_pi_over_eight():
    population = R1.std(dim=1, correction=0, keepdim=True)
    expected = math.pi / 8 * (R1 - R1.mean(1, keepdim=True)) / population
    assert_close(beta_normalized_advantages(R1, alpha=1.5, beta=1.5), expected)


def test_one_of_the_two_can_be_fixed():
    alpha, beta = fit_beta(success_rates(R1))
    found = beta_normalized_advantages(R1, alpha=2.0)
    assert_close(found, beta_normalized_advantages(R1, alpha=2.0, beta=beta))
    assert not torch.allclose(found, beta_normalized_advantages(R1, alpha=alpha, beta=beta))


@pytest.mark.parametrize(
    ("a", "b", "reinforce", "bnpo"),
    [
        (1, 1, 0.1666666667, 0.1488699426),
        (2, 2, 0.2000000000, 0.1514508087),
        (5, 2, 0.1785714286, 0.0946567554),
        (0.5, 3, 0.0952380952, 0.0580436349),
        (1.2, 0.4, 0.1153846154, 0.1005048583),
    ],
)
def test_exact_variances(a, b, reinforce, bnpo):
    """E[p(1-p)/f^2] for p ~ Beta(a, b), by the midpoint rule in theta with p = sin^2 theta."""
    n = 200_000
    theta = (torch.arange(n, dtype=torch.float64) + 0.5) * (math.pi / 2 / n)
    p = theta.sin().square()
    log_prior = (2 * a - 1) * theta.sin().log() + (2 * b - 1) * theta.cos().log()
    norm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    prior = 2 * torch.exp(log_prior + norm) * (math.pi / 2 / n)

    def variance(alpha: float, beta: float) -> float:
        return float((prior * p * (1 - p) * beta_weights(p, alpha, beta).square()).sum())

    assert variance(1, 1) == pytest.approx(reinforce, abs=2e-6)
    assert variance(1.5, 1.5) == pytest.approx(0.1542125688, abs=2e-4)
    assert variance(1 + a / 3, 1 + b / 3) == pytest.approx(bnpo, abs=2e-6)


def test_synthetic_check():
    """Q=32, G=16, p ~ Beta(5, 2), 400 batches: about 0.1669, 0.1439 and 0.1016."""
    torch.manual_seed(0)
    prior = torch.distributions.Beta(tensor(5.0), tensor(2.0))
    second_moments = {"reinforce": 0.0, "grpo": 0.0, "bnpo": 0.0}
    for _ in range(400):
        rewards = torch.bernoulli(prior.sample((32, 1)).expand(32, 16))
        second_moments["reinforce"] += (
            beta_normalized_advantages(rewards, alpha=1, beta=1).square().mean() / 400
        )
        second_moments["grpo"] += (
            beta_normalized_advantages(rewards, alpha=1.5, beta=1.5).square().mean() / 400
        )
        second_moments["bnpo"] += beta_normalized_advantages(rewards).square().mean() / 400
    assert float(second_moments["reinforce"]) == pytest.approx(0.1669, abs=0.003)
    assert float(second_moments["grpo"]) == pytest.approx(0.1439, abs=0.003)
    assert float(second_moments["bnpo"]) == pytest.approx(0.1016, abs=0.003)
    assert second_moments["bnpo"] <= 0.85 * second_moments["grpo"]


# What breaks the released code


def ones_of(rates: list[float]) -> bool:
    alpha, beta = fit_beta(tensor(rates))
    return float(alpha) == 1.0 and float(beta) == 1.0


@pytest.mark.parametrize(
    "rates",
    [
        [0.0, 0.0, 0.0],  # all wrong
        [1.0, 1.0, 1.0],  # all right
        [0.3, 0.3, 0.3, 0.3],  # equal: no spread
        [0.1 + 0.2, 0.3],  # equal but for rounding
        [0.7],  # one prompt
        [],  # none
        [0.0, 1.0],  # more spread than any Beta of that mean: a, b < 0
        [0.3, NAN],  # one prompt left
        [NAN, NAN],
    ],
)
def test_what_cannot_be_fitted_is_one_one(rates):
    assert ones_of(rates)


def test_prompts_without_a_judged_response_are_left_out():
    assert fit_beta(tensor([0.25, NAN, 0.5, 0.75, 0.25])) == fit_beta(tensor([0.25, 0.5, 0.75, 0.25]))


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3, 0.1, 0.7])  # the mean of three 0.1 is not 0.1
def test_equal_rewards_have_no_advantage(value):
    rewards = torch.full((3, 3), value, dtype=torch.float64)
    rewards = torch.cat([rewards, tensor([[0.2, 0.4, 0.9]], dtype=torch.float64)])
    found = beta_normalized_advantages(rewards, alpha=3.0, beta=3.0)
    assert torch.equal(found[:3], torch.zeros(3, 3, dtype=torch.float64))


def test_certain_prompts_among_others_are_zero_not_nan():
    rewards = torch.cat([R1, torch.ones(1, 4), torch.zeros(1, 4)]).double()
    alpha, beta = fit_beta(success_rates(rewards))
    assert alpha > 1
    assert beta > 1
    found = beta_normalized_advantages(rewards)
    assert torch.isfinite(found).all()
    assert torch.equal(found[4:], torch.zeros(2, 4, dtype=torch.float64))
    assert beta_weights(tensor([0.0, 1.0]), 1.5, 1.5).tolist() == pytest.approx([1e6, 1e6])


def test_unjudged_responses():
    rewards = tensor([[1.0, NAN, 0.0, 0.0], [NAN, NAN, NAN, NAN], [1.0, 1.0, NAN, 0.0], [1.0, NAN, NAN, NAN]])
    found = beta_normalized_advantages(rewards.double())
    assert torch.equal(found[rewards.isnan()], torch.zeros(int(rewards.isnan().sum()), dtype=torch.float64))
    assert torch.equal(found[3], torch.zeros(4, dtype=torch.float64))
    alpha, beta = fit_beta(tensor([1 / 3, 2 / 3, 1.0], dtype=torch.float64))
    weight = beta_weights(tensor([1 / 3], dtype=torch.float64), alpha, beta)
    assert_close(found[0, 0], weight[0] * 2 / 3)


def test_refusals():
    with pytest.raises(ValueError, match="at least 2"):
        beta_normalized_advantages(torch.ones(4, 1))
    with pytest.raises(ValueError, match="reward_range"):
        beta_normalized_advantages(tensor([[1.2, 0.0]]))
    with pytest.raises(ValueError, match="reward_range"):
        beta_normalized_advantages(tensor([[float("inf"), 0.0]]))
    with pytest.raises(ValueError, match="lowest, highest"):
        beta_normalized_advantages(R1, reward_range=(1.0, 1.0))
    with pytest.raises(ValueError, match="fixed_shape"):
        BNPO(fixed_shape=(0.0, 1.0))
    with pytest.raises(ValueError, match="reward_range"):
        BNPO(reward_range=(1.0, 0.0))


# The objective


def test_decomposition_is_the_plain_mean_of_each_functions_own_fit():
    other = tensor([[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0]], dtype=torch.float64)
    groups = groups_of(10 * R1 + other, R1, other)  # the weighted sum lies outside the range and is not read
    expected = (beta_normalized_advantages(R1) + beta_normalized_advantages(other)) / 2
    assert_close(BNPO(decompose=True).advantages(groups), {"advantages": expected})


def test_a_matched_scale_is_grpos_and_leaves_the_weights_between_groups():
    rewards = torch.cat([R1, torch.ones(1, 4, dtype=torch.float64)])
    rewards[2, 0] = NAN
    found = BNPO(match_scale=True).advantages(groups_of(rewards))["advantages"]
    plain = BNPO().advantages(groups_of(rewards))["advantages"]
    grpo = GRPO().advantages(groups_of(rewards))["advantages"]
    assert float(found.square().mean()) == pytest.approx(float(grpo.square().mean()))
    assert found[2, 0] == 0
    assert (found[4] == 0).all()
    factors = found[plain != 0] / plain[plain != 0]
    assert factors.max() - factors.min() < 1e-12
    assert not torch.isclose(factors[0], torch.ones_like(factors[0]), atol=0.1)
    nothing = BNPO(match_scale=True).advantages(groups_of(torch.ones(2, 4)))["advantages"]
    assert (nothing == 0).all()


def test_grpos_shape_with_a_matched_scale_is_grpo():
    """But for what epsilon and the sample's divisor are among groups of one size: one factor."""
    found = BNPO(fixed_shape=(1.5, 1.5), match_scale=True).advantages(groups_of(R1))
    assert_close(found, GRPO().advantages(groups_of(R1)), rtol=2e-4, atol=0)


def test_a_function_that_could_not_judge_a_group_leaves_it_to_the_others():
    other = R1.clone()
    other[1] = NAN
    groups = groups_of(R1, R1, other)
    found = BNPO(decompose=True).advantages(groups)["advantages"]
    assert_close(found[1], beta_normalized_advantages(R1)[1] / 2)
    assert_close(found[0], (beta_normalized_advantages(R1)[0] + beta_normalized_advantages(other)[0]) / 2)


def test_rollout_metrics():
    rewards = torch.cat([R1, torch.ones(1, 4, dtype=torch.float64)])
    found = {k: float(v) for k, v in BNPO().rollout_metrics(groups_of(rewards)).items()}
    rates = rewards.mean(1)
    alpha, beta = fit_beta(rates)
    assert found["success_mean"] == pytest.approx(float(rates.mean()))
    assert found["success_variance"] == pytest.approx(float(rates.var()))
    assert (found["alpha"], found["beta"]) == pytest.approx((float(alpha), float(beta)))
    assert found["weight_max"] == pytest.approx(float(beta_weights(rates[:4], alpha, beta).max()))
    assert found["weight_capped"] == pytest.approx(0.2 if beta > 1 else 0.0)
    assert found["fallback"] == 0
    assert float(BNPO().rollout_metrics(groups_of(torch.ones(2, 4)))["fallback"]) == 1


def test_loss_by_hand():
    ratio = tensor([[1.5, 0.5], [20.0, 1.0]], dtype=torch.float64)
    batch = TokenBatch(ratio.log(), torch.zeros(2, 2), torch.ones(2, 2), tensor([[2.0], [-1.0]]).double())
    expected = tensor(
        [[-2.56, -1.0], [10.0, 1.0]], dtype=torch.float64
    )  # clip 1.28; dual clip 10 at ratio 20
    assert_close(BNPO().token_loss(batch), expected)
    totals = StepTotals(tensor(4.0), tensor(2.0), 2)
    for aggregate, divisor in (("per_response_sum", 2), ("per_token", 4), ("per_response", 4)):
        objective = BNPO(aggregate=aggregate)
        assert objective.divides_by_tokens == (aggregate == "per_token")
        assert_close(objective.reduce(expected, batch.mask, totals), expected.sum() / divisor)


def test_rewards_may_be_integers():
    whole = tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]])
    found = beta_normalized_advantages(whole)
    assert_close(found, beta_normalized_advantages(whole.float()))
    assert found.abs().max() > 0.1
