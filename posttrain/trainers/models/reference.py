"""References: a given model or the policy as it is now, never one reloaded from a path, and the same on every rank."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import is_peft_model
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from transformers import PreTrainedModel
from transformers.distributed.fsdp import is_fsdp_enabled
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl.models import prepare_deepspeed, prepare_fsdp

from posttrain.trainers.seam.faults import NotUnderThisEngine
from posttrain.trainers.seam.trl_seam import add_fused_lm_head, disable_dropout_in_model


def copy_of_policy(trainer: Any) -> PreTrainedModel:
    """The trainer's policy with its weights of now."""
    reference = copy.deepcopy(trainer.accelerator.unwrap_model(trainer.model))
    # The copied fused head would still run the policy's layers: back to the class's own forward.
    vars(reference).pop("forward", None)
    return reference


@torch.no_grad()
def share_from_main(model: Any) -> None:
    """Gives every rank the main one's weights, where only that one has read them from disk.

    FSDP's `cpu_ram_efficient_loading` leaves zeros on the other ranks. What is trained gets its weights when it is
    sharded; TRL shards a reference without that. Nothing to do under any other launcher.
    """
    if not is_fsdp_enabled() or isinstance(model, FSDPModule | FullyShardedDataParallel):
        return
    device = PartialState().device
    for tensor in (*model.parameters(), *model.buffers()):
        weights = tensor.detach().to(device)
        torch.distributed.broadcast(weights, src=0)
        tensor.copy_(weights)


def needs_a_copy(model: Any, args: Any, trl_arguments: Mapping[str, Any]) -> bool:
    """Whether TRL would load the reference from the path in the model's config instead of taking the model as it is."""
    if isinstance(model, str) or is_peft_model(model) or trl_arguments.get("peft_config") is not None:
        return False
    if args.precompute_ref_log_probs:
        return False
    if is_deepspeed_zero3_enabled():
        raise NotUnderThisEngine(
            "under ZeRO-3 no process holds the weights to copy for a reference: train an adapter (model.peft), take "
            "FSDP2, ZeRO-2 or DDP, or in Python pass ref_model"
        )
    return True


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    reference = copy.deepcopy(model)
    # A fused head from an earlier trainer would run that model's layers: back to the class's own forward.
    vars(reference).pop("forward", None)
    reference.requires_grad_(False)
    return reference.eval()


def frozen_reference(trainer: Any, reference: PreTrainedModel) -> Any:
    """`reference` without gradients or dropout, with TRL's fused head, wrapped as the trainer's engine needs it."""
    args = trainer.args
    share_from_main(reference)
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
