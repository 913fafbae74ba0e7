"""GRPO. Shao et al. 2024 (DeepSeekMath), https://arxiv.org/abs/2402.03300

Against PPO: the baseline is the mean reward of the group (eq. 3, with outcome supervision, 4.1.2), so there
is no critic; every response weighs the same, whatever its length.
Departures: the KL term is the trainer's (train.beta) and off by default; the standard deviation is the
sample's plus 1e-4, as in TRL.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Lt
from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.objectives.base import Groups, Objective, StepTotals, TokenBatch
from posttrain.ops.groups import Scale, scaled_advantages
from posttrain.ops.ratio import token_ratio
from posttrain.ops.reduce import per_response
from posttrain.ops.surrogate import clipped_surrogate, dual_clip


@dataclass(frozen=True)
class GRPO(Objective):
    clip_low: Annotated[float, Ge(0), Lt(1)] = 0.2
    """epsilon below 1"""
    clip_high: Annotated[float, Ge(0)] = 0.2
    """epsilon above 1"""
    scale: Scale = "group"
    """whose standard deviation divides the advantage"""
    dual_clip: Annotated[float, Gt(1)] | None = None
    """c of dual-clip PPO (a bound), for negative advantages; off"""

    def advantages(self, groups: Groups) -> dict[str, Tensor]:
        return {"advantages": scaled_advantages(groups.rewards, self.scale)}

    def token_loss(self, batch: TokenBatch) -> Tensor:  # (B, T)
        ratio = token_ratio(batch.logprobs, batch.old_logprobs)
        losses = clipped_surrogate(ratio, batch.advantages, 1 - self.clip_low, 1 + self.clip_high)
        return losses if self.dual_clip is None else dual_clip(losses, batch.advantages, self.dual_clip)

    def clip_bounds(self, batch: TokenBatch) -> tuple[float, float]:
        return 1 - self.clip_low, 1 + self.clip_high

    def reduce(self, losses: Tensor, mask: Tensor, totals: StepTotals) -> Tensor:  # ()
        return per_response(losses, mask, totals.num_responses)
