"""The policy's weights as an engine wants them: whole tensors, adapters merged, under the checkpoint's names.

Under FSDP and ZeRO-3 the gathering is TRL's. Adapters on a whole model are merged here, a layer at a time, and the
layer is put back from a copy: TRL merges and unmerges in place, which rounds the frozen weights anew at every sync.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import Any

import torch
import trl
from accelerate import Accelerator
from accelerate.utils import is_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from trl.distributed import DistributedBackend

from posttrain.trainers.seam.trl_seam import VLLMGeneration

if "_iter_named_params" not in vars(VLLMGeneration):
    raise ImportError(
        f"trl {trl.__version__} has moved VLLMGeneration._iter_named_params, which gathers sharded weights for an "
        "engine. Install the version pinned in pyproject.toml."
    )


class _Gathering(VLLMGeneration):
    """TRL's walk over sharded weights, without the vLLM engine that its own constructor starts."""

    def __init__(self, model: nn.Module, accelerator: Accelerator) -> None:
        self.model = model  # type: ignore[assignment]  # the walk asks for modules only
        self.accelerator = accelerator
        self._dist = DistributedBackend(accelerator)

    @property
    def sharded(self) -> bool:
        return self._dist.is_fsdp or self._dist.is_zero3


def policy_weights(model: nn.Module, accelerator: Accelerator) -> Generator[tuple[str, Tensor]]:
    """(name, full tensor) of every weight, one at a time.

    Every rank must consume all of it, because gathering is a collective. A tensor is valid until the next one is
    asked for. Raises ValueError at a quantised weight, which no engine could load.
    """
    gathering = _Gathering(model, accelerator)
    merged = is_peft_model(model) and not gathering.sharded
    # Closed with this walk, not when the garbage collector comes by: until then a layer would stay merged.
    with closing(_merged_weights(model) if merged else gathering._iter_named_params()) as walk:
        for name, tensor in walk:
            if not tensor.is_floating_point():
                raise ValueError(
                    f"{name} is quantised ({tensor.dtype}): its weights cannot be sent to a vLLM engine. Use "
                    "rollout.engine: transformers, or load the base model unquantised."
                )
            yield name, tensor


@torch.no_grad()
def _merged_weights(model: Any) -> Generator[tuple[str, Tensor]]:
    """A PEFT model's weights with its active adapters merged in; the model itself stays bit for bit as it is."""
    tuned = {name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}
    merged: set[str] = set()
    for name, parameter in model.named_parameters():
        owner = next((key for key in tuned if name.startswith(f"{key}.")), None)
        if owner is None:
            plain = _plain_name(name)
            if plain is not None:
                yield plain, parameter.data
        elif owner not in merged:
            merged.add(owner)
            yield from _merged_layer(tuned[owner], _plain_name(owner))


def _merged_layer(layer: Any, name: str | None) -> Generator[tuple[str, Tensor]]:
    base = layer.get_base_layer()
    kept = {key: value.detach().clone() for key, value in base.named_parameters()}
    layer.merge()
    try:
        for key, value in base.named_parameters():
            yield f"{name}.{key}", value.data
    finally:
        layer.unmerge()
        for key, value in kept.items():  # unmerging subtracts, which leaves rounding behind
            base.get_parameter(key).data.copy_(value)


def _plain_name(name: str) -> str | None:
    """The name in the base model's checkpoint; None for the unused original beside a module that is trained whole."""
    name = name.removeprefix("base_model.model.")
    if "original_module." in name:
        return None
    if ".modules_to_save." in name:
        before, after = name.split(".modules_to_save.")
        return f"{before}.{after.split('.', 1)[1]}"
    return name
