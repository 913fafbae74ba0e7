"""BNPO, Beta-normalised advantages. 2025, https://arxiv.org/abs/2506.02864

Against GRPO: the centred reward is divided by a Beta density of the prompt's success rate, fitted to the
rates of the whole rollout batch, instead of by the group's standard deviation. Among such divisors it gives
the smallest variance of the estimator; REINFORCE with a group baseline is Beta(1, 1), GRPO up to a constant
Beta(3/2, 3/2). Not TRL's `loss_type: bnpo`, which is a token mean and knows no Beta distribution.
Departures: none by default; `match_scale` is ours. Cases in which the released code fails (see `fit_beta`) fall
back to Beta(1, 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Lt
from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.objectives.base import Groups, Objective, StepTotals, TokenBatch
from posttrain.ops.groups import group_zscore
from posttrain.ops.ratio import token_ratio
from posttrain.ops.reduce import per_response, per_response_sum, per_token
from posttrain.ops.surrogate import clipped_surrogate, dual_clip
from posttrain.settings import Pair, Start

WEIGHT_LIMIT = 1e6
"""Cap of 1 / density, as released: the density is 0 at success rates 0 and 1."""
MIN_VARIANCE = 1e-12
"""Below it all success rates are equal but for rounding, and nothing can be fitted."""
RANGE_TOLERANCE = 1e-6

Range = tuple[float, float]


def fit_beta(success_rates: Tensor) -> tuple[Tensor, Tensor]:
    """The normaliser's (alpha, beta) for prompts with these success rates. (P,) in [0, 1] -> (), ().

    Method of moments for rates ~ Beta(a, b) (sample variance, divisor P - 1), then the variance-minimising
    alpha = max(1, 1 + a/3), beta = max(1, 1 + b/3). NaN rates (nothing judged) are left out. (1, 1) where
    nothing can be fitted: fewer than two prompts, equal rates, or more spread than any Beta distribution of
    that mean has.
    """
    rates = success_rates.double()
    known = ~rates.isnan()
    count = known.sum()
    mean = torch.where(known, rates, 0.0).sum() / count.clamp(min=1)
    variance = torch.where(known, (rates - mean).square(), 0.0).sum() / (count - 1).clamp(min=1)
    fitted = variance > MIN_VARIANCE  # false for a single prompt too
    concentration = mean * (1 - mean) / torch.where(fitted, variance, 1.0) - 1  # a + b
    alpha, beta = 1 + concentration * mean / 3, 1 + concentration * (1 - mean) / 3
    alpha, beta = (torch.where(fitted, value.clamp(min=1.0), 1.0) for value in (alpha, beta))
    return alpha.to(success_rates.dtype), beta.to(success_rates.dtype)


def success_rates(rewards: Tensor, reward_range: Range = (0.0, 1.0)) -> Tensor:
    """Mean judged reward of each group, mapped to [0, 1]; NaN where none was judged. (P, G) -> (P,)."""
    lowest, highest = reward_range
    # clamp: a mean of rewards at the range's end may round past it, where the density is undefined
    return ((rewards - lowest) / (highest - lowest)).nanmean(dim=1).clamp(0.0, 1.0)


def beta_weights(rates: Tensor, alpha: Tensor | float, beta: Tensor | float) -> Tensor:
    """1 / Beta(alpha, beta) density of each success rate, at most 1e6. (P,) -> (P,)."""
    rates = rates.double()
    alpha, beta = (torch.as_tensor(v, dtype=rates.dtype, device=rates.device) for v in (alpha, beta))
    log_norm = torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(alpha + beta)
    # xlogy: 0 * log 0 is 0, so that Beta(1, 1) weighs every rate 1, and anything else gives -inf, not NaN
    log_density = torch.xlogy(alpha - 1, rates) + torch.xlogy(beta - 1, 1 - rates) - log_norm
    return torch.exp((-log_density).clamp(max=math.log(WEIGHT_LIMIT)))


def beta_normalized_advantages(
    rewards: Tensor,
    *,
    reward_range: Range = (0.0, 1.0),
    alpha: float | Tensor | None = None,
    beta: float | Tensor | None = None,
) -> Tensor:
    """Advantages (R - p) / f(p; alpha, beta), p the group's success rate and f a Beta density. (P, G) -> (P,
    G).

    `rewards` are those of the whole rollout batch; `reward_range` is mapped to [0, 1] first. What is None of
    alpha and beta is fitted (`fit_beta`). NaN rewards (unjudged) get 0 and enter no mean. ValueError for G =
    1 and for rewards outside the range.
    """
    _check(rewards, reward_range)
    lowest, highest = reward_range
    scaled = (rewards.double() - lowest) / (highest - lowest)
    rates = success_rates(rewards.double(), reward_range)
    fitted = fit_beta(rates)
    weights = beta_weights(
        rates, fitted[0] if alpha is None else alpha, fitted[1] if beta is None else beta
    ).unsqueeze(1)
    judged = ~rewards.isnan()
    low = torch.where(judged, scaled, torch.inf).amin(dim=1, keepdim=True)
    high = torch.where(judged, scaled, -torch.inf).amax(dim=1, keepdim=True)
    # groups of equal rewards are set to 0 outright: weights near 1e6 would multiply the rounding noise of R - p
    informative = judged & (high > low)
    centred = torch.where(informative, scaled - rates.unsqueeze(1), 0.0)
    # rewards of 0 and 1 may come as integers, which advantages must not become
    kind = rewards.dtype if rewards.is_floating_point() else torch.get_default_dtype()
    return torch.where(informative, weights * centred, 0.0).to(kind)


def match_scale(advantages: Tensor, rewards: Tensor) -> Tensor:
    """Advantages times the one factor that makes their root mean square that of GRPO's. (P, G), (P, G) -> (P, G).

    So a learning rate, a KL coefficient and a gradient clip mean for them what they mean for GRPO, and what is left
    of the method is how groups weigh against each other. Zeros stay.
    """
    wanted, found = (values.double().square().sum().sqrt() for values in (group_zscore(rewards), advantages))
    factor = torch.where(found > 0, wanted / torch.where(found > 0, found, 1.0), 1.0)
    return (advantages * factor).to(advantages.dtype)


def _check(rewards: Tensor, reward_range: Range) -> None:
    lowest, highest = reward_range
    if not lowest < highest:
        raise ValueError(f"BNPO: reward_range = {tuple(reward_range)} must be (lowest, highest)")
    if rewards.size(1) < 2:
        raise ValueError("BNPO: one response per prompt has no success rate; use a group size of at least 2")
    slack = RANGE_TOLERANCE * (highest - lowest)
    if ((rewards < lowest - slack) | (rewards > highest + slack)).any():
        raise ValueError(
            f"BNPO: rewards outside reward_range = {tuple(reward_range)}; set it to the lowest and highest the "
            "weighted sum can be, or set decompose to normalise each reward function by itself"
        )


@dataclass(frozen=True)
class BNPO(Objective):
    is_trls_loss: ClassVar[bool] = False  # that one is a token mean
    panels: ClassVar[Mapping[str, tuple[tuple[str, str], ...]]] = {
        "Beta fit of the success rates": (("alpha", "alpha"), ("beta", "beta"))
    }

    reward_range: Pair = (0.0, 1.0)
    """mapped to [0, 1]; of each function if `decompose`"""
    decompose: bool = False
    """A = plain mean over reward functions of A^(k); weights unused"""
    fixed_shape: Pair | None = None
    """(alpha, beta) instead of the fit"""
    aggregate: Literal["per_response_sum", "per_response", "per_token"] = "per_response_sum"
    """as released"""
    match_scale: bool = False
    """one factor a rollout makes the advantages' root mean square GRPO's; ours"""
    clip_low: Annotated[float, Ge(0), Lt(1)] = 0.2
    """epsilon below 1"""
    clip_high: Annotated[float, Ge(0)] = 0.28
    """epsilon above 1"""
    dual_clip: Annotated[float, Gt(1)] | None = 10.0
    """c of dual-clip PPO, a bound; for A < 0"""

    def __post_init__(self) -> None:
        lowest, highest = self.reward_range
        if not lowest < highest:
            raise ValueError(f"BNPO: reward_range = {self.reward_range} must be (lowest, highest)")
        if self.fixed_shape is not None and min(self.fixed_shape) <= 0:
            raise ValueError(
                f"BNPO: fixed_shape = {self.fixed_shape} must be two numbers above 0, (alpha, beta)"
            )

    @classmethod
    def start(cls, *, model: str, rewards: tuple[float, float] | None) -> Mapping[str, Start]:
        return {} if rewards is None else {"reward_range": Start(list(rewards))}

    @property
    def reads_each_reward(self) -> bool:
        return self.decompose

    @property
    def divides_by_tokens(self) -> bool:
        return self.aggregate == "per_token"

    def advantages(self, groups: Groups) -> dict[str, Tensor]:
        parts = [self._normalized(rewards) for rewards in self._sources(groups)]
        advantages = torch.where(groups.rewards.isnan(), 0.0, torch.stack(parts).mean(dim=0))
        return {"advantages": match_scale(advantages, groups.rewards) if self.match_scale else advantages}

    def rollout_metrics(self, groups: Groups) -> dict[str, Tensor]:
        """The fit and what it does; with `decompose`, means over the reward functions.

        success_mean, success_variance   over prompts (divisor P - 1)
        alpha, beta                      of the normaliser
        weight_max                       largest 1 / density among groups with a spread of rewards
        weight_capped                    share of the groups whose weight is at the cap of 1e6
        fallback                         1 where Beta(1, 1) had to stand in for the fit
        """
        parts = [self._statistics(rewards) for rewards in self._sources(groups)]
        return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}

    def token_loss(self, batch: TokenBatch) -> Tensor:  # (B, T)
        ratio = token_ratio(batch.logprobs, batch.old_logprobs)
        losses = clipped_surrogate(ratio, batch.advantages, 1 - self.clip_low, 1 + self.clip_high)
        return losses if self.dual_clip is None else dual_clip(losses, batch.advantages, self.dual_clip)

    def clip_bounds(self, batch: TokenBatch) -> tuple[float, float]:
        return 1 - self.clip_low, 1 + self.clip_high

    def reduce(self, losses: Tensor, mask: Tensor, totals: StepTotals) -> Tensor:  # ()
        if self.aggregate == "per_token":
            return per_token(losses, mask, totals.num_tokens)
        by_response = per_response if self.aggregate == "per_response" else per_response_sum
        return by_response(losses, mask, totals.num_responses)

    def _sources(self, groups: Groups) -> list[Tensor]:
        return list(groups.rewards_per_function.unbind(dim=-1)) if self.decompose else [groups.rewards]

    def _normalized(self, rewards: Tensor) -> Tensor:
        alpha, beta = self.fixed_shape or (None, None)
        return beta_normalized_advantages(rewards, reward_range=self.reward_range, alpha=alpha, beta=beta)

    def _statistics(self, rewards: Tensor) -> dict[str, Tensor]:
        rates = success_rates(rewards.double(), self.reward_range)
        known = rates[~rates.isnan()]
        if self.fixed_shape is None:
            alpha, beta = fit_beta(rates)
            fallback = ((alpha == 1) & (beta == 1)).double()
        else:
            alpha, beta = rates.new_tensor(self.fixed_shape).unbind()
            fallback = torch.zeros_like(alpha)
        weights = beta_weights(rates, alpha, beta)
        spread = (rates > 0) & (rates < 1)
        return {
            "success_mean": known.mean(),
            "success_variance": known.var() if known.numel() > 1 else rates.new_zeros(()),
            "alpha": alpha,
            "beta": beta,
            "weight_max": torch.where(spread, weights, 0.0).max(),
            "weight_capped": (weights >= WEIGHT_LIMIT * (1 - 1e-9)).double().mean(),
            "fallback": fallback,
        }
