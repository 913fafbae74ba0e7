"""REINFORCE with a group baseline. Williams 1992, https://doi.org/10.1007/BF00992696

Against GRPO: no standard deviation in the advantage and no clip on the ratio. On stale samples the ratio
weighs the token (an importance-weighted REINFORCE); on fresh ones it is 1 and the gradient is -A grad log pi.
Departures: every response weighs the same (`per_response`), so that it differs from GRPO in the two points
above alone. `baseline: none` is A = R, the form CAPO's authors call ReinCAPO.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.objectives.base import Groups, Objective, StepTotals, TokenBatch
from posttrain.ops.groups import group_centered
from posttrain.ops.ratio import token_ratio
from posttrain.ops.reduce import per_response
from posttrain.ops.surrogate import importance_surrogate


@dataclass(frozen=True)
class REINFORCE(Objective):
    baseline: Literal["group", "none"] = "group"
    """subtracted from the reward: the mean of its group, or nothing"""

    @property
    def learns_from_equal(self) -> str | None:
        return "with baseline none the reward itself is the advantage" if self.baseline == "none" else None

    def advantages(self, groups: Groups) -> dict[str, Tensor]:
        if self.baseline == "group":
            return {"advantages": group_centered(groups.rewards)}
        return {"advantages": torch.where(groups.rewards.isnan(), 0.0, groups.rewards)}

    def token_loss(self, batch: TokenBatch) -> Tensor:  # (B, T)
        return importance_surrogate(token_ratio(batch.logprobs, batch.old_logprobs), batch.advantages)

    def reduce(self, losses: Tensor, mask: Tensor, totals: StepTotals) -> Tensor:  # ()
        return per_response(losses, mask, totals.num_responses)
