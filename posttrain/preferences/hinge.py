"""The hinge loss on log-ratios. SLiC-HF: Zhao et al. 2023, https://arxiv.org/abs/2305.10425

Against DPO: once a pair is one unit of reward apart its gradient is exactly zero.
Departures: SLiC compares plain log-probs with a margin; here, as in RSO (Liu et al. 2023,
https://arxiv.org/abs/2309.06657, eq. 12) and in TRL, log-ratios to the reference times beta with margin 1.
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.preferences.base import PairBatch, PairLoss


def hinge_loss(
    *,
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float,
) -> Tensor:
    """max(0, 1 - beta * [log-ratio of the chosen - log-ratio of the rejected]). (B,) each -> (B,)."""
    difference = (chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps)
    return (1 - beta * difference).relu()


@dataclass(frozen=True)
class Hinge(PairLoss):
    """The hinge on log-ratios; `beta` is the trainer's."""

    def pair_loss(self, batch: PairBatch) -> Tensor:
        return hinge_loss(
            chosen_logps=batch.chosen_logps,
            rejected_logps=batch.rejected_logps,
            ref_chosen_logps=batch.ref_chosen_logps,
            ref_rejected_logps=batch.ref_rejected_logps,
            beta=batch.beta,
        )
