"""Flow-GRPO. Liu et al. 2025, https://arxiv.org/abs/2505.05470

Against GRPO: the policy is a flow model whose denoising steps are made random, and a step's Gaussian takes the place of
a token's distribution; log-probs are means over the latent's elements, which is why the clip is so small.
Departures: the log-ratio is taken from the two means, not as a difference of two log-densities, and the clip of its
logarithm (float32 has too few digits beside 1); a mean over kept (image, step) pairs of the optimizer step, where the
release pads the kept images to equal batches; no moving average of the weights. The KL (train.beta) is the release's,
which leaves |dt| out.
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.objectives.flow_base import FlowObjective
from posttrain.ops.flow_step import squared_distance_log_ratio, step_log_ratio


@dataclass(frozen=True)
class FlowGRPO(FlowObjective):
    def log_ratio(
        self, sample: Tensor, mean: Tensor, old_mean: Tensor, spread: Tensor, *, cps: bool
    ) -> Tensor:
        if cps:
            return squared_distance_log_ratio(sample, mean, old_mean)
        return step_log_ratio(sample, mean, old_mean, spread)
