"""diffu-GRPO. Zhao et al. 2025 (d1), https://arxiv.org/abs/2504.12216

Against GRPO: the log-prob of a token is read off one forward pass on a canvas of masks, with some prompt
tokens hidden as well, other ones in each inner iteration; a mean-field stand-in for the likelihood, not a
bound of it. Against BGPO: one pass instead of n, a ratio per token instead of per response, clipped. Departures:
none. Where paper and released code differ, the code's defaults stand: advantage without the standard
deviation, every token of the step weighs the same. KL (k3, 0.04) is the trainer's beta.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Lt
from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.objectives.base import Groups, StepTotals
from posttrain.objectives.masked_base import DiffusionBatch, DiffusionObjective, Tail
from posttrain.ops.groups import Scale, scaled_advantages
from posttrain.ops.kl import k3
from posttrain.ops.masked_elbo import Noise, hide_prompt, sample_noise
from posttrain.ops.reduce import per_response, per_token
from posttrain.ops.surrogate import clipped_surrogate


@dataclass(frozen=True)
class DiffuGRPO(DiffusionObjective):
    level: ClassVar[Literal["token"]] = "token"
    separable: ClassVar[bool] = False
    fresh_noise: ClassVar[bool] = True
    passes: ClassVar[int] = 1

    clip_low: Annotated[float, Ge(0), Lt(1)] = 0.5
    """epsilon below 1"""
    clip_high: Annotated[float, Ge(0)] = 0.5
    """epsilon above 1"""
    p_mask_prompt: Annotated[float, Ge(0), Lt(1)] = 0.15
    """probability that a prompt token is hidden"""
    scale: Scale = "none"
    """whose standard deviation divides the advantage"""
    average: Literal["token", "response"] = "token"
    """token: the released code; response: the paper's formula"""
    tail: Tail = "mask"
    """what stands behind the first end token"""

    def draw_noise(
        self, scored: Tensor, prompt: Tensor, iterations: int, generator: torch.Generator
    ) -> Noise:
        return hide_prompt(sample_noise("full", scored, iterations), prompt, self.p_mask_prompt, generator)

    def advantages(self, groups: Groups) -> dict[str, Tensor]:
        return {"advantages": scaled_advantages(groups.rewards, self.scale)}

    def losses(self, batch: DiffusionBatch) -> Tensor:  # (B, L)
        ratio = torch.exp(batch.terms.mean(1) - batch.old_terms.mean(1))
        return clipped_surrogate(ratio, batch.advantages.unsqueeze(1), 1 - self.clip_low, 1 + self.clip_high)

    def penalty(self, batch: DiffusionBatch) -> Tensor:  # (B, L)
        if batch.ref_terms is None:
            raise ValueError("DiffuGRPO.penalty: the batch has no reference terms")
        return k3(batch.terms.mean(1), batch.ref_terms.mean(1))

    def ratio_bounds(self) -> tuple[float, float]:
        return 1 - self.clip_low, 1 + self.clip_high

    def reduce(self, losses: Tensor, mask: Tensor, totals: StepTotals) -> Tensor:
        if self.average == "token":
            return per_token(losses, mask, totals.num_tokens)
        return per_response(losses, mask, totals.num_responses)
