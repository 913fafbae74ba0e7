"""Importance ratios pi_theta / pi_old. Shapes: B responses, T response tokens."""

from __future__ import annotations

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are held within +-20: a ratio of e^20 says nothing, and exp overflows float32 near 88."""


def token_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """Ratio of each token. (B, T) -> (B, T). Flat, so without gradient, where |log-ratio| > 20."""
    return torch.exp((logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))


def sequence_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Length-normalised ratio of a whole response: exp of its mean log-ratio (GSPO, eq. 7). (B, T) -> (B, 1).

    A response without loss tokens has ratio 1.
    """
    log_ratio = ((logprobs - old_logprobs) * mask).sum(dim=-1, keepdim=True)
    mean = log_ratio / mask.sum(dim=-1, keepdim=True).clamp(min=1.0)
    return torch.exp(mean.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
