"""Flow-GRPO and GRPO-Guard: the published vectors, the identities behind them, and what each setting does."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from posttrain.objectives.base import Groups, StepTotals, TokenBatch
from posttrain.objectives.flow_base import FlowObjective, population_std
from posttrain.objectives.flow_grpo import FlowGRPO
from posttrain.objectives.grpo_guard import GRPOGuard
from posttrain.ops.flow_step import (
    StepGaussian,
    clipped_log_surrogate,
    cps_step,
    diffusion_rate,
    normalised_log_ratio,
    ode_step,
    sde_step,
    sigma_schedule,
    step_divergence,
    step_log_ratio,
    step_logprobs,
)

LEVEL = 0.7
SIGMAS = sigma_schedule(10, shift=3.0)
K = torch.arange(24, dtype=torch.float64).view(3, 2, 2, 2)
LATENT, VELOCITY = torch.sin(K + 1), torch.cos(K / 2)
OLD_VELOCITY = VELOCITY + 0.02 * torch.sin(3 * K)
NOISE = math.sqrt(2) * torch.sin(1.7 * K + 0.4)
ADVANTAGES = torch.tensor([1.1, -0.6, 5.0], dtype=torch.float64)


def step(i: int, latent: Tensor, velocity: Tensor) -> StepGaussian:
    times = [SIGMAS[j].expand(len(latent)).to(latent) for j in (i, i + 1)]
    return sde_step(latent, velocity, *times, float(SIGMAS[1]), LEVEL)


def sampled(i: int = 4) -> tuple[StepGaussian, StepGaussian, Tensor]:
    """The policy's step, the old policy's, and the sample."""
    old = step(i, LATENT, OLD_VELOCITY)
    return step(i, LATENT, VELOCITY), old, old.mean + old.spread.view(-1, 1, 1, 1) * NOISE


def batch(log_ratio: Tensor, advantages: Tensor, dt: Tensor) -> TokenBatch:
    column = log_ratio.unsqueeze(1)
    return TokenBatch(
        column,
        torch.zeros_like(column),
        torch.ones_like(column),
        advantages.unsqueeze(1),
        forward={"dt": dt.unsqueeze(1)},
    )


def loss_of(objective: FlowObjective, i: int = 4) -> float:
    new, old, sample = sampled(i)
    log_ratio = objective.log_ratio(sample, new.mean, old.mean, old.spread, cps=False)
    one = batch(log_ratio, ADVANTAGES, old.dt)
    totals = StepTotals(torch.tensor(3.0), torch.tensor(3.0), 1)
    return objective.reduce(objective.token_loss(one), one.mask, totals).item()


# ---- the page's vectors


def test_schedule_of_sd3():
    known = [1.0, 0.9601293103, 0.9133489461, 0.8576923077, 0.790368272, 0.707278481]
    known += [0.6021505376, 0.4648760331, 0.2780487805, 0.0089285714, 0.0]
    assert_close(SIGMAS, torch.tensor(known, dtype=torch.float64), atol=1e-10, rtol=0)
    rates = [3.5056710812, 3.4350734679, 2.2726339047, 1.7185002890, 1.3592028665]
    rates += [1.0880928021, 0.8611745593, 0.6524382543, 0.4344147974, 0.0664410597]
    found = diffusion_rate(SIGMAS[:-1], float(SIGMAS[1]), LEVEL)
    assert_close(found, torch.tensor(rates, dtype=torch.float64), atol=1e-9, rtol=0)


def test_step_four_of_the_fixture():
    new, old, sample = sampled()
    assert old.dt[0].item() == pytest.approx(-0.0830897909, abs=1e-10)
    assert old.spread[0].item() == pytest.approx(0.3917943014, abs=1e-10)
    assert old.mean[0, 0, 0, 0].item() == pytest.approx(0.6563103058206519, abs=1e-14)
    logprobs = [-0.42825400454183465, -0.5138258058099792, -0.5051920076764553]
    assert_close(
        step_logprobs(sample, old.mean, old.spread),
        torch.tensor(logprobs, dtype=torch.float64),
        atol=1e-14,
        rtol=0,
    )
    ratio = [3.458902386e-04, 2.444722362e-04, -6.920068635e-04]
    normalised = [1.370491431e-04, 1.006905931e-04, -2.699794322e-04]
    given = (sample, new.mean, old.mean, old.spread)
    assert_close(step_log_ratio(*given), torch.tensor(ratio, dtype=torch.float64), atol=1e-13, rtol=0)
    assert_close(
        normalised_log_ratio(*given), torch.tensor(normalised, dtype=torch.float64), atol=1e-13, rtol=0
    )


def test_losses_of_the_fixture():
    assert loss_of(FlowGRPO()) == pytest.approx(-1.832168153772326, abs=1e-13)
    assert loss_of(GRPOGuard()) == pytest.approx(-22.058835408891028, abs=1e-11)
    assert loss_of(GRPOGuard(clip=1e-2)) == pytest.approx(-22.059431408257115, abs=1e-11)
    assert loss_of(GRPOGuard(clip=1e-2, reweigh=False)) == pytest.approx(-1.832913544011827, abs=1e-13)


# ---- the identities


@pytest.mark.parametrize("i", range(9))
def test_direct_forms_are_the_differences_of_log_densities(i):
    new, old, sample = sampled(i)
    plain = step_logprobs(sample, new.mean, new.spread) - step_logprobs(sample, old.mean, old.spread)
    assert_close(step_log_ratio(sample, new.mean, old.mean, old.spread), plain, atol=1e-12, rtol=0)
    moved = (new.mean - old.mean).square().flatten(1).mean(1)
    moments = old.spread * (plain + moved / (2 * old.spread.square()))
    along = ((new.mean - old.mean) * NOISE).flatten(1).mean(1)
    found = normalised_log_ratio(sample, new.mean, old.mean, old.spread)
    assert_close(found, moments, atol=1e-12, rtol=0)
    assert_close(found, along, atol=1e-12, rtol=0)


def test_on_policy_ratio_is_exactly_one_in_float32():
    for i in range(9):
        new = step(i, LATENT.float(), OLD_VELOCITY.float())
        sample = new.mean + new.spread.view(-1, 1, 1, 1) * NOISE.float()
        for objective in (FlowGRPO(), GRPOGuard()):
            assert objective.log_ratio(sample, new.mean, new.mean, new.spread, cps=False).abs().max() == 0


@pytest.mark.parametrize("i", [1, 4, 8])
def test_moments_of_the_ratio_over_the_noise(i):
    """E log r = -mean(dmu^2) / (2 s^2), E log r_hat = 0, within 6 standard errors of 40,000 draws."""
    draws = 40_000
    latent = LATENT[:1].expand(draws, -1, -1, -1)
    new, old = step(i, LATENT[:1], VELOCITY[:1]), step(i, LATENT[:1], OLD_VELOCITY[:1] + 1)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
    sample = old.mean + old.spread.view(-1, 1, 1, 1) * noise
    spread = old.spread.expand(draws)
    raw = step_log_ratio(sample, new.mean, old.mean, spread)
    normalised = normalised_log_ratio(sample, new.mean, old.mean, spread)
    expected = -(new.mean - old.mean).square().mean() / (2 * old.spread**2)
    assert abs(raw.mean() - expected) < 6 * raw.std() / draws**0.5
    assert abs(normalised.mean()) < 6 * normalised.std() / draws**0.5
    assert abs(raw.mean() - expected) < abs(expected)  # the expectation is told from 0


def test_spread_of_the_ratios_by_step():
    """Equal changes of the velocity: the raw ratio's spread grows 19 times over the steps, the normalised one's 6."""
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(400, 16, 16, 16, generator=generator)
    change = 4e-3 * torch.randn(1, 16, 16, 16, generator=generator)
    found = {}
    for i in (1, 4, 8):
        old = step(i, latent, torch.zeros_like(latent))
        new = step(i, latent, change.expand_as(latent))
        sample = old.mean + old.spread.view(-1, 1, 1, 1) * torch.randn(latent.shape, generator=generator)
        given = (sample, new.mean, old.mean, old.spread)
        found[i] = step_log_ratio(*given).std().item(), normalised_log_ratio(*given).std().item()
    raw, normalised = (found[8][k] / found[1][k] for k in (0, 1))
    assert raw == pytest.approx(18.8, rel=0.15)
    assert normalised == pytest.approx(5.7, rel=0.15)


def test_pull_per_unit_of_noise_is_the_same_at_every_step():
    """d(r_hat / |dt|) / dv = -(1 + a^2 / 2) noise / D at all steps but the first, where it is -(1 + 0) noise / D."""
    for i in range(9):
        velocity = OLD_VELOCITY.clone().requires_grad_()
        new, old = step(i, LATENT, velocity), step(i, LATENT, OLD_VELOCITY)
        sample = old.mean + old.spread.view(-1, 1, 1, 1) * NOISE
        log_ratio = GRPOGuard().log_ratio(sample, new.mean, old.mean, old.spread, cps=False)
        (log_ratio / -old.dt).sum().backward()
        scale = velocity.grad / (NOISE / 8)
        wanted = -1.0 if i == 0 else -(1 + LEVEL**2 / 2)
        assert_close(scale, torch.full_like(scale, wanted), atol=1e-9, rtol=0)


def test_clip_bites_on_both_sides_once_normalised():
    """The paper's mechanism, at real latents' size: at low noise the raw ratio's mean lies so far below 1 that its
    upper clip is rarely met."""
    generator = torch.Generator().manual_seed(0)
    shape = (200, 16, 64, 64)
    change = 4e-3 * torch.randn(1, *shape[1:], generator=generator)
    latent = torch.zeros(shape)
    old, new = step(8, latent, latent), step(8, latent, change.expand(shape))
    sample = old.mean + old.spread.view(-1, 1, 1, 1) * torch.randn(shape, generator=generator)
    given = (sample, new.mean, old.mean, old.spread)
    raw, normalised = step_log_ratio(*given), normalised_log_ratio(*given)

    def shares(log_ratio: Tensor, clip: float) -> tuple[float, float]:
        above, below = log_ratio > math.log1p(clip), log_ratio < math.log1p(-clip)
        return above.float().mean().item(), below.float().mean().item()

    above, below = shares(raw, 1e-5)
    assert below > 0.5
    assert above < 0.2
    above, below = shares(normalised, 2e-6)
    assert abs(above - below) < 0.12
    assert above > 0.2


def test_direct_form_keeps_the_digits_a_small_clip_needs():
    generator = torch.Generator().manual_seed(0)
    shape = (4, 16, 64, 64)
    latent, change = torch.randn(shape, generator=generator), 4e-3 * torch.randn(shape, generator=generator)
    noise = torch.randn(shape, generator=generator)

    def errors(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        zero = torch.zeros(shape, dtype=dtype)
        old, new = step(0, latent.to(dtype), zero), step(0, latent.to(dtype), change.to(dtype))
        sample = old.mean + old.spread.view(-1, 1, 1, 1) * noise.to(dtype)
        moments = step_logprobs(sample, new.mean, new.spread) - step_logprobs(sample, old.mean, old.spread)
        moved = (new.mean - old.mean).square().flatten(1).mean(1)
        direct = normalised_log_ratio(sample, new.mean, old.mean, old.spread)
        return direct, old.spread * (moments + moved / (2 * old.spread.square()))

    exact, _ = errors(torch.float64)
    direct, moments = errors(torch.float32)
    assert (direct - exact).abs().max() < 3e-9
    assert (moments - exact).abs().max() > 10 * (direct - exact).abs().max()


# ---- the surrogate and the settings


def test_surrogate_by_hand():
    log_ratio = torch.tensor([0.2, 0.2, -0.2, -0.2], dtype=torch.float64).requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    losses = clipped_log_surrogate(log_ratio, advantages, 0.1)
    assert_close(losses, torch.tensor([-1.1, math.exp(0.2), -math.exp(-0.2), 0.9], dtype=torch.float64))
    losses.sum().backward()
    assert_close(
        log_ratio.grad, torch.tensor([0.0, math.exp(0.2), -math.exp(-0.2), 0.0], dtype=torch.float64)
    )


def test_clip_is_told_from_its_neighbours_in_float32():
    log_ratio = torch.tensor([1.9e-6, 2.1e-6], requires_grad=True)
    clipped_log_surrogate(log_ratio, torch.ones(2), 2e-6).sum().backward()
    assert log_ratio.grad is not None
    assert log_ratio.grad.tolist() == pytest.approx([-1.0, 0.0], abs=1e-5)


def test_half_precision_is_refused():
    with pytest.raises(TypeError, match="below its grid"):
        clipped_log_surrogate(torch.zeros(2, dtype=torch.bfloat16), torch.ones(2), 1e-2)


def test_advantages_by_hand():
    rewards = torch.tensor([[0.0, 2.0], [5.0, 5.0]], dtype=torch.float64)
    groups = Groups(rewards, rewards.unsqueeze(-1), torch.ones(1))
    own = GRPOGuard().advantages(groups)["advantages"]
    assert_close(own, torch.tensor([[-1.0, 1.0], [0.0, 0.0]], dtype=torch.float64) / 1.0001)
    shared = FlowGRPO().advantages(groups)["advantages"]
    spread = rewards.std(correction=0).item()
    assert_close(shared, torch.tensor([[-1.0, 1.0], [0.0, 0.0]], dtype=torch.float64) / (spread + 1e-4))


def test_advantages_are_held_and_the_unjudged_get_none():
    rewards = torch.tensor([[0.0] * 99 + [100.0], [1.0] * 98 + [float("nan"), 2.0]], dtype=torch.float64)
    groups = Groups(rewards, rewards.unsqueeze(-1), torch.ones(1))
    found = GRPOGuard().advantages(groups)["advantages"]
    assert found[0, -1] == 5.0
    assert found[1, 98] == 0.0
    assert population_std(torch.tensor([[1.0, 3.0, float("nan")]])).item() == 1.0


def test_last_step_is_not_trained_by_default():
    assert FlowGRPO().trained_steps(10) == 9
    assert FlowGRPO(trained_share=1.0).trained_steps(10) == 10


def test_guard_refuses_the_step_it_is_not_derived_for():
    new, old, sample = sampled()
    with pytest.raises(ValueError, match="sampler: sde"):
        GRPOGuard().log_ratio(sample, new.mean, old.mean, old.spread, cps=True)


# ---- the steps


def test_rows_at_different_steps_are_each_their_own():
    """A micro-batch that mixes steps gives what each row gives alone: times are per row, not batch means."""
    where = torch.tensor([1, 5, 8])
    mixed = sde_step(LATENT, VELOCITY, SIGMAS[where], SIGMAS[where + 1], float(SIGMAS[1]), LEVEL)
    for row, i in enumerate(where.tolist()):
        alone = step(i, LATENT[row : row + 1], VELOCITY[row : row + 1])
        assert_close(mixed.mean[row], alone.mean[0])
        assert_close(mixed.spread[row], alone.spread[0])
    with pytest.raises(ValueError, match="one time a row"):
        sde_step(LATENT, VELOCITY, SIGMAS[1], SIGMAS[2], float(SIGMAS[1]), LEVEL)


def test_without_noise_the_sde_step_is_eulers():
    times = [SIGMAS[j].expand(3) for j in (4, 5)]
    still = sde_step(LATENT, VELOCITY, *times, float(SIGMAS[1]), 0.0)
    assert_close(still.mean, ode_step(LATENT, VELOCITY, *times))
    assert still.spread.abs().max() == 0
    kept = cps_step(LATENT, VELOCITY, *times, 0.0)
    assert_close(kept.mean, ode_step(LATENT, VELOCITY, *times))


def test_cps_step_keeps_the_weights_of_signal_and_noise():
    time, after = (SIGMAS[j].expand(3) for j in (4, 5))
    found = cps_step(LATENT, VELOCITY, time, after, LEVEL)
    assert_close(found.spread, after * math.sin(LEVEL * math.pi / 2))
    clean, noise = LATENT - float(time[0]) * VELOCITY, LATENT + (1 - float(time[0])) * VELOCITY
    kept = math.sqrt(float(after[0]) ** 2 - float(found.spread[0]) ** 2)
    assert_close(found.mean, (1 - float(after[0])) * clean + kept * noise)


def test_divergence_of_the_release_lacks_dt():
    new, old, _ = sampled()
    exact = (new.mean - old.mean).square().flatten(1).mean(1) / (2 * old.spread.square())
    assert_close(step_divergence(new.mean, old.mean, old.rate), exact * -old.dt)
