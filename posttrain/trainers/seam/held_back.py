"""Several backwards in one micro-batch of the trainer: all but the last one wait with what ranks do together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor


@contextmanager
def gradients_held_back(accelerator: Accelerator, model: Any) -> Iterator[None]:
    """Forward and backward inside add to the gradients without an all-reduce, and step no optimizer.

    DDP and FSDP2 wait for a later backward outside. DeepSpeed reduces on each backward from ZeRO-2 on, and takes
    its optimizer step in the backward that says it is the last one: so it is told that this is not.
    """
    if not accelerator.sync_gradients:  # an earlier micro-batch: held back already
        yield
        return
    state = accelerator.gradient_state
    state._set_sync_gradients(False)
    try:
        with accelerator.no_sync(model):
            yield
    finally:
        state._set_sync_gradients(True)


def backward_of_a_part(accelerator: Accelerator, loss: Tensor) -> None:
    """The backward of one part of a micro-batch, scaled as transformers scales the last one's."""
    deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    accelerator.backward(loss, **({"scale_wrt_gas": False} if deepspeed else {}))
