"""What the launcher was asked for against what is running: accelerate falls back in silence on a CPU."""

from __future__ import annotations

import os
from datetime import timedelta

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, gather_object

from posttrain.process.roll import ROLL

_ASKED = {
    "ACCELERATE_USE_DEEPSPEED": DistributedType.DEEPSPEED,
    "ACCELERATE_USE_FSDP": DistributedType.FSDP,
}


def check_engine(accelerator: Accelerator | PartialState) -> None:
    """Raises RuntimeError when DeepSpeed or FSDP was asked for and plain DDP, or one process, is what came.

    A `PartialState`, all that a run in stages has before its first stage, knows its processes but not the engine.
    """
    for variable, wanted in _ASKED.items():
        if (
            not isinstance(accelerator, PartialState)
            and os.environ.get(variable, "false").lower() in ("true", "1")
            and accelerator.distributed_type != wanted
        ):
            raise RuntimeError(
                f"{wanted.value} was asked for, but accelerate runs {accelerator.distributed_type.value}: it drops "
                f"{wanted.value} without a word when use_cpu is set. Remove train.use_cpu and --cpu, or launch with "
                "launch/accelerate/ddp.yaml."
            )
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != world:
        raise RuntimeError(
            f"{world} processes were started, but this one runs alone: each would train a model of its own. "
            "On a machine without a GPU set train.use_cpu: true."
        )


def join(*, on_cpu: bool, patience_s: float) -> None:
    """Makes the group of the run's processes, before anything else does.

    Whoever makes it decides how long a process waits for another, and transformers leaves train.ddp_timeout out on a
    CPU: there a link that is cut would hold a run for half an hour.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState(cpu=on_cpu, timeout=timedelta(seconds=patience_s))


def introduce(ranks: Accelerator | PartialState) -> None:
    """The processes of a run note each other's machines, for the day that one is gone."""
    if ranks.num_processes > 1:
        ROLL.meet(gather_object([ROLL.sign(ranks.process_index)]))
