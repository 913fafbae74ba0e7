"""CISPO. MiniMax 2025 (MiniMax-M1), https://arxiv.org/abs/2506.13585

Against DAPO: what is clipped is the importance weight, not the loss, and it is a constant (eq. 4): a token
outside the range keeps its gradient at the capped weight.
Departures: the cap is an absolute ratio, as in TRL. The paper tunes the upper bound alone and prints no
value; 5.0 is the one TRL documents for ScaleRL (https://arxiv.org/abs/2510.13786).
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from annotated_types import Gt
from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.objectives.base import Groups, Objective, StepTotals, TokenBatch
from posttrain.ops.groups import Scale, scaled_advantages
from posttrain.ops.ratio import token_ratio
from posttrain.ops.reduce import per_token
from posttrain.ops.surrogate import clipped_weight_loss


@dataclass(frozen=True)
class CISPO(Objective):
    divides_by_tokens: ClassVar[bool] = True
    settings_in_trl: ClassVar[dict[str, str]] = {
        "epsilon_high": "ratio_max"
    }  # there an absolute ratio, as here

    ratio_max: Annotated[float, Gt(0)] = 5.0
    """1 + epsilon_high^IS: a bound, not an epsilon"""
    scale: Scale = "group"
    """whose standard deviation divides the advantage"""

    def advantages(self, groups: Groups) -> dict[str, Tensor]:
        return {"advantages": scaled_advantages(groups.rewards, self.scale)}

    def token_loss(self, batch: TokenBatch) -> Tensor:  # (B, T)
        ratio = token_ratio(batch.logprobs, batch.old_logprobs)
        return clipped_weight_loss(ratio, batch.logprobs, batch.advantages, self.ratio_max)

    def clip_bounds(self, batch: TokenBatch) -> tuple[float, float]:
        return 0.0, self.ratio_max

    def reduce(self, losses: Tensor, mask: Tensor, totals: StepTotals) -> Tensor:  # ()
        return per_token(losses, mask, totals.num_tokens)
