"""GRPO-Guard. https://arxiv.org/abs/2510.22319

Against Flow-GRPO: the log-ratio of a step is centred and freed of 1 / s (RatioNorm), so that the clip bites above and
below alike and at every step; and a step's loss is divided by |dt|, so that every step pulls with the same weight,
1 + a^2 / 2 per unit of noise. Proxy defects remain: it slows their use, it does not end it.
Departures: as Flow-GRPO's. Only for the stochastic step (`sampler: sde`), for which the centring is derived.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from annotated_types import Gt, Lt
from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.objectives.base import TokenBatch
from posttrain.objectives.flow_base import FlowObjective
from posttrain.ops.flow_step import normalised_log_ratio
from posttrain.settings import RunView


@dataclass(frozen=True)
class GRPOGuard(FlowObjective):
    clip: Annotated[float, Gt(0), Lt(1)] = 2e-6
    """epsilon on both sides of the normalised ratio; about s times smaller than Flow-GRPO's"""
    global_std: bool = False
    """whether the whole rollout's standard deviation divides, not the group's"""
    reweigh: bool = True
    """delta = 1 / |dt|: every step pulls with the same weight"""

    def log_ratio(
        self, sample: Tensor, mean: Tensor, old_mean: Tensor, spread: Tensor, *, cps: bool
    ) -> Tensor:
        if cps:
            raise ValueError("GRPOGuard: RatioNorm is derived for the stochastic step; take sampler: sde")
        return normalised_log_ratio(sample, mean, old_mean, spread)

    def token_loss(self, batch: TokenBatch) -> Tensor:  # (B, 1)
        losses = super().token_loss(batch)
        return losses / -batch.forward["dt"] if self.reweigh else losses

    def faults(self, run: RunView) -> Iterator[str]:
        yield from super().faults(run)
        if run.rollout is not None and run.rollout.sampler != "sde":
            yield (
                f"rollout: sampler '{run.rollout.sampler}' has another log-prob than the one RatioNorm is derived for; "
                "write sampler: sde, or take method 'flow_grpo'"
            )
