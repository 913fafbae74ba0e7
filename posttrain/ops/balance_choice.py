"""Which coefficient of a family each prompt gets, chosen on calibration prompts, and what a choice earns on others.

That the best balance differs from state to state is the claim of Wang et al. 2023, https://arxiv.org/abs/2310.17966;
the measure of it here, on prompts that nothing was chosen on, is this project's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EDGES = (0.25, 0.75)
"""Pass rates of the reference that part the bins: hard below the first, easy above the last."""
FEWEST = 4
"""Calibration prompts of a bin that may choose for itself."""


@dataclass(frozen=True)
class Earned:
    """Mean over prompts, and its standard error over them; None of one prompt.

    gain  over the single best coefficient, prompt by prompt
    """

    reward: float
    reward_error: float | None
    kl: float
    gain: float = 0.0
    gain_error: float | None = None


def single(rewards: Tensor) -> int:
    """The place of the coefficient with the highest mean reward, the first of equals. (P, V) -> place."""
    return int(rewards.double().mean(dim=0).argmax())


def bin_of(rates: Tensor, edges: Sequence[float] = EDGES) -> Tensor:
    """Which bin each pass rate is in, from 0; a rate that is an edge is in the upper one. (P,) -> (P,)."""
    return torch.bucketize(
        rates.double().contiguous(), torch.tensor(list(edges), dtype=torch.float64), right=True
    )


def by_bins(rates: Tensor, rewards: Tensor, edges: Sequence[float] = EDGES) -> list[int]:
    """The best place of each bin of pass rates; of a bin with fewer than `FEWEST` prompts the single best of all.

    rates (P,), rewards (P, V), of the calibration prompts
    """
    bins, best = bin_of(rates, edges), single(rewards)
    found = []
    for at in range(len(edges) + 1):
        mine = rewards[bins == at]
        found.append(single(mine) if len(mine) >= FEWEST else best)
    return found


def by_halves(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Places that each prompt's first half of samples chooses, and what its second half earned under each coefficient:
    the best per prompt without the luck of choosing and measuring by the same samples.

    samples (P, V, K), K of 2 or more -> places (P,), rewards (P, V)
    """
    half = samples.size(2) // 2
    if half == 0:
        raise ValueError(
            "the best per prompt by its own samples needs two samples or more of each coefficient"
        )
    return samples[..., :half].double().mean(2).argmax(dim=1), samples[..., half:].double().mean(2)


def earned(places: Tensor, rewards: Tensor, kl: Tensor, baseline: Tensor | None = None) -> Earned:
    """What prompts earn with the coefficient at their place. places (P,), rewards and kl (P, V); baseline (P,): places
    that the gain is over."""
    rows = torch.arange(len(places))
    mine = rewards.double()[rows, places]
    gains = torch.zeros_like(mine) if baseline is None else mine - rewards.double()[rows, baseline]
    return Earned(
        float(mine.mean()),
        _error(mine),
        float(kl.double()[rows, places].mean()),
        float(gains.mean()),
        None if baseline is None else _error(gains),
    )


def _error(values: Tensor) -> float | None:
    return None if len(values) < 2 else float(values.std()) / math.sqrt(len(values))
