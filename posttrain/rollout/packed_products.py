"""Products of a few rows with a model's weights, on a CPU, from weights that are packed for them once per rollout.

A decoding step multiplies every weight with one row per completion. Read as they lie, weights keep such a product at a
third of the processor's rate (8 rows: 13 to 19 GFLOP/s of 42 on an AMD EPYC); in the blocked order of oneDNN it runs
1.1 to 2.4 times as fast, the larger the weight the more. Packing costs about as much as three decoding steps, and a
copy of the weights for the length of the rollout.

Where the model's forward pass multiplies in bfloat16 (autocast; `train.bf16`), it would cast every weight at every
decoding step. The packed copies are in bfloat16 then, and what is not packed is cast once per rollout: on an Intel Xeon
with AMX a product of 8 rows runs at 131 GFLOP/s against 33 with the cast, and 60 packed in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

WORTH_TOKENS = 16
"""Decoding steps from which on packing pays, a few times what it needs to be level."""
_LEAST_WEIGHTS = 1 << 17
"""Of a layer: a smaller product costs less than the call of the packed one."""
_ROWS = 32
"""What the order of the blocks is chosen for; from 8 on every number gives the same order, and serves any number."""


@contextmanager
def packed_products(model: nn.Module, steps: int, dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """While it lasts, the model's linear layers multiply with packed copies of their weights, where that is the faster
    way: float32 weights on a CPU with oneDNN, for at least `WORTH_TOKENS` decoding steps. Weights must not change
    meanwhile.

    dtype  of the products in the model's own forward pass: bfloat16 where that runs under autocast, else float32.
    """
    taken = list(_layers(model)) if steps >= WORTH_TOKENS and _possible(dtype) else []
    for layer in taken:
        packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().to(dtype), _ROWS)
        vars(layer)["forward"] = partial(_product, layer, packed)
    narrow = bool(taken) and dtype is torch.bfloat16
    try:
        # one autocast around all steps keeps what it has cast from one to the next
        with torch.autocast("cpu", dtype) if narrow else nullcontext():
            yield
    finally:
        for layer in taken:
            del vars(layer)["forward"]  # the class's own is seen again


def _possible(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available() or torch.is_autocast_enabled("cpu"):
        return False
    if dtype is torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype is torch.float32


def _layers(model: nn.Module) -> Iterator[nn.Linear]:
    """Plain linear layers with their whole weight here; where something else has replaced the forward it stays."""
    for module in model.modules():
        if type(module) is not nn.Linear or "forward" in vars(module):
            continue
        weight = module.weight
        if type(weight) is not nn.Parameter or weight.numel() < _LEAST_WEIGHTS:
            continue
        if weight.device.type == "cpu" and weight.dtype is torch.float32:
            yield module


def _product(layer: nn.Linear, packed: Tensor, rows: Tensor) -> Tensor:
    if packed.dtype is torch.bfloat16:
        bias = None if layer.bias is None else layer.bias.to(packed.dtype)
        return torch.ops.mkldnn._linear_pointwise(rows.to(packed.dtype), packed, bias, "none", [], "")
    # one row alone reads each weight once, in whatever order it lies
    if rows.dtype is not torch.float32 or rows.numel() == rows.size(-1):
        return linear(rows, layer.weight, layer.bias)
    return torch.ops.mkldnn._linear_pointwise(rows, packed, layer.bias, "none", [], "")
