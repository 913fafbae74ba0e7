"""GSPO. Zheng et al. 2025, https://arxiv.org/abs/2507.18071

Against GRPO: one importance ratio per response, the geometric mean of its tokens' ratios (eq. 7), and so one
clip a response (eq. 5). Its ratios live near one: the paper's clip range is three orders of magnitude below
GRPO's.
Departures: none. The token-level variant (GSPO-token) is not built.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Lt
from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.objectives.base import Groups, Objective, StepTotals, TokenBatch
from posttrain.ops.groups import Scale, scaled_advantages
from posttrain.ops.ratio import sequence_ratio
from posttrain.ops.reduce import per_response
from posttrain.ops.surrogate import clipped_surrogate, dual_clip


@dataclass(frozen=True)
class GSPO(Objective):
    ratio_per_token: ClassVar[bool] = False
    built_in: ClassVar[dict[str, str]] = {"importance_sampling_level": "sequence"}

    clip_low: Annotated[float, Ge(0), Lt(1)] = 3e-4
    """epsilon below 1, section 5.1"""
    clip_high: Annotated[float, Ge(0)] = 4e-4
    """epsilon above 1, section 5.1"""
    scale: Scale = "group"
    """whose standard deviation divides the advantage"""
    dual_clip: Annotated[float, Gt(1)] | None = None
    """c of dual-clip PPO (a bound), for negative advantages; off"""

    def advantages(self, groups: Groups) -> dict[str, Tensor]:
        return {"advantages": scaled_advantages(groups.rewards, self.scale)}

    def ratio(self, batch: TokenBatch) -> Tensor:  # (B, 1)
        return sequence_ratio(batch.logprobs, batch.old_logprobs, batch.mask)

    def token_loss(self, batch: TokenBatch) -> Tensor:  # (B, 1), or (B, T) where the advantages are
        losses = clipped_surrogate(self.ratio(batch), batch.advantages, 1 - self.clip_low, 1 + self.clip_high)
        return losses if self.dual_clip is None else dual_clip(losses, batch.advantages, self.dual_clip)

    def clip_bounds(self, batch: TokenBatch) -> tuple[float, float]:
        return 1 - self.clip_low, 1 + self.clip_high

    def reduce(self, losses: Tensor, mask: Tensor, totals: StepTotals) -> Tensor:  # ()
        return per_response(losses, mask, totals.num_responses)
