"""Policy shaping for answers that the policy did not sample. LUFFY, Yan et al. 2025, https://arxiv.org/abs/2504.14945,
section 3.3."""

from __future__ import annotations

import torch
from torch import Tensor


def shaped_probability(logprobs: Tensor, gamma: float | Tensor) -> Tensor:
    """f(p) = p / (p + gamma), p the policy's probability of each token. (B, T) in nats -> (B, T) in (0, 1).

    Its derivative in p, gamma / (p + gamma)^2, is largest where the policy finds the token unlikely. Computed as
    sigmoid(log p - log gamma), so that no small p is rounded to 0 before it is divided.

    gamma  above 0; one number, or one a row (B, 1)
    """
    return torch.sigmoid(logprobs - torch.as_tensor(gamma).to(logprobs).log())


def shaped_surrogate(logprobs: Tensor, advantages: Tensor, gamma: float | Tensor) -> Tensor:
    """-A f(p), which nothing clips. (B, T), (B, 1) or (B, T) -> (B, T).

    The ratio's denominator, the probability of whoever wrote the answer, is taken to be 1, as the authors do: p stands
    where p / 1 did. The derivative in a token's log-prob is -A gamma p / (p + gamma)^2.
    """
    return -advantages * shaped_probability(logprobs, gamma)
