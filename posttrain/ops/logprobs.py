"""Log-probabilities of sampled tokens, entropy, the most likely candidates of a position. V: vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor


def token_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probability of each sampled id, in float32 at least. (..., V), (...) -> (...).

    Row t of `logits` must be the one that predicts `ids[t]`: the caller shifts.
    """
    logits = _wide(logits)
    chosen = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(dim=-1)


def token_entropy(logits: Tensor) -> Tensor:
    """Entropy of the next-token distribution in nats, in float32 at least. (..., V) -> (...)."""
    logprobs = _wide(logits).log_softmax(dim=-1)
    # a banned token has logit -inf and probability 0: its term is 0, not 0 * -inf
    return -torch.where(logprobs.isneginf(), 0.0, logprobs.exp() * logprobs).sum(dim=-1)


def top_candidates(logits: Tensor, actions: Tensor, num_candidates: int) -> tuple[Tensor, Tensor]:
    """The `num_candidates` most likely ids of each row, the sampled one always among them, with their logits.

    (N, V), (N,) -> ids (N, K), logits (N, K). Where the sampled id ranks below K it takes the place of the
    least likely candidate, so that K stays the size of the set. K is at most V.
    """
    if num_candidates < 1:
        raise ValueError(f"top_candidates: num_candidates is {num_candidates}; it must be at least 1")
    k = min(num_candidates, logits.size(-1))
    values, ids = logits.topk(k, dim=-1)
    missing = ~(ids == actions.unsqueeze(-1)).any(dim=-1)
    chosen = logits.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    last_id = torch.where(missing, actions, ids[:, -1])
    last_value = torch.where(missing, chosen, values[:, -1])
    return torch.cat([ids[:, :-1], last_id[:, None]], -1), torch.cat(
        [values[:, :-1], last_value[:, None]], -1
    )


def _wide(values: Tensor) -> Tensor:
    # near -10, bfloat16 log-probs put the ratio off by several percent
    return values.to(torch.promote_types(values.dtype, torch.float32))
