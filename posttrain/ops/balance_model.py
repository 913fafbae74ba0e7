"""A small model that says which KL coefficient a prompt gets: a softmax over coefficients, linear in a few numbers of
the prompt, fitted to the reward that each coefficient earned.

The balance model of Wang et al. 2023, https://arxiv.org/abs/2310.17966, picks for a state s the coefficient whose
policy has the highest value: it minimises E_s E_{b ~ pi_b(s)} [ tau log pi_b(b | s) - Q(s, pi_u(s, b)) ], as their
published code has it. Here Q is the mean reward of the samples of a calibration prompt, pi_b a softmax over the
coefficients in place of a squashed Gaussian, the expectation over b a sum, and a decay of the weights in place of tau.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

STEPS = 400
RATE = 0.05


@dataclass(frozen=True)
class BalanceModel:
    """
    values         (V,) coefficients
    features       names of what a prompt is described by
    center, scale  (F,) features are read as (x - center) / scale
    weights, bias  (F, V), (V,)
    """

    values: tuple[float, ...]
    features: tuple[str, ...]
    center: Tensor
    scale: Tensor
    weights: Tensor
    bias: Tensor

    def probabilities(self, features: Tensor) -> Tensor:
        """Of each coefficient, for each prompt. (P, F) -> (P, V). A feature that is NaN is read as the mean."""
        read = ((features.to(self.center) - self.center) / self.scale).nan_to_num(nan=0.0)
        return torch.softmax(read @ self.weights + self.bias, dim=1)

    def places(self, features: Tensor) -> Tensor:
        """The most probable coefficient of each prompt, the first of equals. (P, F) -> (P,) places in `values`."""
        return self.probabilities(features).argmax(dim=1)

    def signals(self, features: Tensor) -> Tensor:
        """That coefficient as a share of the largest. (P, F) -> (P,) in [0, 1]."""
        values = torch.tensor(self.values, dtype=torch.float64, device=features.device)
        return values[self.places(features)] / values.max()

    def to_plain(self) -> dict[str, Any]:
        """For a JSON file."""
        tensors = {name: vars(self)[name].tolist() for name in ("center", "scale", "weights", "bias")}
        return {"values": list(self.values), "features": list(self.features), **tensors}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> BalanceModel:
        """Raises ValueError where it is no balance model."""
        try:
            tensors = {
                name: torch.tensor(plain[name], dtype=torch.float64)
                for name in ("center", "scale", "weights", "bias")
            }
            found = cls(tuple(plain["values"]), tuple(plain["features"]), **tensors)
        except (KeyError, TypeError) as error:
            raise ValueError(f"no balance model: {error}") from None
        if found.weights.shape != (len(found.features), len(found.values)):
            raise ValueError(f"no balance model: weights of shape {tuple(found.weights.shape)}")
        return found


def fit_balance(
    values: tuple[float, ...],
    names: tuple[str, ...],
    features: Tensor,
    rewards: Tensor,
    *,
    decay: float = 0.01,
    steps: int = STEPS,
) -> BalanceModel:
    """Maximises the mean over prompts of sum_v p(v | x) r(x, v) - decay |weights|^2, by gradient ascent (Adam, full
    batch, float64) from p uniform; nothing is drawn, so the same rows give the same model.

    features  (P, F) of the calibration prompts; rewards (P, V): mean reward of each under each coefficient
    Raises ValueError for fewer than two prompts, or a reward that is not finite.
    """
    if len(features) < 2 or not bool(rewards.isfinite().all()):
        raise ValueError(
            f"a balance model is fitted to two prompts or more with finite rewards, not {len(features)}"
        )
    read, earned = features.double(), rewards.double()
    center = read.nanmean(dim=0).nan_to_num(nan=0.0)
    spread = (read - center).square().nanmean(dim=0).sqrt().nan_to_num(nan=0.0)
    scale = torch.where(spread > 1e-8, spread, torch.ones_like(spread))
    inputs = ((read - center) / scale).nan_to_num(nan=0.0)
    unit = (earned - earned.mean(dim=1, keepdim=True)).std().clamp(min=1e-8)  # so that decay means the same
    weights = torch.zeros(read.size(1), earned.size(1), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(earned.size(1), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weights, bias], lr=RATE)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            expected = (torch.softmax(inputs @ weights + bias, dim=1) * earned).sum(dim=1).mean() / unit
            (decay * (weights.square().sum() + bias.square().sum()) - expected).backward()
            optimizer.step()
    return BalanceModel(values, names, center, scale, weights.detach(), bias.detach())
