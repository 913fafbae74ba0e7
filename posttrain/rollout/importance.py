"""What is done to pi_trainer / pi_sampling before it weighs a token's loss: TRL's four corrections.

The engine's log-probs of its own tokens are never exactly the trainer's: other kernels, another dtype, older
weights. "Truncated importance sampling" bounds the ratio of the two, "masked" drops what leaves the bounds.
Formulas: TRL 1.16, GRPO with vLLM (`vllm_importance_sampling_mode`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.rollout.engine_options import CORRECTIONS


def importance_ratio(
    trainer: Tensor,
    sampling: Tensor,
    mask: Tensor,
    mode: str,
    clip_max: float | None = 3.0,
    clip_min: float | None = None,
) -> Tensor:
    """The weight of each token (B, T), or of each response (B, 1) in the sequence modes.

    trainer, sampling  (B, T) log-probs of the sampled tokens, by the trainer at rollout time and by the engine
    mask               (B, T) 1 where the policy wrote the token
    mode               token_truncate, token_mask, sequence_truncate, sequence_mask; a sequence's ratio is that of
                       all its tokens together (the sum of the differences), so it spreads with length
    """
    if mode not in CORRECTIONS:
        raise ValueError(f"importance correction {mode!r} is none of {', '.join(CORRECTIONS)}")
    difference = torch.where(mask.bool(), trainer - sampling, 0.0)
    level, action = mode.split("_")
    if level == "sequence":
        difference = difference.sum(-1, keepdim=True)
    ratio = difference.exp()
    if action == "truncate":
        return ratio if clip_max is None and clip_min is None else ratio.clamp(min=clip_min, max=clip_max)
    outside = torch.zeros_like(ratio, dtype=torch.bool)
    if clip_max is not None:
        outside |= ratio > clip_max
    if clip_min is not None:
        outside |= ratio < clip_min
    return ratio.masked_fill(outside, 0.0)
