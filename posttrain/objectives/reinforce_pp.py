"""REINFORCE++. Hu et al. 2025, https://arxiv.org/abs/2501.03262

Against GRPO: advantages are normalised over the whole rollout batch, every token counting once, instead of within each
group, whose mean and standard deviation hang together with the reward they normalise. Two variants:

    baseline "none"   A_t = R - beta sum_{s >= t} (log pi_old - log pi_ref)_s   the KL penalty belongs to the reward
    baseline "group"  A   = R - mean of its group                               the KL penalty is a term of the loss

each then minus its mean over the batch, over its standard deviation. The loss is PPO's, clipped, a mean over tokens.
Departures: the first variant is meant for one response per prompt; rollouts here have at least two. In the second the
KL term of the loss is the trainer's (k3 times the ratio) where the paper has k2; on fresh samples the expected gradient
of both is that of the reverse KL.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Lt
from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.objectives.base import Groups, Objective, StepTotals, TokenBatch
from posttrain.ops.groups import group_centered
from posttrain.ops.ratio import token_ratio
from posttrain.ops.reduce import per_token
from posttrain.ops.surrogate import clipped_surrogate

VARIANCE_FLOOR = 1e-8
"""Lowest variance that is divided by, as in the authors' OpenRLHF."""


def penalised_returns(rewards: Tensor, kl: Tensor, beta: float) -> Tensor:
    """The reward minus beta times the KL from each token to the end. (P, G), (P, G, T) -> (P, G, T)."""
    still_to_come = kl.flip(2).cumsum(2).flip(2)
    return rewards.unsqueeze(2) - beta * still_to_come


def batch_normalised(values: Tensor, counts: Tensor) -> Tensor:
    """Values minus their mean over their standard deviation, both over the batch. Same shape; 0 where NaN.

    counts  how often each value counts: the tokens it stands for, 0 behind a response's end
    """
    judged = ~values.isnan()
    known, counts = torch.where(judged, values, 0.0), torch.where(judged, counts.to(values), 0.0)
    total = counts.sum().clamp(min=1.0)
    centred = known - (known * counts).sum() / total
    variance = (centred.square() * counts).sum() / total
    return torch.where(judged, centred * variance.clamp(min=VARIANCE_FLOOR).rsqrt(), 0.0)


@dataclass(frozen=True)
class REINFORCEPlusPlus(Objective):
    divides_by_tokens: ClassVar[bool] = True

    baseline: Literal["none", "group"] = "none"
    """subtracted before normalising: nothing (the KL is in the reward), or the mean of the group (it is in the loss)"""
    clip_low: Annotated[float, Ge(0), Lt(1)] = 0.2
    """epsilon below 1"""
    clip_high: Annotated[float, Ge(0)] = 0.2
    """epsilon above 1"""

    @property
    def kl_in_reward(self) -> bool:
        return self.baseline == "none"

    @property
    def learns_from_equal(self) -> str | None:
        return "with baseline none rewards are compared over the batch" if self.baseline == "none" else None

    def advantages(self, groups: Groups) -> dict[str, Tensor]:
        rewards = groups.rewards
        lengths = groups.lengths if groups.written is None else groups.written
        if self.baseline == "group":
            rewards = torch.where(rewards.isnan(), rewards, group_centered(rewards))
        counts = torch.ones_like(rewards) if lengths is None else lengths.to(rewards)
        if self.baseline == "group" or groups.token_kl is None:
            return {"advantages": batch_normalised(rewards, counts)}
        returns = penalised_returns(rewards, groups.token_kl, groups.beta)
        inside = torch.arange(returns.size(2), device=returns.device) < counts.unsqueeze(2)
        inside = inside if groups.mask is None else groups.mask.bool()  # tools wrote in between
        return {"advantages": batch_normalised(returns, inside) * inside}

    def token_loss(self, batch: TokenBatch) -> Tensor:  # (B, T)
        ratio = token_ratio(batch.logprobs, batch.old_logprobs)
        return clipped_surrogate(ratio, batch.advantages, 1 - self.clip_low, 1 + self.clip_high)

    def clip_bounds(self, batch: TokenBatch) -> tuple[float, float]:
        return 1 - self.clip_low, 1 + self.clip_high

    def reduce(self, losses: Tensor, mask: Tensor, totals: StepTotals) -> Tensor:  # ()
        return per_token(losses, mask, totals.num_tokens)
