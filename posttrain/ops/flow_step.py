"""One denoising step of a rectified flow as a Gaussian policy: its mean, its spread, ratios of two policies on it.

x_t = (1 - t) x_0 + t noise, velocity v = dx/dt, a schedule sigma_0 = 1 > ... > sigma_T = 0 of the times t, and
dt = sigma_{i+1} - sigma_i < 0. Shapes: B rows of latents (B, ...); times, spreads and dt are (B,), one a row, so that
rows may stand at different steps. Where a formula sums over a latent, its mean is taken, as the published codes do:
ratios then stay near 1, and clips are tiny.

Liu et al. 2025 (Flow-GRPO), https://arxiv.org/abs/2505.05470; GRPO-Guard, https://arxiv.org/abs/2510.22319.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepGaussian:
    """The distribution of the next latent, given the one before it and a velocity.

    mean    (B, ...)
    spread  (B,)  its standard deviation s; 0 where the step is deterministic
    rate    (B,)  std_t, the diffusion coefficient: s = std_t sqrt(-dt). Of a CPS step, which has none, it is s
    dt      (B,)  below 0
    """

    mean: Tensor
    spread: Tensor
    rate: Tensor
    dt: Tensor


def sigma_schedule(steps: int, shift: float = 1.0, train_steps: int = 1000) -> Tensor:
    """Times of `steps` denoising steps, 1 first and 0 last. (steps + 1,), float64.

    As the flow-matching Euler scheduler of SD3 places them: evenly between the ends of a training schedule of
    `train_steps`, then moved by shift * t / (1 + (shift - 1) t), by which its ends have been moved before.
    """
    if steps < 1:
        raise ValueError(f"a schedule has at least 1 step, not {steps}")
    last = _shifted(torch.tensor(1.0 / train_steps, dtype=torch.float64), shift)
    times = torch.linspace(1.0, float(last), steps, dtype=torch.float64)
    return torch.cat([_shifted(times, shift), torch.zeros(1, dtype=torch.float64)])


def _shifted(times: Tensor, shift: float) -> Tensor:
    return shift * times / (1 + (shift - 1) * times)


def diffusion_rate(time: Tensor, second: float, noise_level: float) -> Tensor:
    """std_t = a sqrt(t / (1 - t)). (B,) At t = 1, where that is infinite, 1 - t is that of the schedule's `second`."""
    rest = torch.where(time >= 1, 1 - torch.full_like(time, second), 1 - time)
    return noise_level * (time / rest).sqrt()


def sde_step(
    latent: Tensor, velocity: Tensor, time: Tensor, after: Tensor, second: float, noise_level: float
) -> StepGaussian:
    """The stochastic step with the flow's own marginals (Flow-GRPO, eq. 9). time, after (B,): before and after it.

    Raises ValueError where times are not one a row, or do not fall.
    """
    _check_times(latent, time, after)
    dt = after - time
    rate = diffusion_rate(time, second, noise_level)
    over = rate.square() / (2 * time)
    mean = latent * _rows(1 + over * dt, latent) + velocity * _rows((1 + over * (1 - time)) * dt, latent)
    return StepGaussian(mean, rate * (-dt).sqrt(), rate, dt)


def cps_step(
    latent: Tensor, velocity: Tensor, time: Tensor, after: Tensor, noise_level: float
) -> StepGaussian:
    """The coefficients-preserving step: signal and noise keep the weights of the flow, and the part
    sin(a pi / 2) of the noise is drawn anew."""
    _check_times(latent, time, after)
    spread = after * math.sin(noise_level * math.pi / 2)
    clean = latent - velocity * _rows(time, latent)
    noise = latent + velocity * _rows(1 - time, latent)
    kept = (after.square() - spread.square()).clamp(min=0).sqrt()
    mean = clean * _rows(1 - after, latent) + noise * _rows(kept, latent)
    return StepGaussian(mean, spread, spread, after - time)


def ode_step(latent: Tensor, velocity: Tensor, time: Tensor, after: Tensor) -> Tensor:
    """Euler's step without noise, for evaluation; there is no log-prob to it."""
    _check_times(latent, time, after)
    return latent + velocity * _rows(after - time, latent)


def step_logprobs(sample: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """Gaussian log-density of a step's sample, the mean over elements. (B,)"""
    distance = (sample - mean).square().flatten(1).mean(1)
    return -distance / (2 * spread.square()) - spread.log() - 0.5 * math.log(2 * math.pi)


def step_log_ratio(sample: Tensor, mean: Tensor, old_mean: Tensor, spread: Tensor) -> Tensor:
    """log p(sample) - log p_old(sample) of one step, the mean over elements. (B,)

    From the means' difference, where the difference of two log-densities of size 1 would lose the digits that a clip
    of 1e-6 needs: on 65,536 elements 7e-8 in float32 against 3e-10.
    """
    moved = (mean - old_mean).flatten(1)
    along = (moved * (sample - old_mean).flatten(1)).mean(1)
    return along / spread.square() - moved.square().mean(1) / (2 * spread.square())


def normalised_log_ratio(sample: Tensor, mean: Tensor, old_mean: Tensor, spread: Tensor) -> Tensor:
    """RatioNorm: s (log r + mean(dmu^2) / (2 s^2)) = mean(dmu noise), whose mean is 0 and whose size does not hang on
    1 / s. (B,) The term that is added has a gradient, which takes dmu out of the ratio's; it must not be detached."""
    moved = (mean - old_mean).flatten(1)
    return (moved * (sample - old_mean).flatten(1)).mean(1) / spread


def squared_distance_log_ratio(sample: Tensor, mean: Tensor, old_mean: Tensor) -> Tensor:
    """The difference of -mean (sample - mean)^2, the log-density of a CPS step as its release has it, without
    1 / (2 s^2). (B,)"""
    moved = (mean - old_mean).flatten(1)
    return 2 * (moved * (sample - old_mean).flatten(1)).mean(1) - moved.square().mean(1)


def step_divergence(mean: Tensor, ref_mean: Tensor, rate: Tensor) -> Tensor:
    """mean (mu - mu_ref)^2 / (2 std_t^2), the KL as the published code has it. (B,) The Gaussians' own has
    s^2 = std_t^2 |dt| in the divisor: it is larger by 1 / |dt|."""
    return (mean - ref_mean).square().flatten(1).mean(1) / (2 * rate.square())


def clipped_log_surrogate(log_ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """max(-A r, -A clip(r, 1 - e, 1 + e)), with the clip taken of log r. Shaped like its arguments, which broadcast.

    In float32 the numbers next to 1 are 1.2e-7 apart, so a clip of 2e-6 could not be told from its neighbours there.
    Raises TypeError for half precision.
    """
    if log_ratio.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"log ratios are kept in float32 or float64, not {log_ratio.dtype}: a clip lies below its grid"
        )
    held = torch.where(
        advantages >= 0, log_ratio.clamp(max=math.log1p(clip)), log_ratio.clamp(min=math.log1p(-clip))
    )
    return -advantages * held.exp()


def _rows(values: Tensor, like: Tensor) -> Tensor:
    """(B,) to (B, 1, ...), for a product with a latent."""
    return values.view(-1, *[1] * (like.dim() - 1))


def _check_times(latent: Tensor, time: Tensor, after: Tensor) -> None:
    for name, values in (("time", time), ("after", after)):
        if values.shape != latent.shape[:1]:
            raise ValueError(
                f"{name} has shape {tuple(values.shape)} for {len(latent)} rows: one time a row is needed, "
                "since rows may stand at different steps"
            )
