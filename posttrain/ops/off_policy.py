"""Which responses the policy has moved away from since they were sampled. Shapes: B responses, T response tokens.

DeepSeek-AI 2025 (DeepSeek-V3.2), https://arxiv.org/abs/2512.02556, eq. 9: off-policy sequence masking.
"""

from __future__ import annotations

from torch import Tensor


def sequence_kl(logprobs: Tensor, sampled_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Mean over a response's loss tokens of log pi_sampled - log pi, in nats: an estimate of KL(pi_sampled || pi).

    (B, T) each -> (B, 1), no gradient. A token without a log-prob at sampling (NaN) counts as one that has not moved; a
    response without loss tokens has 0.
    """
    moved = (sampled_logprobs - logprobs.detach()).nan_to_num(nan=0.0)
    return (moved * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1.0)


def on_policy_enough(advantages: Tensor, kl: Tensor, threshold: float) -> Tensor:
    """False where the advantage is negative and the response's KL above the threshold: such a response would only be
    pushed further from where the policy is.

    advantages (B, 1) or (B, T), kl (B, 1) -> bool, as the advantages.
    """
    return (advantages >= 0) | (kl <= threshold)
