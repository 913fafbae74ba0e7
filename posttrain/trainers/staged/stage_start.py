"""What a stage's trainer begins with: the engine of the stage before, and the checkpoint that stands of this one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from transformers.trainer_utils import get_last_checkpoint


def keep_engine(args: Any) -> None:
    """DeepSpeed's plugin is taken once by accelerate, which gives it to later stages and refuses a second one."""
    if AcceleratorState._shared_state and AcceleratorState().distributed_type == DistributedType.DEEPSPEED:
        args.deepspeed_plugin = None


def standing_checkpoint(trainer: Any) -> tuple[str | None, bool]:
    """The stage's last checkpoint, and whether all its steps are in it. Called by all ranks.

    A complete one of a sharded engine is only loaded to train on: it is removed, and the steps behind the one before
    are taken again, with the same numbers.
    """
    folder = str(trainer.args.output_dir)
    checkpoint = get_last_checkpoint(folder)
    complete = checkpoint is not None and _is_complete(Path(checkpoint))
    if checkpoint is None or not complete or not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
        return checkpoint, complete
    trainer.accelerator.wait_for_everyone()  # all have looked
    if trainer.accelerator.is_main_process:
        shutil.rmtree(checkpoint)
    trainer.accelerator.wait_for_everyone()
    return get_last_checkpoint(folder), False


def _is_complete(checkpoint: Path) -> bool:
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return state["global_step"] >= state["max_steps"]
