"""Estimates of KL(pi_theta || pi_ref) from sampled tokens, (B, T) -> (B, T).

Schulman 2020, http://joschu.net/blog/kl-approx.html
"""

from __future__ import annotations

import torch
from torch import Tensor


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """The log-ratio itself: unbiased, of either sign. (B, T)."""
    return logprobs - ref_logprobs


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """exp(d) - d - 1 with d = ref - policy: never negative, unbiased, and TRL's KL penalty. (B, T)."""
    difference = ref_logprobs - logprobs
    return torch.exp(difference) - difference - 1
