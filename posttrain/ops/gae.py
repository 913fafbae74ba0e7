"""Generalised advantage estimation, and the loss of the critic it needs. Shapes: B responses, T tokens, (B, T) each.

V_t is the value of the state BEFORE token t is chosen, so a value and a log-prob of the same index belong together.
What the mask leaves out (a tool's output, padding) is no action: the tokens around it follow each other directly.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns of each token (Schulman et al. 2016, https://arxiv.org/abs/1506.02438, eq. 16 to 18).

    delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lam A_{t+1},   return_t = A_t + V_t

    The value behind the last token is 0: a response is an episode that ends, also where it was cut at the length limit.
    Both are 0 where the mask is.
    """
    inside = mask.bool()
    advantages = torch.zeros_like(values)
    following = values.new_zeros(values.size(0))  # A_{t+1}
    next_value = values.new_zeros(values.size(0))
    for t in range(values.size(1) - 1, -1, -1):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        here = delta + gamma * lam * following
        following = torch.where(inside[:, t], here, following)
        next_value = torch.where(inside[:, t], values[:, t], next_value)
        advantages[:, t] = torch.where(inside[:, t], here, 0.0)
    return advantages, torch.where(inside, advantages + values, 0.0)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """Half the squared error of each token's value; with `clip` the larger of it and that of the value held within
    `clip` of the one at sampling time, so that a value is not pulled further than that in one rollout. (B, T).

    As PPO's released code has it, and Secrets of RLHF (https://arxiv.org/abs/2307.04964, section 5.4).
    """
    plain = (values - returns).square()
    if clip is None:
        return plain / 2
    held = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum(plain, (held - returns).square()) / 2


def whitened(values: Tensor, mask: Tensor, epsilon: float = 1e-8) -> Tensor:
    """Values minus their mean over their standard deviation (divisor n), both over what the mask counts; 0 elsewhere,
    and everywhere where fewer than two values count."""
    count = mask.sum()
    if count < 2:
        return torch.zeros_like(values)
    mean = (values * mask).sum() / count
    variance = ((values - mean).square() * mask).sum() / count
    return (values - mean) * (variance + epsilon).rsqrt() * mask


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - var(returns - values) / var(returns) over what the mask counts: 1 is a perfect critic, 0 one that knows no
    more than the mean, below it a harmful one. (). NaN where the returns do not differ."""
    count = mask.sum().clamp(min=1)

    def variance(x: Tensor) -> Tensor:
        mean = (x * mask).sum() / count
        return ((x - mean).square() * mask).sum() / count

    spread = variance(returns)
    return torch.where(spread > 0, 1 - variance(returns - values) / spread, torch.nan)
