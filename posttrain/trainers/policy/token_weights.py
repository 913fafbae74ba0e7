"""Factors on a policy's token losses, under TRL's options: off-policy mask, high-entropy tokens, importance of the
sampler. They multiply the losses of any objective; what is masked stays in the divisor, as in TRL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from posttrain.objectives.base import TokenBatch
from posttrain.ops.off_policy import on_policy_enough, sequence_kl


class WeightsHost(Protocol):
    """TRL's settings for them and its entropy mask."""

    off_policy_mask_threshold: float | None
    top_entropy_quantile: float

    def get_high_entropy_mask(self, entropies: Tensor, mask: Tensor, threshold: float) -> Tensor: ...


def token_weights(
    host: WeightsHost, batch: TokenBatch, inputs: Mapping[str, Any], entropies: Tensor
) -> Tensor | None:
    """The product of the factors that are on: (B, T), (B, 1), or None where none is."""
    factors: list[Tensor] = []
    if host.off_policy_mask_threshold is not None:
        # the sampler's own log-probs where known: one that differs from the trainer is off-policy too
        sampled = inputs.get("sampling_per_token_logps", batch.old_logprobs)
        kl = sequence_kl(batch.logprobs, sampled, batch.mask)
        enough = on_policy_enough(batch.advantages, kl, host.off_policy_mask_threshold)
        # a logged answer is no sample that has grown old
        factors.append(enough if batch.logged is None else torch.where(batch.logged, 1, enough))
    if host.top_entropy_quantile < 1.0:
        factors.append(host.get_high_entropy_mask(entropies, batch.mask, 1 - host.top_entropy_quantile))
    if "importance_sampling_ratio" in inputs:
        factors.append(inputs["importance_sampling_ratio"])
    weights = None
    for factor in factors:
        weights = factor.to(batch.logprobs.dtype) if weights is None else weights * factor
    return weights
