"""Which rows a policy is worst at: those whose gold call surprises it most. iTool, https://arxiv.org/abs/2501.09766"""

from __future__ import annotations

import math
from collections.abc import Sequence


def perplexity(logps: Sequence[float]) -> float:
    """exp of the mean negative log-prob (nats) of the gold answer's own tokens; the prompt's are not among them.

    Infinite where a token is impossible. ValueError where there is no token.
    """
    if not logps:
        raise ValueError("perplexity of an answer without a token")
    mean = -math.fsum(logps) / len(logps)
    return math.inf if mean > 700 else math.exp(mean)


def hardest(perplexities: Sequence[float], makes_call: Sequence[bool], share: float) -> list[int]:
    """Rows in their order: of those whose gold answer makes a call, and of the others, each the `share` of highest
    perplexity, rounded up. Equal ones go in the order of rows. NaN counts as highest."""
    if not 0 < share <= 1:
        raise ValueError(f"hardest: a share is above 0 and at most 1, not {share}")
    chosen: list[int] = []
    for kind in (True, False):
        rows = [row for row, made in enumerate(makes_call) if made is kind]
        rows.sort(
            key=lambda row: math.inf if math.isnan(perplexities[row]) else perplexities[row], reverse=True
        )
        chosen += rows[: math.ceil(share * len(rows) - 1e-9)]
    return sorted(chosen)
