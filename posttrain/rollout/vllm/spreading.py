"""How the rows of a call become requests, and which server gets which. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from posttrain.rollout.base import Sampling


@dataclass(frozen=True)
class Request:
    """Neighbouring rows with the same prompt, asked for as one prompt with n completions.

    first   index of the first of its rows in the call
    """

    first: int
    prompt: list[int]
    sampling: Sampling


def merge_rows(wanted: Sequence[tuple[list[int], Sampling]]) -> list[Request]:
    """Joins neighbours of equal prompt and options whose seeds follow each other: the server gives the i-th of n
    completions the seed + i, so nothing changes but the number of requests."""
    merged: list[Request] = []
    for i, (prompt, sampling) in enumerate(wanted):
        if merged:
            last = merged[-1]
            n = last.sampling.n
            seed = None if last.sampling.seed is None else last.sampling.seed + n
            if last.prompt == prompt and replace(last.sampling, n=1, seed=seed) == sampling:
                merged[-1] = replace(last, sampling=replace(last.sampling, n=n + 1))
                continue
        merged.append(Request(i, prompt, sampling))
    return merged


def spread(requests: Sequence[Request], servers: int) -> list[list[Request]]:
    """The requests of each server: the heaviest first to whoever has least, weight being the tokens it may write.
    Depends on the requests alone, so that a run repeats itself."""
    loads = [0] * servers
    parts: list[list[Request]] = [[] for _ in range(servers)]
    for request in sorted(requests, key=lambda r: -r.sampling.n * r.sampling.max_new_tokens):
        target = loads.index(min(loads))
        loads[target] += request.sampling.n * request.sampling.max_new_tokens
        parts[target].append(request)
    return parts
