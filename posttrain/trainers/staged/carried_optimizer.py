"""The optimizer of a stage, kept on disk for the next one: whole, or as its engine shards it."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# Upstream annotates its trainers more widely than what their attributes hold once they are built.

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model, load_fsdp_optimizer, save_fsdp_optimizer
from transformers.trainer_utils import get_last_checkpoint

_WHOLE = "optimizer.pt"


def keep_optimizer(trainer: Any, folder: Path) -> None:
    """Writes the moments of a trainer that has come to its end. Called by all ranks.

    A trainer that was not asked to train any more, as its last checkpoint was complete, has no optimizer: the
    checkpoint's is taken. Under a sharded engine there is no such trainer (staged.py).
    """
    if trainer.accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    trainer.accelerator.wait_for_everyone()
    if trainer.is_deepspeed_enabled:
        frozen = {"exclude_frozen_parameters": True} if is_peft_model(trainer.model) else {}
        trainer.model_wrapped.save_checkpoint(str(folder), **frozen)
    elif trainer.is_fsdp_enabled:
        accelerator = trainer.accelerator
        plugin = accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, accelerator, trainer.optimizer, trainer.model, str(folder))
    elif trainer.accelerator.is_main_process:
        if trainer.optimizer is not None:
            state = trainer.optimizer.state_dict()
        else:
            checkpoint = get_last_checkpoint(str(trainer.args.output_dir))
            state = torch.load(Path(str(checkpoint)) / _WHOLE, map_location="cpu", weights_only=True)
        torch.save({"state": state["state"]}, folder / _WHOLE)
    trainer.accelerator.wait_for_everyone()


def take_optimizer(trainer: Any, folder: Path) -> None:
    """Moments of the stage before into the prepared optimizer of this one; its settings stay this one's."""
    if trainer.is_deepspeed_enabled:
        # the weights beside the moments are those that the stage began with, in float32 where the engine has them
        loaded, _ = trainer.model_wrapped.load_checkpoint(
            str(folder),
            load_module_strict=not is_peft_model(trainer.model),
            load_lr_scheduler_states=False,
        )
        if loaded is None:
            raise FileNotFoundError(
                f"{folder}: DeepSpeed finds no optimizer of the stage before; start the run anew"
            )
    elif trainer.is_fsdp_enabled:
        accelerator = trainer.accelerator
        plugin = accelerator.state.fsdp_plugin
        load_fsdp_optimizer(plugin, accelerator, trainer.optimizer, trainer.model, str(folder))
    else:
        state = trainer.optimizer.state_dict()
        state["state"] = torch.load(folder / _WHOLE, map_location="cpu", weights_only=True)["state"]
        trainer.optimizer.load_state_dict(state)
