"""Policy-gradient losses per token. Shapes: ratios (B, T) or (B, 1), advantages (B, 1) or (B, T).

Bounds are absolute ratios: 1.28, not 0.28.
"""

from __future__ import annotations

import torch
from torch import Tensor


def importance_surrogate(ratio: Tensor, advantages: Tensor) -> Tensor:
    """The unclipped importance-weighted loss. (B, T)."""
    return -ratio * advantages


def clipped_surrogate(ratio: Tensor, advantages: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """PPO's pessimistic loss, with the ratio held in [low, high] (Schulman et al. 2017, eq. 7). (B, T).

    Bounds may be scalars or tensors () that broadcast; no gradient flows into them.
    """
    return -torch.minimum(ratio * advantages, _clamp(ratio, low, high) * advantages)


def dual_clip(losses: Tensor, advantages: Tensor, bound: float) -> Tensor:
    """Caps a clipped surrogate where the advantage is negative: the loss stays below bound * |A|. (B, T).

    Ye et al. 2020, https://arxiv.org/abs/1912.09729; `bound` > 1 is their c. TRL's `delta` is the same
    bound. Tokens at the cap have no gradient.
    """
    return torch.where(advantages < 0, torch.minimum(losses, -bound * advantages), losses)


def clipped_weight_loss(ratio: Tensor, logprobs: Tensor, advantages: Tensor, high: float) -> Tensor:
    """REINFORCE weighted by the capped ratio as a constant (CISPO, eq. 4): no token loses its gradient. (B,
    T)."""
    return -ratio.clamp(max=high).detach() * advantages * logprobs


def soft_gated_surrogate(ratio: Tensor, advantages: Tensor, temperature: Tensor) -> Tensor:
    """The ratio under a sigmoid instead of a clip (SAPO): -(4 / t) sigmoid(t (ratio - 1)) A. (B, T).

    temperature  t > 0, broadcasts. At ratio 1 the derivative in the ratio is -A, whatever t is; it fades on both sides.
    """
    return -torch.sigmoid(temperature * (ratio - 1)) * (4 / temperature) * advantages


def _clamp(ratio: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        # cast first: a float64 bound must not widen the loss, and must round as a Python number would
        bounds = [torch.as_tensor(b, dtype=ratio.dtype, device=ratio.device).detach() for b in (low, high)]
        return ratio.clamp(bounds[0], bounds[1])
    return ratio.clamp(low, high)
