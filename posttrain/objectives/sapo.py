"""SAPO. Gao et al. 2025, https://arxiv.org/abs/2511.20347

Against GRPO: no clip. A sigmoid of the token's ratio stands where the clipped ratio stood, so that a token's gradient
fades as its ratio leaves 1 and is never cut off; for negative advantages it fades faster. The derivative in a token's
log-prob is -w A with w = 4 p (1 - p) r, p = sigmoid(tau (r - 1)): 1 at ratio r = 1 for any temperature.
Departures: an advantage of zero counts with the negative ones, as in TRL; it has no gradient either way.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from annotated_types import Gt
from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.objectives.base import Groups, Objective, StepTotals, TokenBatch
from posttrain.ops.groups import Scale, scaled_advantages
from posttrain.ops.ratio import token_ratio
from posttrain.ops.reduce import per_response
from posttrain.ops.surrogate import soft_gated_surrogate


@dataclass(frozen=True)
class SAPO(Objective):
    settings_in_trl: ClassVar[dict[str, str]] = {
        "sapo_temperature_pos": "gate_positive",
        "sapo_temperature_neg": "gate_negative",
    }

    gate_positive: Annotated[float, Gt(0)] = 1.0
    """tau_pos, the gate's temperature where the advantage is positive: the higher, the faster a gradient fades"""
    gate_negative: Annotated[float, Gt(0)] = 1.05
    """tau_neg, where it is negative; above tau_pos, as the paper advises"""
    scale: Scale = "group"
    """whose standard deviation divides the advantage"""

    def advantages(self, groups: Groups) -> dict[str, Tensor]:
        return {"advantages": scaled_advantages(groups.rewards, self.scale)}

    def token_loss(self, batch: TokenBatch) -> Tensor:  # (B, T)
        ratio = token_ratio(batch.logprobs, batch.old_logprobs)
        temperature = torch.where(batch.advantages > 0, self.gate_positive, self.gate_negative).to(ratio)
        return soft_gated_surrogate(ratio, batch.advantages, temperature)

    def reduce(self, losses: Tensor, mask: Tensor, totals: StepTotals) -> Tensor:  # ()
        return per_response(losses, mask, totals.num_responses)
