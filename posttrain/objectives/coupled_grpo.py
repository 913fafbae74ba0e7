"""coupled-GRPO. Gong et al. 2025 (DiffuCoder), https://arxiv.org/abs/2506.20639

Against diffu-GRPO: a token's value is taken from three passes: all masked, a random part masked, and that
part's complement, so that each token is seen once with context; leave-one-out baseline.
Departures: memory, as in vrpo_ol.py: three backwards instead of one joint graph, the gradient the same. The
masks behind the first end token are always masks (`tail: mask`), where the release hides them at random.
Its value's expectation is 1.5 times a log-prob, as published: clip ranges do not carry over to diffu-GRPO.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Lt
from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.objectives.base import Groups, StepTotals
from posttrain.objectives.masked_base import DiffusionBatch, DiffusionObjective, Tail, leave_one_out
from posttrain.ops.kl import k3
from posttrain.ops.masked_elbo import Noise, sample_noise
from posttrain.ops.reduce import per_token
from posttrain.ops.surrogate import clipped_surrogate


@dataclass(frozen=True)
class CoupledGRPO(DiffusionObjective):
    level: ClassVar[Literal["token"]] = "token"
    separable: ClassVar[bool] = False
    fresh_noise: ClassVar[bool] = True
    passes: ClassVar[int] = 3

    clip_low: Annotated[float, Ge(0), Lt(1)] = 0.5
    """epsilon below 1"""
    clip_high: Annotated[float, Ge(0)] = 0.5
    """epsilon above 1"""
    t_low: Annotated[float, Gt(0), Lt(1)] = 0.2
    """smallest share hidden"""
    t_high: Annotated[float, Gt(0), Lt(1)] = 0.8
    """largest share hidden"""
    tail: Tail = "mask"
    """what stands behind the first end token"""

    def __post_init__(self) -> None:
        if self.t_low > self.t_high:
            raise ValueError(f"t_low ({self.t_low}) must not exceed t_high ({self.t_high})")

    def draw_noise(
        self, scored: Tensor, prompt: Tensor, iterations: int, generator: torch.Generator
    ) -> Noise:
        passes = self.num_passes * iterations
        return sample_noise("coupled", scored, passes, generator=generator, low=self.t_low, high=self.t_high)

    def advantages(self, groups: Groups) -> dict[str, Tensor]:
        return {"advantages": leave_one_out(groups)}

    def losses(self, batch: DiffusionBatch) -> Tensor:  # (B, L)
        ratio = torch.exp(batch.terms.mean(1) - batch.old_terms.mean(1))
        return clipped_surrogate(ratio, batch.advantages.unsqueeze(1), 1 - self.clip_low, 1 + self.clip_high)

    def penalty(self, batch: DiffusionBatch) -> Tensor:  # (B, L)
        if batch.ref_terms is None:
            raise ValueError("CoupledGRPO.penalty: the batch has no reference terms")
        return k3(batch.terms.mean(1), batch.ref_terms.mean(1))

    def ratio_bounds(self) -> tuple[float, float]:
        return 1 - self.clip_low, 1 + self.clip_high

    def reduce(self, losses: Tensor, mask: Tensor, totals: StepTotals) -> Tensor:
        return per_token(losses, mask, totals.num_tokens)
