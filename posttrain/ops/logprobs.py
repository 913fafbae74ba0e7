"""Log-probabilities of sampled tokens, entropy, the most likely candidates of a position. V: vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 32  # of the vocabulary, in `largest`: the fastest of 16 to 128 at 32000 ids and k = 50 on a CPU


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
    values, ids = largest(logits, min(num_candidates, logits.size(-1)))
    chosen = logits.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    return with_sampled(ids, values, actions, chosen)


def with_sampled(ids: Tensor, logits: Tensor, actions: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The candidates with the sampled id among them: where it is missing it replaces the last one.

    ids, logits (N, K), the least likely last; actions (N,) the sampled ids, chosen (N,) their logits.
    """
    missing = ~(ids == actions.unsqueeze(-1)).any(dim=-1)
    last_id = torch.where(missing, actions, ids[:, -1])
    last_logit = torch.where(missing, chosen, logits[:, -1])
    return torch.cat([ids[:, :-1], last_id[:, None]], -1), torch.cat(
        [logits[:, :-1], last_logit[:, None]], -1
    )


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`values.topk(k)` of each row, in falling order, faster where the rows are long. (N, V) -> (N, k) twice."""
    blocks = values.size(1) // _BLOCK
    if blocks < 4 * k:
        return values.topk(k, dim=1)
    # the k largest lie in the k blocks with the largest maxima, or in the rest that fills no block
    whole = values[:, : blocks * _BLOCK].view(len(values), blocks, _BLOCK)
    block = whole.amax(dim=2).topk(k, dim=1, sorted=False).indices
    inside = torch.arange(_BLOCK, device=values.device)
    ids = (block.unsqueeze(2) * _BLOCK + inside).flatten(1)
    rest = torch.arange(blocks * _BLOCK, values.size(1), device=values.device).expand(len(values), -1)
    ids = torch.cat([ids, rest], dim=1)
    found, place = values.gather(1, ids).topk(k, dim=1)
    return found, ids.gather(1, place)


def _wide(values: Tensor) -> Tensor:
    # near -10, bfloat16 log-probs put the ratio off by several percent
    return values.to(torch.promote_types(values.dtype, torch.float32))
