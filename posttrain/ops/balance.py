"""A KL coefficient per prompt, between two factors of one coefficient. The idea of a balance that is a function of the
state: Wang et al. 2023, https://arxiv.org/abs/2310.17966."""

from __future__ import annotations

import torch
from torch import Tensor


def balance_factors(signals: Tensor, low: float, high: float) -> Tensor:
    """low + (high - low) u for each prompt's signal u, held within [0, 1]; 1 where it is NaN. (P,) -> (P,)."""
    factors = low + (high - low) * signals.clamp(0.0, 1.0)
    return torch.where(signals.isnan(), 1.0, factors)


def pass_rates(rewards: Tensor) -> Tensor:
    """Mean reward of each group over what was judged, NaN where nothing was. (P, G) -> (P,)."""
    return rewards.nanmean(dim=1)


def quantiles(values: Tensor) -> Tensor:
    """Where each value stands among the others, from 0, the lowest, to 1; ties share their mean place, one alone stands
    at 1/2. (P,) -> (P,)."""
    others = values.numel() - 1
    if others == 0:
        return torch.full_like(values, 0.5)
    below = (values.unsqueeze(0) < values.unsqueeze(1)).sum(1)
    equal = (values.unsqueeze(0) == values.unsqueeze(1)).sum(1) - 1
    return (below + 0.5 * equal).to(values) / others
