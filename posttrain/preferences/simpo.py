"""SimPO. Meng et al. 2024, https://arxiv.org/abs/2405.14734

Against DPO: no reference; an answer's reward is beta times its token-mean log-prob, and the chosen one
must win by a margin gamma (eq. 6).
Departures: none. The paper tunes beta and gamma for each model; `margin` is gamma itself, not gamma/beta.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from annotated_types import Ge
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import logsigmoid

from posttrain.preferences.base import PairBatch, PairLoss


def simpo_loss(
    *,
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float,
    margin: float,
) -> Tensor:
    """-log sigma(beta * [mean log-prob, chosen - rejected] - margin) (eq. 6). (B,) each -> (B,)."""
    chosen = chosen_logps / chosen_lengths.clamp(min=1)
    rejected = rejected_logps / rejected_lengths.clamp(min=1)
    return -logsigmoid(beta * (chosen - rejected) - margin)


@dataclass(frozen=True)
class SimPO(PairLoss):
    """SimPO; `beta` is the trainer's and wants values near 2 here, not DPO's 0.1."""

    needs_reference: ClassVar[bool] = False

    margin: Annotated[float, Ge(0)] = 1.0
    """gamma"""

    def pair_loss(self, batch: PairBatch) -> Tensor:
        return simpo_loss(
            chosen_logps=batch.chosen_logps,
            rejected_logps=batch.rejected_logps,
            chosen_lengths=batch.chosen_lengths,
            rejected_lengths=batch.rejected_lengths,
            beta=batch.beta,
            margin=self.margin,
        )

    def rewards(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        return (
            batch.beta * batch.chosen_logps / batch.chosen_lengths.clamp(min=1),
            batch.beta * batch.rejected_logps / batch.rejected_lengths.clamp(min=1),
        )
