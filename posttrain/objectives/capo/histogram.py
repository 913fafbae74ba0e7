"""Joint histogram of two positive quantities on logarithmic bins: counts add up over micro-batches and ranks,
and quantiles come out of them without any token being kept. A bin is 7.5 % wide."""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 512
LOWEST, HIGHEST = -14.0, 2.0
"""Decimal logarithms of the range covered; what lies outside is counted in the first and last bin."""
LOWEST_EDGE, HIGHEST_EDGE = 10.0 ** (LOWEST + (HIGHEST - LOWEST) / BINS), 10.0**HIGHEST
"""Upper ends of the first and the last bin: as a threshold, either says that the range was left."""


def joint_counts(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """Weighted counts of the pairs (first, second), both >= 0. Any shape, three times -> (BINS, BINS)
    float64."""
    cell = _bin(first).reshape(-1) * BINS + _bin(second).reshape(-1)
    counts = torch.zeros(BINS * BINS, dtype=torch.float64, device=first.device)
    return counts.index_add_(0, cell, weights.reshape(-1).double()).view(BINS, BINS)


def upper_edges(like: Tensor) -> Tensor:
    """Upper end of each bin, on `like`'s device. (BINS,)."""
    steps = torch.arange(1, BINS + 1, dtype=torch.float64, device=like.device)
    return torch.pow(10.0, LOWEST + steps * (HIGHEST - LOWEST) / BINS)


def quantile(counts: Tensor, level: float) -> Tensor:
    """Upper end of the bin in which a share `level` of the counts is reached. (BINS,) -> ()."""
    cumulated = counts.cumsum(0) / counts.sum()
    return upper_edges(counts)[_first_at_least(cumulated, cumulated.new_tensor(level))]


def joint_thresholds(counts: Tensor, rejection: float) -> tuple[Tensor, Tensor]:
    """Thresholds at the same quantile of both quantities, the tightest at which at most a share `rejection`
    of the pairs reaches either. (BINS, BINS) -> (), ()."""
    shares = counts / counts.sum()
    first, second = shares.sum(1).cumsum(0), shares.sum(0).cumsum(0)
    below = shares.cumsum(0).cumsum(1)
    levels = torch.cat([first, second]).sort().values
    at_first, at_second = _first_at_least(first, levels), _first_at_least(second, levels)
    enough = below[at_first, at_second] >= 1 - rejection
    chosen = torch.where(enough.any(), enough.int().argmax(), len(levels) - 1)
    edges = upper_edges(counts)
    return edges[at_first[chosen]], edges[at_second[chosen]]


def _bin(values: Tensor) -> Tensor:
    position = (values.double().clamp(min=10.0**LOWEST).log10() - LOWEST) * (BINS / (HIGHEST - LOWEST))
    return position.long().clamp(0, BINS - 1)


def _first_at_least(cumulated: Tensor, level: Tensor) -> Tensor:
    # the tolerance keeps rounding in the cumulated sum from skipping to the next filled bin
    return torch.searchsorted(cumulated, level - 1e-12).clamp(max=BINS - 1)
