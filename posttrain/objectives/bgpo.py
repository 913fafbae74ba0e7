"""BGPO, boundary-guided policy optimisation. Lin et al. 2025, https://arxiv.org/abs/2510.11683

Against VRPO-OL (vrpo_ol.py): the ratio exp(mean_j d_j) of ELBO estimates is replaced by a lower bound of the
objective that is a sum over the Monte Carlo passes, linear where the advantage is positive (e^z >= 1 + z) and
exponential where it is negative (Jensen). Each pass then needs only its own graph: memory does not grow with
n. On-policy the bound touches the objective, in value and in gradient. Departures: the time has a floor of
1e-3, as in the code of the model the paper trains, since without one the estimator's variance is infinite;
the standard deviation is the sample's, and groups without spread get advantage 0 (the paper says neither).
Off by default, and named after what they change: `clip_low`, `clip_high`, `dual_clip`, `length_normalise`
(the released code has all four), `d_clamp`; a KL penalty is the trainer's beta.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Lt
from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.objectives.masked_base import DiffusionBatch, ElboObjective

LengthRule = Literal["none", "response", "canvas"]


def exp_limit(dtype: torch.dtype) -> float:
    """Largest exponent whose exp, times an advantage of up to 100, the dtype can still hold."""
    return math.log(torch.finfo(dtype).max) - math.log(100)


def bounded_exp(exponent: Tensor) -> Tensor:
    """exp, held at the largest number that leaves room for a factor; its derivative is held likewise.

    An ELBO difference is a sum weighted by up to 1/t: exponents of +-100 are ordinary off-policy, and
    infinity times a zero further up in the graph would be NaN.
    """
    held = exponent.detach().clamp(max=exp_limit(exponent.dtype)).exp()
    return held * (1 + exponent - exponent.detach())


def bgpo_ratio(difference: Tensor, advantages: Tensor) -> Tensor:
    """1 + d where the advantage is >= 0, exp(d) where it is negative (eq. 13). (B, n), (B, 1) -> (B, n)."""
    negative = advantages < 0
    # exp sees zeros where it is not chosen: an overflow there would reach the gradient as inf * 0
    return torch.where(negative, bounded_exp(torch.where(negative, difference, 0.0)), 1 + difference)


def bgpo_terms(elbo: Tensor, old_elbo: Tensor, advantages: Tensor) -> Tensor:
    """g_ij of eq. 13: the sum over n is the lower bound R_lb of A exp(mean_j d_j). (B, n).

    elbo, old_elbo  (B, n)  ELBO terms of the same hidden tokens under the policy and the old policy
    advantages      (B,)
    Computed in at least float32: an ELBO of -500 in bfloat16 is known to 2 nats, and the difference is what counts.
    """
    if elbo.shape != old_elbo.shape or advantages.shape != elbo.shape[:1]:
        raise ValueError(
            f"bgpo_terms: elbo {tuple(elbo.shape)} and old_elbo {tuple(old_elbo.shape)} must be (B, n) alike, "
            f"advantages (B,), not {tuple(advantages.shape)}"
        )
    advantages = advantages.unsqueeze(1)
    difference = at_least_float32(elbo) - at_least_float32(old_elbo)
    return bgpo_ratio(difference, advantages) * advantages / elbo.shape[1]


def at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(frozen=True)
class BGPO(ElboObjective):
    level: ClassVar[Literal["sequence"]] = "sequence"
    separable: ClassVar[bool] = True

    clip_low: Annotated[float, Ge(0), Lt(1)] | None = None
    """departure: PPO clip below 1"""
    clip_high: Annotated[float, Ge(0)] | None = None
    """departure: PPO clip above 1"""
    dual_clip: Annotated[float, Gt(1)] | None = None
    """departure: cap of the ratio where A < 0"""
    length_normalise: LengthRule = "none"
    """departure: ELBO a token, of the response or of the canvas"""
    d_clamp: Annotated[float, Gt(0)] | None = None
    """departure: |d| is held at this"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.clip_low is None) != (self.clip_high is None):
            raise ValueError("clip_low and clip_high go together; set both or neither")

    def difference(self, batch: DiffusionBatch) -> Tensor:
        """d of eq. 10, with the departures that act on it. (B, n)."""
        d = batch.terms - batch.old_terms
        if self.length_normalise == "response":
            d = d / batch.mask.sum(-1, keepdim=True).clamp(min=1)
        elif self.length_normalise == "canvas":
            d = d / batch.canvas_length
        return d if self.d_clamp is None else d.clamp(-self.d_clamp, self.d_clamp)

    def losses(self, batch: DiffusionBatch) -> Tensor:  # (B,)
        advantages = batch.advantages.unsqueeze(1)
        d = self.difference(batch)
        gain = bgpo_terms(d, torch.zeros_like(d), batch.advantages) * (d.shape[1] / batch.num_passes)
        if self.clip_low is not None and self.clip_high is not None:
            held = bgpo_ratio(d, advantages).clamp(1 - self.clip_low, 1 + self.clip_high)
            gain = torch.minimum(gain, held * advantages / batch.num_passes)
        if self.dual_clip is not None:
            floor = self.dual_clip * advantages / batch.num_passes
            gain = torch.where(advantages < 0, torch.maximum(gain, floor), gain)
        return -gain.sum(1)

    def ratio_bounds(self) -> tuple[float, float] | None:
        if self.clip_low is None or self.clip_high is None:
            return None
        return 1 - self.clip_low, 1 + self.clip_high

    def measures(self, batch: DiffusionBatch) -> dict[str, tuple[Tensor, Tensor]]:
        """bound_gap, how far the bound lies below the objective a response; held, the share of passes whose
        exponential was held at the dtype's limit; clamped, the share that d_clamp touched."""
        d = batch.terms - batch.old_terms
        count = d.new_tensor(float(d.shape[0]))
        objective = batch.advantages * bounded_exp(d.mean(1))
        gap = objective - bgpo_terms(batch.terms, batch.old_terms, batch.advantages).sum(1)
        held = (d > exp_limit(d.dtype)) & (batch.advantages < 0).unsqueeze(1)
        found = {"bound_gap": (gap.sum(), count), "held": (held.sum(), count * d.shape[1])}
        if self.d_clamp is not None:
            clamped = self.difference(batch).abs() >= self.d_clamp
            found["clamped"] = (clamped.sum(), count * d.shape[1])
        return found
