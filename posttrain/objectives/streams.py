"""Streams: what an objective's `advantages` returns, one number per response or one per token.

(P, G)     one number per response
(P, G, T)  one per token of each response, right-padded with zeros; T may be any width that holds the longest
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def stream_rows(values: Tensor, rows: Tensor | slice, width: int) -> Tensor:
    """A stream's numbers for some responses, by their places in the flattened groups. (B,), or (B, width) per token."""
    if values.dim() == 2:
        return values.reshape(-1)[rows]
    if values.dim() != 3:
        raise ValueError(
            f"a stream has shape (P, G) or (P, G, T), not {tuple(values.shape)}; see Objective.advantages"
        )
    chosen = values.flatten(0, 1)[rows]
    return pad(chosen, (0, max(0, width - chosen.size(1))))[:, :width]


def response_means(values: Tensor, lengths: Tensor | None, written: Tensor | None = None) -> Tensor:
    """One number per response, for logs: a stream per token is averaged over each response's tokens. (P, G).

    written  how many of them the policy wrote, where tools wrote some; the stream is 0 at the others
    """
    if values.dim() == 2:
        return values
    if lengths is None:
        raise ValueError("a stream per token cannot be averaged without the lengths of the responses")
    places = torch.arange(values.size(2), device=values.device)
    inside = places < lengths.to(values.device).unsqueeze(2)
    count = lengths if written is None else written
    return (values * inside).sum(2) / count.to(values).clamp(min=1)


def column(values: Tensor) -> Tensor:
    """As a `TokenBatch` holds it: (B,) becomes (B, 1), (B, T) stays."""
    return values.unsqueeze(1) if values.dim() == 1 else values
