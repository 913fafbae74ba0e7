"""DPO. Rafailov et al. 2023, https://arxiv.org/abs/2305.18290

The ground the other pair losses stand on: a logistic loss on the difference of the two answers' log-ratios to
the reference (eq. 7).
Departures: none.
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import logsigmoid

from posttrain.preferences.base import PairBatch, PairLoss


def dpo_loss(
    *,
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float,
) -> Tensor:
    """-log sigma(beta * [log-ratio of the chosen - log-ratio of the rejected]) (eq. 7). (B,) each -> (B,)."""
    difference = (chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps)
    return -logsigmoid(beta * difference)


@dataclass(frozen=True)
class DPO(PairLoss):
    """DPO; `beta` is the trainer's."""

    def pair_loss(self, batch: PairBatch) -> Tensor:
        return dpo_loss(
            chosen_logps=batch.chosen_logps,
            rejected_logps=batch.rejected_logps,
            ref_chosen_logps=batch.ref_chosen_logps,
            ref_rejected_logps=batch.ref_rejected_logps,
            beta=batch.beta,
        )
