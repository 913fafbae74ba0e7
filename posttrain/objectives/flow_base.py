"""What Flow-GRPO and GRPO-Guard share: a denoising step takes the place of a token.

A flow model makes an image in T steps from noise; with noise put into each step, a step is a Gaussian policy
(ops/flow_step.py). So a response has T_train "tokens", each with a ratio of two Gaussians. The rest is as for text:
`Groups` of G images per prompt, `TokenBatch` with (B, 1) columns, for a micro-batch stands at one step.

What a TokenBatch holds here:
    logprobs - old_logprobs   the log-ratio that `log_ratio` gives, which is clipped; old_logprobs are 0
    forward["dt"]             (B, 1) below 0
    mask                      0 where the row's advantage is 0: such rows are dropped from the divisor too
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import pydantic.dataclasses
import torch
from annotated_types import Gt, Le, Lt
from torch import Tensor

from posttrain.objectives.base import Groups, Objective, StepTotals, TokenBatch
from posttrain.ops.flow_step import clipped_log_surrogate
from posttrain.ops.groups import STD_EPSILON, group_centered
from posttrain.ops.reduce import per_token


@pydantic.dataclasses.dataclass(frozen=True)
class FlowObjective(Objective):
    """Base of the methods that train flow models of images from rewards."""

    makes_images: ClassVar[bool] = True
    divides_by_tokens: ClassVar[bool] = True
    ratio_per_token: ClassVar[bool] = False
    panels: ClassVar[Mapping[str, tuple[tuple[str, str], ...]]] = {
        "Ratios outside the clip": (("outside_below", "below"), ("outside_above", "above")),
        "Log-ratio of a step": (("log_ratio", "mean"), ("log_ratio_std", "standard deviation")),
    }

    clip: Annotated[float, Gt(0), Lt(1)] = 1e-4
    """epsilon on both sides of the step's ratio"""
    advantage_clip: Annotated[float, Gt(0)] = 5.0
    """largest size of an advantage"""
    global_std: bool = True
    """whether the whole rollout's standard deviation divides, not the group's"""
    trained_share: Annotated[float, Gt(0), Le(1)] = 0.99
    """share of the denoising steps that is trained on, the first ones, rounded down"""
    guided_training: bool = True
    """whether guidance (rollout.cfg_scale) is part of the policy that is trained"""

    def trained_steps(self, denoising_steps: int) -> int:
        """How many of a rollout's steps are trained on."""
        return int(denoising_steps * self.trained_share)

    def log_ratio(
        self, sample: Tensor, mean: Tensor, old_mean: Tensor, spread: Tensor, *, cps: bool
    ) -> Tensor:
        """The log of the ratio that is clipped, of one step. (B,) The arguments are in float32 or float64."""
        raise NotImplementedError  # every method defines its own

    def advantages(self, groups: Groups) -> dict[str, Tensor]:
        """(r - mean of the group) / (std + 1e-4), the population's std, held within the clip; 0 for the unjudged."""
        rewards = groups.rewards
        centred = group_centered(rewards)
        if self.global_std:
            spread = population_std(rewards.reshape(1, -1)).expand(len(rewards), 1)
        else:
            spread = population_std(rewards)
        return {
            "advantages": (centred / (spread + STD_EPSILON)).clamp(-self.advantage_clip, self.advantage_clip)
        }

    def ratio(self, batch: TokenBatch) -> Tensor:
        """In float64: next to 1 a float32 would hide what a clip of 1e-6 does."""
        return (batch.logprobs - batch.old_logprobs).double().exp()

    def clip_bounds(self, batch: TokenBatch) -> tuple[float, float]:
        return 1 - self.clip, 1 + self.clip

    def token_loss(self, batch: TokenBatch) -> Tensor:  # (B, 1)
        return clipped_log_surrogate(batch.logprobs - batch.old_logprobs, batch.advantages, self.clip)

    def reduce(self, losses: Tensor, mask: Tensor, totals: StepTotals) -> Tensor:  # ()
        """The mean over images and trained steps, rows without advantage left out."""
        return per_token(losses, mask, totals.num_tokens)


def population_std(rewards: Tensor) -> Tensor:
    """Standard deviation with divisor n, of what is not NaN. (P, G) -> (P, 1)."""
    centred = rewards - rewards.nanmean(dim=1, keepdim=True)
    judged = (~rewards.isnan()).sum(1, keepdim=True).clamp(min=1)
    return (centred.square().nansum(dim=1, keepdim=True) / judged).sqrt()


def carries_signal(advantages: Tensor) -> Tensor:
    """1.0 where a row is learned from: its advantage is not 0. Shaped like `advantages`."""
    return (advantages != 0).to(torch.float32)
