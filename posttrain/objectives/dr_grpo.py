"""Dr.GRPO. Liu et al. 2025, https://arxiv.org/abs/2503.20783

Against GRPO: the advantage is not divided by the group's standard deviation (no bias towards easy and hard
prompts), and token losses are divided by a constant instead of the response's own length (no bias towards
long wrong answers); section 3.2. The constant is the rollout's length limit, as in the released code.
Departures: none.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Lt
from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.objectives.base import Groups, Objective, StepTotals, TokenBatch
from posttrain.ops.groups import group_centered
from posttrain.ops.ratio import token_ratio
from posttrain.ops.reduce import per_constant
from posttrain.ops.surrogate import clipped_surrogate, dual_clip


@dataclass(frozen=True)
class DrGRPO(Objective):
    built_in: ClassVar[dict[str, str]] = {"scale_rewards": "none"}

    clip_low: Annotated[float, Ge(0), Lt(1)] = 0.2
    """epsilon below 1"""
    clip_high: Annotated[float, Ge(0)] = 0.2
    """epsilon above 1"""
    dual_clip: Annotated[float, Gt(1)] | None = None
    """c of dual-clip PPO (a bound), for negative advantages; off"""

    def advantages(self, groups: Groups) -> dict[str, Tensor]:
        return {"advantages": group_centered(groups.rewards)}

    def token_loss(self, batch: TokenBatch) -> Tensor:  # (B, T)
        ratio = token_ratio(batch.logprobs, batch.old_logprobs)
        losses = clipped_surrogate(ratio, batch.advantages, 1 - self.clip_low, 1 + self.clip_high)
        return losses if self.dual_clip is None else dual_clip(losses, batch.advantages, self.dual_clip)

    def clip_bounds(self, batch: TokenBatch) -> tuple[float, float]:
        return 1 - self.clip_low, 1 + self.clip_high

    def reduce(self, losses: Tensor, mask: Tensor, totals: StepTotals) -> Tensor:  # ()
        return per_constant(losses, mask, totals.num_responses, totals.max_completion_length)
