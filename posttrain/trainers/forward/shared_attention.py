"""Attention within a packed row of prompt groups, as an attention implementation of transformers.

The rows travel with the call (`shared_rows=`, a keyword that models hand on to every layer), so gradient checkpointing
recomputes a layer with the rows it had, and a call without them is plain scaled-dot-product attention.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from posttrain.rollout.shared_prompts import why_attention_stays
from posttrain.trainers.forward.shared_flex import block_mask, flex
from posttrain.trainers.forward.shared_rows import SharedRows

NAME = "posttrain_shared"


def shared_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    shared_rows: SharedRows | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """(1, heads, N, size) each, keys and values perhaps with fewer heads -> (1, N, heads, size)."""
    if shared_rows is None:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return output, None
    if query.device.type == "cuda":
        if dropout:
            raise NotImplementedError("packed prompt groups on CUDA know no attention dropout")
        mask = shared_rows.once(("blocks", sliding_window), lambda: block_mask(shared_rows, sliding_window))
        return flex(query, key, value, mask, scaling).transpose(1, 2).contiguous(), None
    if torch.is_grad_enabled() and narrow_products(value):
        # the backward of attention in bfloat16 takes two to four times that in float32, with AMX and without
        with torch.autocast("cpu", enabled=False):
            wide = by_segments(
                query.float(), key.float(), value.float(), shared_rows, sliding_window, dropout, scaling
            )
        return wide.to(value.dtype), None
    return by_segments(query, key, value, shared_rows, sliding_window, dropout, scaling), None


def narrow_products(tensor: Tensor) -> bool:
    """Whether attention over it would run in 16 bits."""
    return tensor.dtype is torch.bfloat16 or torch.is_autocast_enabled("cpu")


def by_segments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    shared_rows: SharedRows,
    sliding_window: int | None,
    dropout: float,
    scaling: float | None,
) -> Tensor:
    """Each prompt once, each completion over its prompt and its own past: (1, N, heads, size)."""
    repeats = query.size(1) // key.size(1)
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    # split, not sliced: the gradient of a slice is as large as the whole packed row, and there is one per completion
    spans = [one for group in shared_rows.groups for one in (group.prompt, *group.completions)]
    sizes = [end - start for start, end in spans]
    pieces = zip(query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True)
    parts = []
    for group in shared_rows.groups:
        asking, known, told = next(pieces)
        before = known.size(2)
        # causal needs no mask, and runs without one, unless a window cuts the past off
        seen = None
        if sliding_window is not None and before > sliding_window:
            seen = shared_rows.mask(before, 0, sliding_window)
        parts.append(
            scaled_dot_product_attention(
                asking,
                known,
                told,
                attn_mask=seen,
                is_causal=seen is None,
                dropout_p=dropout,
                scale=scaling,
            )
        )
        for own_asking, own_known, own_told in itertools.islice(pieces, len(group.completions)):
            if own_asking.size(2):
                parts.append(
                    scaled_dot_product_attention(
                        own_asking,
                        torch.cat([known, own_known], 2),
                        torch.cat([told, own_told], 2),
                        attn_mask=shared_rows.mask(own_asking.size(2), before, sliding_window),
                        dropout_p=dropout,
                        scale=scaling,
                    )
                )
    return torch.cat(parts, 2).transpose(1, 2).contiguous()


AttentionInterface.register(NAME, shared_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def why_not_shared(model: PreTrainedModel) -> str | None:
    """Why this model cannot take packed prompt groups; None where it can."""
    settings = vars(model.config.get_text_config())
    reason = why_attention_stays(model)
    if reason is not None:
        return reason
    if settings.get("output_router_logits"):
        return "its router's auxiliary loss counts the tokens of prompts once per completion"
    if settings.get("use_cache") is False and settings.get("is_decoder") is False:
        return "it is no decoder"
    return None


def take_shared_rows(model: PreTrainedModel) -> None:
    """From now on the model takes `shared_rows`; calls without them compute what they did with "sdpa"."""
    model.set_attn_implementation(NAME)


def shared_inputs(rows: SharedRows) -> dict[str, Any]:
    """Keyword arguments for the model's backbone."""
    return {
        "input_ids": rows.ids,
        "position_ids": rows.positions,
        # a mask that is made already: four dimensions tell transformers to make none
        "attention_mask": rows.ids.new_ones(1, 1, 1, 1, dtype=torch.bool),
        "shared_rows": rows,
        "use_cache": False,
    }
