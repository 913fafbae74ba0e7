"""DAPO. Yu et al. 2025, https://arxiv.org/abs/2503.14476

Against GRPO: the upper clip is looser than the lower (section 3.1, clip-higher), and every token of the step
weighs the same (3.3, token-level loss).
Departures: none in the loss. Dynamic sampling (3.2) belongs to the rollout (`rollout.resample`) and the soft
overlong punishment (3.4) to the rewards (`length_penalty`).
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Lt
from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.objectives.base import Groups, Objective, StepTotals, TokenBatch
from posttrain.ops.groups import Scale, scaled_advantages
from posttrain.ops.ratio import token_ratio
from posttrain.ops.reduce import per_token
from posttrain.ops.surrogate import clipped_surrogate, dual_clip


@dataclass(frozen=True)
class DAPO(Objective):
    divides_by_tokens: ClassVar[bool] = True

    clip_low: Annotated[float, Ge(0), Lt(1)] = 0.2
    """epsilon_low"""
    clip_high: Annotated[float, Ge(0)] = 0.28
    """epsilon_high"""
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
        return per_token(losses, mask, totals.num_tokens)
