"""RLOO. Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740

REINFORCE on whole responses, with the mean reward of the other responses to the same prompt as the baseline of each
(section 3.3): A_i = R_i - 1/(G-1) sum_{j != i} R_j, which is G/(G-1) times the distance to the group's mean, and the
gradient -1/B sum_i A_i grad log pi(y_i | x_i), log-probs summed over the response, not averaged.

On stale samples the probability ratio of the whole response weighs it, as in TRL's RLOOTrainer; on fresh ones it is 1.
Departures: no clip unless `clip` is set (TRL: 0.2; the paper has none). The paper takes beta KL off the reward of a
response; here `train.beta` is a KL term of the loss (k3, mean over tokens), as for every method.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt, Lt
from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.objectives.base import Groups, Objective, StepTotals, TokenBatch
from posttrain.ops.ratio import LOG_RATIO_LIMIT
from posttrain.ops.reduce import per_response
from posttrain.ops.surrogate import clipped_surrogate, importance_surrogate
from posttrain.settings import RunView


def leave_one_out(rewards: Tensor) -> Tensor:
    """Each reward minus the mean of the others of its group. (P, G) -> (P, G).

    NaN is no reward: it enters no mean and gets 0, and so does a response that alone was judged.
    """
    judged = ~rewards.isnan()
    others = judged.sum(dim=1, keepdim=True) - 1
    known = torch.where(judged, rewards, 0.0)
    baseline = (known.sum(dim=1, keepdim=True) - known) / others.clamp(min=1)
    return torch.where(judged & (others > 0), rewards - baseline, 0.0)


@dataclass(frozen=True)
class RLOO(Objective):
    ratio_per_token: ClassVar[bool] = False

    clip: Annotated[float, Gt(0), Lt(1)] | None = None
    """epsilon on either side of the response's ratio; off"""

    def faults(self, run: RunView) -> Iterator[str]:
        if run.rollout.group_size < 2:
            yield (
                f"rollout: group_size {run.rollout.group_size} leaves method '{run.method}' no other response for a "
                "baseline; set 2 or more"
            )

    def advantages(self, groups: Groups) -> dict[str, Tensor]:
        return {"advantages": leave_one_out(groups.rewards)}

    def ratio(self, batch: TokenBatch) -> Tensor:  # (B, 1)
        log_ratio = ((batch.logprobs - batch.old_logprobs) * batch.mask).sum(dim=1, keepdim=True)
        return torch.exp(log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))

    def token_loss(self, batch: TokenBatch) -> Tensor:  # (B, 1), or (B, T) where the advantages are
        if self.clip is None:
            return importance_surrogate(self.ratio(batch), batch.advantages)
        return clipped_surrogate(self.ratio(batch), batch.advantages, 1 - self.clip, 1 + self.clip)

    def clip_bounds(self, batch: TokenBatch) -> tuple[float, float] | None:
        return None if self.clip is None else (1 - self.clip, 1 + self.clip)

    def reduce(self, losses: Tensor, mask: Tensor, totals: StepTotals) -> Tensor:  # ()
        # one loss per response, the same at each of its tokens: the mean over them is that loss
        return per_response(losses, mask, totals.num_responses)
