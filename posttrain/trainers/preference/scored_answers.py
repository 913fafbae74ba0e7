"""One forward over whole answers: their log-probs, lengths and token statistics; and the reference's turn at it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor

from posttrain.trainers.seam.trl_seam import disable_gradient_checkpointing, use_adapter


@dataclass(frozen=True)
class ScoredAnswers:
    """One forward: log-probs of whole answers in float32 and their lengths (N,); token statistics (N, T-1)."""

    logps: Tensor
    lengths: Tensor
    entropy: Tensor | None
    is_top1: Tensor | None
    aux_loss: Tensor | None


def score_answers(model: Any, inputs: Mapping[str, Any], *, router_logits: bool = False) -> ScoredAnswers:
    """One forward on (N, T) tokens: `input_ids`, `attention_mask` and `completion_mask`."""
    arguments = {key: inputs[key] for key in ("input_ids", "attention_mask")} | {"use_cache": False}
    if router_logits:
        arguments["output_router_logits"] = True
    mask = inputs["completion_mask"]
    labels = inputs["input_ids"].masked_fill(mask == 0, -100)
    outputs = model(**arguments, labels=labels, fused_lm_head=True)
    # Prompt-learning adapters put virtual tokens in front; the last positions are the real ones.
    real = slice(-(mask.size(1) - 1), None)
    return ScoredAnswers(
        logps=outputs.log_probs[:, real].float().sum(dim=1),
        lengths=mask[:, 1:].sum(dim=1),
        entropy=None if outputs.entropy is None else outputs.entropy[:, real].detach(),
        is_top1=None if outputs.is_top1 is None else outputs.is_top1[:, real],
        aux_loss=outputs.aux_loss,
    )


@contextlib.contextmanager
def as_reference(trainer: Any) -> Iterator[None]:
    """Around the reference's forward: no gradient, and the adapter off where the policy is its own reference."""
    adapter = contextlib.nullcontext()
    if trainer.ref_model is None and is_peft_model(trainer.model):
        policy = trainer.accelerator.unwrap_model(trainer.model)
        adapter = use_adapter(policy, adapter_name="ref" if "ref" in policy.peft_config else None)
    checkpointing = disable_gradient_checkpointing(trainer.model, trainer.args.gradient_checkpointing_kwargs)
    with torch.no_grad(), checkpointing, adapter, trainer.accelerator.autocast():
        yield
