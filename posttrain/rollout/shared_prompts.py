"""Decoding with each prompt's keys and values once for all of its completions, on a CPU.

A completion's next token attends to the prompt and to the completion's own past. The prompt's part is read once for
all rows of its group, and the two parts are joined by their normalisers. Reading a prompt of 512 tokens for each of 8
completions is a third of a decoding step of a small model.

R rows, Q prompts of P positions, n most rows of a prompt, H heads over K key-value heads of size D, H = K * r.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from posttrain.rollout.preallocated import PreallocatedLayer

NAME = "posttrain_decoding"
_FROM = ("sdpa", "posttrain_shared")
"""Implementations that compute plain scaled-dot-product attention where one token is asked for."""
_WORTH = 8192
"""Keys no longer read, per layer and step, from which on that is more than two calls and their joining cost."""


class SharedPrompts:
    """The prompts' keys and values, and which rows read which.

    layers  (Q, K, P, D) keys and values of each layer
    unseen  (Q, 1, 1, P) -inf where a prompt is padded; None where none is
    of_row  (R,) the prompt of each row
    """

    def __init__(
        self, layers: list[tuple[Tensor, Tensor]], unseen: Tensor | None, of_row: Tensor, own: Cache
    ) -> None:
        self.layers, self.unseen, self.own = layers, unseen, own
        self._note(of_row)

    def _note(self, of_row: Tensor) -> None:
        """Rows by prompt, filled up to the same number for each; a prompt that no row reads any more is dropped."""
        alive, of_row = of_row.unique(return_inverse=True)
        if len(alive) < self.layers[0][0].size(0):
            self.layers = [(keys[alive], values[alive]) for keys, values in self.layers]
            self.unseen = None if self.unseen is None else self.unseen[alive]
        order = of_row.argsort(stable=True)
        counts = torch.bincount(of_row)
        most = int(counts.max())
        rank = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        slots = torch.zeros(len(counts), most, dtype=torch.long)
        slots[of_row[order], rank] = order
        self._of_row, self._slots = of_row, slots
        self._place = torch.empty_like(order)
        self._place[order] = of_row[order] * most + rank

    def batch_select_indices(self, stay: Tensor) -> None:
        """Keeps these rows, as a cache does."""
        self.own.batch_select_indices(stay)
        self._note(self._of_row[stay])

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """(R, H, 1, D) on the prompt and on (R, K, t, D) of the rows' own -> (R, H, 1, D)."""
        rows, heads, _, size = query.shape
        shared = key.size(1)
        query = query.reshape(rows, shared, heads // shared, size)
        known, told = self.layers[layer]
        prompts, most = self._slots.shape
        asking = query[self._slots.flatten()].view(prompts, most, shared, -1, size).transpose(1, 2)
        joint = _attention(asking.reshape(prompts, shared, -1, size), known, told, self.unseen, scaling)
        read, read_z = (
            part.unflatten(2, (most, -1)).transpose(1, 2).flatten(0, 1)[self._place] for part in joint
        )
        own, own_z = _attention(query, key, value, None, scaling)
        share = torch.sigmoid(read_z - own_z).unsqueeze(-1)  # of the prompt in the whole softmax
        return torch.lerp(own, read, share).view(rows, heads, 1, size)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, unseen: Tensor | None, scaling: float | None
) -> tuple[Tensor, Tensor]:
    """Output (B, K, q, D), and the logarithm of each query's normaliser (B, K, q)."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, False, attn_mask=unseen, scale=scaling
    )


def decoding_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    shared_prompts: SharedPrompts | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """An attention implementation of transformers: (R, H, 1, D) -> (R, 1, H, D)."""
    layer = module.layer_idx
    if shared_prompts is None or not isinstance(layer, int):
        raise RuntimeError(
            "posttrain_decoding is for one decoding step, and needs shared_prompts= in the call"
        )
    return shared_prompts.attend(layer, query, key, value, scaling).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, decoding_attention)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)


def why_attention_stays(model: PreTrainedModel) -> str | None:
    """Why this model's attention cannot be replaced by one of ours; None where it can."""
    config = model.config.get_text_config()
    settings = vars(config)
    if config is not model.config:
        return "it reads more than text"
    if not model._supports_attention_backend:
        return "its attention cannot be replaced"
    kinds = set(settings.get("layer_types") or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"it has layers of {', '.join(sorted(kinds))}"
    if settings.get("attn_logit_softcapping") is not None:
        return "it caps its attention's logits"
    if any(name.endswith("sinks") for name, _ in model.named_parameters()):
        return "it has attention sinks"
    return None


def shared_prompts(
    model: Any, cache: Cache, of_row: Tensor, seen: Tensor | None, steps: int
) -> SharedPrompts | None:
    """The prompts that `cache` holds, to be read once for their rows; None where that is not possible or not worth it.

    cache   what the model made of Q prompts; it is used up where the answer is not None
    of_row  (R,) the prompt of each row
    seen    (Q, P) 1 where a prompt has a token; None where none is padded
    steps   decoding steps there will be room for
    """
    layers: list[Any] = list(cache.layers)
    model = _inner(model)
    if not isinstance(model, PreTrainedModel) or of_row.device.type != "cpu":
        return None  # on CUDA it was not measured
    if any(type(layer) is not DynamicLayer or not layer.is_initialized for layer in layers):
        return None
    if model.config._attn_implementation not in _FROM or why_attention_stays(model) is not None:
        return None
    prompts, heads, length, _ = layers[0].keys.shape
    if (len(of_row) - prompts) * length * heads < _WORTH:
        return None
    if any(layer.keys.shape != layer.values.shape for layer in layers):
        return None
    pairs = [(layer.keys, layer.values) for layer in layers]
    unseen = None
    if seen is not None:
        unseen = torch.zeros(seen.shape, dtype=pairs[0][0].dtype).masked_fill_(seen == 0, -torch.inf)
        unseen = unseen[:, None, None]
    for i, (keys, values) in enumerate(pairs):
        size = (len(of_row), heads, 0, keys.size(-1))  # nothing of their own yet
        cache.layers[i] = PreallocatedLayer(keys.new_empty(size), values.new_empty(size), steps)
    return SharedPrompts(pairs, unseen, of_row, cache)


def _inner(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


@contextmanager
def decoding(model: Any, prompts: SharedPrompts | None) -> Iterator[dict[str, Any]]:
    """The keyword arguments of a decoding step's call; the model's attention is ours while it lasts."""
    if prompts is None:
        yield {}
        return
    model = _inner(model)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield {"shared_prompts": prompts}
    finally:
        model.set_attn_implementation(before)
