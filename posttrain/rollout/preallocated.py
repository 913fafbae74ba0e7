"""A key-value cache with room for the whole completion: a token more costs its own copy, not one of all before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class PreallocatedLayer(DynamicLayer):
    """A full-attention layer's cache in one buffer of (rows, heads, capacity, size), filled from the front."""

    def __init__(self, keys: Tensor, values: Tensor, capacity: int) -> None:
        """Holds a copy of these, (rows, heads, length, size), with room for `capacity` positions in all."""
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._length = keys.shape[-2]
        self._held = [_with_room(part, capacity) for part in (keys, values)]
        self._show()

    def _shown(self) -> tuple[Tensor, Tensor]:
        keys, values = self._held
        return keys[:, :, : self._length], values[:, :, : self._length]

    def _show(self) -> None:
        self.keys, self.values = self._shown()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes behind what is there. Where the room has run out (a rank that is done, but steps on with the others)
        twice as much is made."""
        end = self._length + key_states.shape[-2]
        if end > self._held[0].shape[-2]:
            self._held = [_with_room(part[:, :, : self._length], 2 * end) for part in self._held]
        for part, new in zip(self._held, (key_states, value_states), strict=True):
            part[:, :, self._length : end] = new
        self._length = end
        self._show()
        return self._shown()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these rows; only what is filled is copied, to the front of the buffer."""
        count = len(indices)
        for i, part in enumerate(self._held):
            part[:count, :, : self._length] = part[indices, :, : self._length]
            self._held[i] = part[:count]
        self._show()


def _with_room(states: Tensor, capacity: int) -> Tensor:
    rows, heads, length, size = states.shape
    room = torch.empty(rows, heads, capacity, size, dtype=states.dtype, device=states.device)
    room[:, :, :length] = states
    return room


def preallocated(cache: Cache, rows: Tensor, capacity: int) -> Cache:
    """The rows of a cache that a model made of its prompts, with room for `capacity` positions.

    Layers that keep something else than all of the past (sliding windows, recurrent states) stay as the model made
    them.
    """
    layers: list[Any] = cache.layers  # what a model may put there has no common type
    for i, layer in enumerate(layers):
        if type(layer) is DynamicLayer and layer.keys is not None and layer.values is not None:
            layers[i] = PreallocatedLayer(layer.keys[rows], layer.values[rows], capacity)
        else:
            layer.batch_select_indices(rows)
    return cache
