"""Attention within packed prompt groups on CUDA: one FlexAttention kernel for the whole packed row."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from posttrain.trainers.forward.shared_rows import SharedRows


@cache
def _compiled() -> Any:
    # packed rows have a length of their own each: compiled for any
    return torch.compile(flex_attention, dynamic=True)


def block_mask(rows: SharedRows, window: int | None) -> BlockMask:
    """Which tokens of the packed row see which: of their group the prompt and their own completion, of those the past,
    of that the last `window` positions."""
    groups, completions, places = rows.membership, rows.completion_of, rows.positions[0]

    def seen(_batch: Any, _head: Any, query: Tensor, key: Tensor) -> Tensor:
        own = (completions[key] < 0) | (completions[key] == completions[query])
        allowed = (key <= query) & (groups[key] == groups[query]) & own
        return allowed if window is None else allowed & (places[query] - places[key] < window)

    return create_block_mask(seen, None, None, rows.num_tokens, rows.num_tokens, device=rows.ids.device)


def flex(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float | None) -> Tensor:
    """(1, heads, N, size) each, keys and values perhaps with fewer heads -> (1, heads, N, size)."""
    grouped = query.size(1) != key.size(1)
    return _compiled()(query, key, value, block_mask=mask, scale=scale, enable_gqa=grouped)
