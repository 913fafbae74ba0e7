"""The logits of one block of a canvas, by a whole forward pass or with the rest of the canvas cached.

Fast-dLLM, https://arxiv.org/abs/2505.22618, section 3.2. A model that sees both ways has no exact cache: whatever is
revealed changes the keys and values of everything else. They change little within a block, so a pass over the whole
canvas at the start of each block stores them, and the later passes of that block compute fewer columns:

    prefix   the block and what stands behind it; prompt and finished blocks are read from the store
    dual     the block alone; what stands behind it is read from the store as well

R rows, S canvas columns, K columns of a block, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from posttrain.ops.masked_elbo import LogitsFn
from posttrain.rollout.masked.predictor import MaskPredictor
from posttrain.rollout.masked.sampler_options import CacheKind


class BlockReader(Protocol):
    """Logits (R, K, V) of the `columns` of `tokens` (R, S); `first` says that this is the first pass of a block."""

    def __call__(self, tokens: Tensor, columns: slice, first: bool) -> Tensor: ...


def whole_canvas(logits_fn: LogitsFn) -> BlockReader:
    """Every pass computes every column."""

    def read(tokens: Tensor, columns: slice, first: bool) -> Tensor:
        return logits_fn(tokens)[:, columns]

    return read


class CachedReader:
    """Reads a block with the other columns' keys and values stored at the first pass of that block.

    present  (R, S) 0 = padding
    kind     "prefix" or "dual"
    """

    def __init__(self, predictor: MaskPredictor, present: Tensor, kind: CacheKind) -> None:
        self._predictor, self._present, self._kind = predictor, present, kind
        self._shift = int(predictor.logit_shift)
        self._positions = (present.long().cumsum(1) - 1).clamp(min=0)
        self._stored = _Canvas()

    def __call__(self, tokens: Tensor, columns: slice, first: bool) -> Tensor:
        width = tokens.size(1)
        # where position i-1 predicts token i, the column before the block is asked as well
        asked, last = max(columns.start - self._shift, 0), columns.stop - self._shift
        if first:
            begin, end = 0, width
        elif self._kind == "prefix":
            begin, end = asked, width
        else:
            begin, end = asked, columns.stop
        self._stored.computing = slice(begin, end)
        kept = torch.arange(asked - begin, last - begin, device=tokens.device)
        logits = self._predictor.model(
            input_ids=tokens[:, begin:end],
            attention_mask=self._present,
            position_ids=self._positions[:, begin:end],
            past_key_values=self._stored,
            use_cache=True,
            logits_to_keep=kept,
        ).logits
        if (
            last - asked < columns.stop - columns.start
        ):  # nothing stands before the first column: it predicts itself
            logits = torch.cat([logits[:, :1], logits], dim=1)
        return logits


class _Canvas(Cache):
    """Keys and values of every column; a forward writes those of the columns it computes, and attends to all."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.computing = slice(0, 0)
        self._held: list[_CanvasLayer] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        while len(self._held) <= layer_idx:
            self._held.append(_CanvasLayer(self))
            self.layers.append(self._held[-1])
        return self._held[layer_idx].update(key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.computing.start

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Every column is attended to, from the first one on."""
        held = self._held[layer_idx].keys if len(self._held) > layer_idx else None
        return (query_length if held is None else max(held.size(2), query_length)), 0


class _CanvasLayer(CacheLayerMixin):
    """(R, heads, S, size) each."""

    def __init__(self, canvas: _Canvas) -> None:
        super().__init__()
        self._canvas = canvas

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = key_states, value_states
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys, values, columns = self.keys, self.values, self._canvas.computing
        if keys is None or values is None or columns.stop - columns.start == keys.size(2):
            self.lazy_initialization(key_states.contiguous(), value_states.contiguous())
            return key_states, value_states
        keys[:, :, columns], values[:, :, columns] = key_states, value_states
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (query_length if self.keys is None else self.keys.size(2)), 0

    def get_seq_length(self) -> int:
        return self._canvas.computing.start

    def get_max_length(self) -> int:
        return -1


def refuse_cache(predictor: MaskPredictor, kind: CacheKind) -> None:
    """Raises ValueError where this model's keys and values are to be kept, and cannot be."""
    if kind != "none" and predictor.uncached is not None:
        raise ValueError(f"rollout.cache: {kind} is not possible here: {predictor.uncached}; leave it out")


def readers_of(predictor: MaskPredictor, present: Tensor, kind: CacheKind) -> Callable[[], BlockReader]:
    """A maker of readers, each with a store of its own; guidance takes two."""
    if kind == "none":
        logits_fn = predictor.logits_fn(present)
        return lambda: whole_canvas(logits_fn)
    refuse_cache(predictor, kind)
    return lambda: CachedReader(predictor, present, kind)
