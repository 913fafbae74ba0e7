"""IPO. Azar et al. 2023, https://arxiv.org/abs/2310.12036

Against DPO: the difference of log-ratios is driven to 1/(2*beta) by a square (eq. 17; beta is the paper's
tau) instead of for ever upwards by a logistic, so a pair that is already apart stops pulling.
Departures: log-ratios are averaged over the answer's tokens, as the released implementations do; the paper
writes sums, which make the target depend on length.
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.preferences.base import PairBatch, PairLoss


def ipo_loss(
    *,
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float,
) -> Tensor:
    """(token-mean log-ratio, chosen - rejected, - 1/(2 beta))^2 (eq. 17). (B,) each -> (B,)."""
    chosen = (chosen_logps - ref_chosen_logps) / chosen_lengths.clamp(min=1)
    rejected = (rejected_logps - ref_rejected_logps) / rejected_lengths.clamp(min=1)
    return (chosen - rejected - 1 / (2 * beta)) ** 2


@dataclass(frozen=True)
class IPO(PairLoss):
    """IPO; `beta` is the trainer's and plays the paper's tau."""

    def pair_loss(self, batch: PairBatch) -> Tensor:
        return ipo_loss(
            chosen_logps=batch.chosen_logps,
            rejected_logps=batch.rejected_logps,
            ref_chosen_logps=batch.ref_chosen_logps,
            ref_rejected_logps=batch.ref_rejected_logps,
            chosen_lengths=batch.chosen_lengths,
            rejected_lengths=batch.rejected_lengths,
            beta=batch.beta,
        )
