"""The LM head at the end of a forward pass: from its input to scores of tokens, by whichever kernel is the right one.

On a CPU that is `ops.scored_head`, which works in tiles that fit a cache and makes them anew in the backward. On CUDA,
and under ZeRO-3, where the head's weight is whole for the length of a call only, it is TRL's fused head.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.integrations import is_deepspeed_zero3_enabled

from posttrain.ops.scored_head import HeadShape, ScoredTokens, scored_tokens
from posttrain.trainers.forward.head_tiles import reading_tiles
from posttrain.trainers.seam.trl_seam import ChunkedLogProbFunction, maybe_gather_lm_head_ctx

VOCABULARY_STRETCH = 32768
"""Ids of one tile of TRL's fused head, as TRL calls it."""


@dataclass(frozen=True)
class HeadOptions:
    """temperature  the sampling temperature the logits are divided by
    float32      whether the head's product is in float32, whatever the rest runs in (`cast_lm_head_to_fp32`)"""

    temperature: float = 1.0
    float32: bool = False


def head_shape(model: Any, options: HeadOptions) -> HeadShape:
    """What the model does to the product with its head, read from its config as transformers' own forwards read it."""
    config = vars(model.config.get_text_config())
    scale = 1.0
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if config.get(name) is not None:
            scale = config[name]
            break
    else:
        if config.get("logits_scaling") is not None:
            multiplies = model.config.get_text_config().model_type == "hyperclovax"
            scale = config["logits_scaling"] if multiplies else 1 / config["logits_scaling"]
    return HeadShape(float(scale), config.get("final_logit_softcapping"), options.temperature)


def score_hidden(
    model: Any,
    hidden: Tensor,
    targets: Tensor,
    options: HeadOptions,
    *,
    entropy: bool = False,
    num_candidates: int = 0,
) -> ScoredTokens:
    """`targets` (N,) under the model's head on `hidden` (N, H)."""
    head: nn.Linear = model.get_output_embeddings()
    weight, bias = (_whole(one) for one in (head.weight, head.bias))
    assert weight is not None
    hidden, targets = hidden.to(weight.device), targets.to(weight.device)
    shape, autocast = head_shape(model, options), nullcontext()
    if options.float32:
        hidden, autocast = hidden.float(), torch.autocast(hidden.device.type, enabled=False)
    with autocast:
        if is_deepspeed_zero3_enabled() or hidden.device.type == "cuda":
            return _by_trl(hidden, weight, bias, targets, shape, entropy, num_candidates)
        if options.float32:
            weight, bias = weight.float(), None if bias is None else bias.float()
        return scored_tokens(
            hidden, weight, targets, bias=bias, shape=shape, entropy=entropy, num_candidates=num_candidates
        )


def _whole(parameter: Tensor | None) -> Tensor | None:
    """FSDP2 shows shards as DTensors."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def _by_trl(
    hidden: Tensor,
    weight: Any,
    bias: Any,
    targets: Tensor,
    shape: HeadShape,
    entropy: bool,
    num_candidates: int,
) -> ScoredTokens:
    outputs = ("log_probs", "entropy") if entropy else ("log_probs",)
    every = torch.ones(targets.numel(), dtype=torch.bool, device=targets.device)
    reading = reading_tiles(every, num_candidates) if num_candidates else nullcontext()
    with maybe_gather_lm_head_ctx(weight, bias), reading as tiles:
        logprobs, entropies, *_ = ChunkedLogProbFunction.apply(
            hidden,
            weight,
            bias,
            targets,
            shape.temperature,
            VOCABULARY_STRETCH,
            shape.softcap,
            shape.scale,
            outputs,
        )
    ids, logits = (None, None) if tiles is None else tiles.result()
    return ScoredTokens(logprobs, entropies if entropy else None, ids, logits)


def head_fault(model: Any) -> str | None:
    """Why this model's head cannot be read by itself; None where it can."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or not head.weight.is_floating_point():
        return f"its LM head is a {type(head).__name__}"
    return None
