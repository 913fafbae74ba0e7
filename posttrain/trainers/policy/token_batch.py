"""From a scored micro-batch of TRL's buffer to the `TokenBatch` an objective reads, and back for its streams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from posttrain.objectives.base import TokenBatch
from posttrain.objectives.streams import column
from posttrain.trainers.forward.base import Scored
from posttrain.trainers.forward.padded import loss_mask

_STREAM = "stream/"  # prefix of an objective's further streams in TRL's buffer


def buffer_key(stream: str) -> str:
    """The name of an objective's stream in TRL's buffer."""
    return stream if stream == "advantages" else _STREAM + stream


def on_policy(inputs: Mapping[str, Any]) -> bool:
    """Whether the policy is the one that sampled, and wrote what was not sampled as far as ratios go: TRL stores no old
    log-probs then."""
    return inputs.get("old_per_token_logps") is None and "logged_logps" not in inputs


def unmoved_batch(inputs: Mapping[str, Any], dtype: torch.dtype) -> TokenBatch:
    """The batch of a policy that has not moved since it sampled, without a forward pass: its ratio is 1, which is all
    that is right about its log-probs."""
    return token_batch(Scored(torch.zeros_like(inputs["completion_ids"], dtype=dtype)), inputs)


def token_batch(scored: Scored, inputs: Mapping[str, Any]) -> TokenBatch:
    """The batch as the loss sees it. Without stored old log-probs the policy is the one that sampled."""
    logprobs, entropy = scored.logprobs, scored.entropy
    logged, gamma = inputs.get("logged"), inputs.get("logged_gamma")
    return TokenBatch(
        logprobs=logprobs,
        old_logprobs=_old_logprobs(logprobs.detach(), inputs),
        mask=loss_mask(inputs).to(logprobs.dtype),
        advantages=column(inputs["advantages"]),
        ref_logprobs=inputs.get("ref_per_token_logps"),
        entropy=None if entropy is None else entropy.detach(),
        streams={
            key.removeprefix(_STREAM): column(value)
            for key, value in inputs.items()
            if key.startswith(_STREAM)
        },
        forward={"actions": inputs["completion_ids"], **scored.outputs},
        logged=None if logged is None else column(logged),
        shaping=None if gamma is None else column(gamma),
    )


def _old_logprobs(now: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Of the policy that sampled; of logged answers those that are stored with them, or else of the policy of now,
    which makes their ratio 1. (B, T)."""
    old = inputs.get("old_per_token_logps")
    old = now if old is None else old
    logged = inputs.get("logged")
    return (
        old if logged is None else torch.where(column(logged), inputs.get("logged_logps", now).to(now), old)
    )
