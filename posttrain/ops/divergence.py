"""Divergences between next-token distributions over the whole vocabulary, from logits, in nats. V: vocabulary."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def vocabulary_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """KL(q || p) of q = softmax(logits) and p = softmax(ref_logits), in float32 at least. (..., V), (..., V) -> (...).

    Equal logits give 0 exactly. Infinite where q allows a token that p bans.
    """
    return _kl(_log_softmax(logits), _log_softmax(ref_logits))


def vocabulary_js(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """Jensen-Shannon divergence of the two, symmetric, between 0 and ln 2. (..., V), (..., V) -> (...)."""
    logprobs, ref_logprobs = _log_softmax(logits), _log_softmax(ref_logits)
    middle = torch.logaddexp(logprobs, ref_logprobs) - math.log(2)
    return (_kl(logprobs, middle) + _kl(ref_logprobs, middle)) / 2


def _log_softmax(logits: Tensor) -> Tensor:
    # float32: the difference of two log-probs near -10 keeps two digits in bfloat16
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(dim=-1)


def _kl(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    # a token that q bans counts 0, also where p bans it too (-inf minus -inf)
    terms = torch.where(logprobs.isneginf(), 0.0, logprobs.exp() * (logprobs - ref_logprobs))
    return terms.sum(dim=-1)
