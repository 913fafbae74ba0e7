"""From a scored micro-batch of TRL's buffer to the `TokenBatch` an objective reads, and back for its streams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.objectives.base import TokenBatch
from posttrain.objectives.streams import column
from posttrain.trainers.forward.base import Scored
from posttrain.trainers.forward.padded import loss_mask

_STREAM = "stream/"  # prefix of an objective's further streams in TRL's buffer


def buffer_key(stream: str) -> str:
    """The name of an objective's stream in TRL's buffer."""
    return stream if stream == "advantages" else _STREAM + stream


def token_batch(scored: Scored, inputs: Mapping[str, Any]) -> TokenBatch:
    """The batch as the loss sees it. Without stored old log-probs the policy is the one that sampled."""
    old = inputs.get("old_per_token_logps")
    logprobs, entropy = scored.logprobs, scored.entropy
    return TokenBatch(
        logprobs=logprobs,
        old_logprobs=logprobs.detach() if old is None else old,
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
    )
