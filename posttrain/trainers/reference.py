"""The KL reference of a policy trainer: a given model or the policy as it is now, never one reloaded from a path."""

from __future__ import annotations

import copy
from typing import Any

from transformers import PreTrainedModel
from trl.models import prepare_deepspeed, prepare_fsdp

from posttrain.trainers.trl_seam import add_fused_lm_head, disable_dropout_in_model


def copy_of_policy(trainer: Any) -> PreTrainedModel:
    """The trainer's policy with its weights of now."""
    reference = copy.deepcopy(trainer.accelerator.unwrap_model(trainer.model))
    # The copied fused head would still run the policy's layers: back to the class's own forward.
    vars(reference).pop("forward", None)
    return reference


def frozen_reference(trainer: Any, reference: PreTrainedModel) -> Any:
    """`reference` without gradients or dropout, with TRL's fused head, wrapped as the trainer's engine needs it."""
    args = trainer.args
    reference.requires_grad_(False)
    reference.eval()
    if args.disable_dropout:
        disable_dropout_in_model(reference)
    add_fused_lm_head(
        reference, temperature=trainer.temperature, cast_lm_head_to_fp32=args.cast_lm_head_to_fp32
    )
    if trainer.is_deepspeed_enabled:
        return prepare_deepspeed(reference, trainer.accelerator)
    if trainer.is_fsdp_enabled:
        return prepare_fsdp(reference, trainer.accelerator)
    return trainer.accelerator.prepare_model(reference, evaluation_mode=True)
