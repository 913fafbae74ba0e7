"""GDPO. Liu et al. 2026, https://arxiv.org/abs/2601.05242

Against GRPO: with several rewards, each is normalised within its group by itself, then they are weighted and summed,
and the sums are divided by their standard deviation over the batch. Summed first, as GRPO does, different combinations
of rewards (1 and 0, 0 and 1) get the same advantage, and the reward with the larger spread drowns the others.
Departures: the mean over the batch is not subtracted, because it is zero: every normalised reward sums to zero over its
group. The loss is GRPO's; the KL term is the trainer's (train.beta), as for every method.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.objectives.base import Groups, Objective, StepTotals, TokenBatch
from posttrain.ops.groups import STD_EPSILON, group_zscore, nan_std
from posttrain.ops.ratio import token_ratio
from posttrain.ops.reduce import per_response
from posttrain.ops.surrogate import clipped_surrogate, dual_clip
from posttrain.settings import RunView


def decoupled_advantages(rewards: Tensor, weights: Tensor) -> Tensor:
    """Each reward over its own group, weighted, summed, over the batch. (P, G, K), (K,) -> (P, G).

    A reward that did not judge a response (NaN) adds nothing to it; a response that none judged gets 0 and
    counts nowhere.
    """
    each = torch.stack([group_zscore(one) for one in rewards.unbind(2)], dim=2)  # 0 where NaN
    total = (each * weights).sum(2)
    judged = ~rewards.isnan().all(2)
    spread = nan_std(torch.where(judged, total, torch.nan))
    return torch.where(judged, total / (spread + STD_EPSILON), 0.0)


@dataclass(frozen=True)
class GDPO(Objective):
    built_in: ClassVar[dict[str, str]] = {"multi_objective_aggregation": "normalize_then_sum"}

    clip_low: Annotated[float, Ge(0), Lt(1)] = 0.2
    """epsilon below 1"""
    clip_high: Annotated[float, Ge(0)] = 0.2
    """epsilon above 1"""
    dual_clip: Annotated[float, Gt(1)] | None = None
    """c of dual-clip PPO (a bound), for negative advantages; off"""

    @property
    def reads_each_reward(self) -> bool:
        return True

    def warnings(self, run: RunView) -> Iterator[str]:
        if run.rewards == 1:
            yield (
                f"rewards: with one reward method '{run.method}' is GRPO with a second division, by the spread of the "
                "batch; give two or more, or take grpo"
            )

    def advantages(self, groups: Groups) -> dict[str, Tensor]:
        return {"advantages": decoupled_advantages(groups.rewards_per_function, groups.weights)}

    def token_loss(self, batch: TokenBatch) -> Tensor:  # (B, T)
        ratio = token_ratio(batch.logprobs, batch.old_logprobs)
        losses = clipped_surrogate(ratio, batch.advantages, 1 - self.clip_low, 1 + self.clip_high)
        return losses if self.dual_clip is None else dual_clip(losses, batch.advantages, self.dual_clip)

    def clip_bounds(self, batch: TokenBatch) -> tuple[float, float]:
        return 1 - self.clip_low, 1 + self.clip_high

    def reduce(self, losses: Tensor, mask: Tensor, totals: StepTotals) -> Tensor:  # ()
        return per_response(losses, mask, totals.num_responses)
