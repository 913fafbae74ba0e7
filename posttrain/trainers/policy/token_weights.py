"""TRL's factors on a policy's token losses: off-policy mask, high-entropy tokens, importance of the sampler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from posttrain.objectives.base import TokenBatch


class WeightsHost(Protocol):
    """TRL's settings for them and its two masks."""

    off_policy_mask_threshold: float | None
    top_entropy_quantile: float

    def get_off_policy_mask(self, *arguments: Any, **named: Any) -> Tensor: ...

    def get_high_entropy_mask(self, entropies: Tensor, mask: Tensor, threshold: float) -> Tensor: ...


def token_weights(
    host: WeightsHost, batch: TokenBatch, inputs: Mapping[str, Any], entropies: Tensor
) -> Tensor | None:
    """The product of the factors that are on: (B, T), (B, 1), or None where none is."""
    factors: list[Tensor] = []
    if host.off_policy_mask_threshold is not None:
        factors.append(
            host.get_off_policy_mask(
                advantages=batch.advantages,
                per_token_logps=batch.logprobs,
                sampling_per_token_logps=inputs.get("sampling_per_token_logps", batch.old_logprobs),
                mask=batch.mask,
                off_policy_threshold=host.off_policy_mask_threshold,
            )
        )
    if host.top_entropy_quantile < 1.0:
        factors.append(host.get_high_entropy_mask(entropies, batch.mask, 1 - host.top_entropy_quantile))
    if "importance_sampling_ratio" in inputs:
        factors.append(inputs["importance_sampling_ratio"])
    weights = None
    for factor in factors:
        weights = factor.to(batch.logprobs.dtype) if weights is None else weights * factor
    return weights
