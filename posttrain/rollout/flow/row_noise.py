"""Random numbers that follow from what they are for, not from who asks: the same on one process and on many."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def row_generator(*key: object) -> torch.Generator:
    """A generator on the CPU whose numbers follow from `key`: (seed, purpose, step, row)."""
    text = "/".join(str(part) for part in key)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def row_noise(shape: Sequence[int], rows: Sequence[int], *key: object) -> Tensor:
    """Normal numbers for each of `rows`, which are numbered over all processes. (len(rows), *shape), float32."""
    drawn = [torch.randn(tuple(shape), generator=row_generator(*key, row)) for row in rows]
    return torch.stack(drawn) if drawn else torch.empty(0, *shape)


def row_uniform(count: int, rows: Sequence[int], *key: object) -> Tensor:
    """Numbers in [0, 1) for each of `rows`. (len(rows), count), float32."""
    drawn = [torch.rand(count, generator=row_generator(*key, row)) for row in rows]
    return torch.stack(drawn) if drawn else torch.empty(0, count)
