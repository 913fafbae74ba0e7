"""From token losses to this micro-batch's share of the step's loss; the name says what is divided by.

Every divisor counts the whole optimizer step (all micro-batches, all ranks), so the shares add up to the
step's loss however the batch was split. Shapes: losses (B, T), or (B, 1) for one value per response; mask
(B, T); totals ().
"""

from __future__ import annotations

from torch import Tensor


def per_token(losses: Tensor, mask: Tensor, num_tokens: Tensor) -> Tensor:
    """Sum over tokens / tokens of the step: every token weighs the same (DAPO, section 3.3). ()."""
    return (losses * mask).sum() / num_tokens.clamp(min=1.0)


def per_response(losses: Tensor, mask: Tensor, num_responses: Tensor) -> Tensor:
    """Sum over responses of their token means / responses of the step (GRPO). A response without loss tokens
    counts as one with loss 0. ()."""
    means = (losses * mask).sum(dim=-1) / mask.sum(dim=-1).clamp(min=1.0)
    return means.sum() / num_responses.clamp(min=1.0)


def per_response_sum(losses: Tensor, mask: Tensor, num_responses: Tensor) -> Tensor:
    """Sum over responses of their token sums / responses of the step: long responses weigh more. ()."""
    return (losses * mask).sum() / num_responses.clamp(min=1.0)


def per_constant(losses: Tensor, mask: Tensor, num_responses: Tensor, max_completion_length: int) -> Tensor:
    """Sum over tokens / (responses of the step x the rollout's length limit): no length enters (Dr.GRPO).
    ()."""
    return (losses * mask).sum() / (num_responses.clamp(min=1.0) * max_completion_length)
