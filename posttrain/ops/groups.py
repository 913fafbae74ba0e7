"""Advantages from the rewards of prompt groups. Shapes: P prompts, G responses per prompt.

A reward of NaN means unjudged: it never enters a mean or a standard deviation, and the response gets
advantage 0. Standard deviations are the sample's (divisor n - 1).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Scale = Literal["group", "batch", "none"]
STD_EPSILON = 1e-4
"""Added to the standard deviation, as in TRL and the first GRPO releases."""


def nan_std(values: Tensor, dim: int | None = None) -> Tensor:
    """Sample standard deviation of what is not NaN; 0 where fewer than two values are left. dim=None: of
    all."""
    if dim is None:
        values, dim = values.reshape(-1), 0
    count = (~values.isnan()).sum(dim=dim)
    variance = (values - values.nanmean(dim=dim, keepdim=True)).square().nansum(dim=dim)
    return (variance / (count - 1).clamp(min=1)).sqrt()


def group_centered(rewards: Tensor) -> Tensor:
    """Reward minus the mean of its group. (P, G) -> (P, G)."""
    return _judged(rewards - rewards.nanmean(dim=1, keepdim=True), rewards)


def group_zscore(rewards: Tensor, epsilon: float = STD_EPSILON) -> Tensor:
    """Centred rewards over the standard deviation of their own group (GRPO). (P, G) -> (P, G)."""
    return group_centered(rewards) / (nan_std(rewards, dim=1).unsqueeze(1) + epsilon)


def batch_scaled(rewards: Tensor, epsilon: float = STD_EPSILON) -> Tensor:
    """Centred on the group, over the standard deviation of the whole batch. (P, G) -> (P, G)."""
    return group_centered(rewards) / (nan_std(rewards) + epsilon)


def scaled_advantages(rewards: Tensor, scale: Scale) -> Tensor:
    """The advantages a method's `scale` setting names. (P, G) -> (P, G)."""
    return {"group": group_zscore, "batch": batch_scaled, "none": group_centered}[scale](rewards)


def degenerate_groups(rewards: Tensor) -> Tensor:
    """Groups whose judged rewards are all equal, those with none or one included. (P, G) -> (P,) bool."""
    low = torch.where(rewards.isnan(), torch.inf, rewards).amin(dim=1)
    high = torch.where(rewards.isnan(), -torch.inf, rewards).amax(dim=1)
    return high <= low


def _judged(advantages: Tensor, rewards: Tensor) -> Tensor:
    # Only an unjudged response becomes 0: what an infinite reward does to its group must stay visible.
    return torch.where(rewards.isnan(), 0.0, advantages)
