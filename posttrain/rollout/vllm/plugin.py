"""The server's side of weight updates: transfer backends that vLLM loads as a plugin, and a report of what arrived.

`register` is named in the entry-point group `vllm.general_plugins`, so each process of a vLLM server in an
environment with posttrain knows the backends "posttrain_gloo" and "posttrain_nccl". `WeightReport` is the server's
`--worker-extension-cls`. No file of vLLM is changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posttrain.rollout.checksum import signature
from posttrain.rollout.vllm import gloo_group
from posttrain.rollout.vllm.packing import sizes_of, unpack
from posttrain.rollout.vllm.reload import renew_tied_heads

try:
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
except ImportError as error:
    raise ImportError(
        "posttrain's weight transfer needs vLLM 0.28 or newer, which has a registry of transfer backends; "
        "older ones serve the colocated engine only"
    ) from error

BACKENDS = {"gloo": "posttrain_gloo", "nccl": "posttrain_nccl"}
"""rollout.vllm.sync -> the backend a server must be started with."""


@dataclass
class GlooInit(WeightTransferInitInfo):
    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    timeout_s: float


@dataclass
class GlooUpdate(WeightTransferUpdateInfo):
    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


class GlooReceiver(WeightTransferEngine[GlooInit, GlooUpdate]):
    """Receives whole tensors over gloo and loads them layer by layer, which also renews what a CPU worker has
    prepacked. `received` holds the signature of each tensor of the last update."""

    init_info_cls, update_info_cls = GlooInit, GlooUpdate

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.received: dict[str, tuple[str, int]] = {}
        self._group: Any = None

    def init_transfer_engine(self, init_info: GlooInit) -> None:
        parallel = self.parallel_config
        rank = init_info.rank_offset + parallel.data_parallel_index * parallel.world_size + parallel.rank
        self._group = gloo_group.join(
            init_info.master_address, init_info.master_port, rank, init_info.world_size, init_info.timeout_s
        )

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        self.received = {}
        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        renew_tied_heads(self.model)

    def receive_weights(self, update_info: GlooUpdate) -> None:
        if self._group is None:
            raise RuntimeError("weights were announced before init_weight_transfer_engine")
        described = (update_info.names, update_info.dtype_names, update_info.shapes)
        data = torch.empty(sum(sizes_of(*described[1:])), dtype=torch.uint8)
        gloo_group.broadcast(self._group, data)
        _Recording(self.model, self.received).load_weights(
            [(name, tensor.to(self.device)) for name, tensor in unpack(data, *described)]
        )

    def shutdown(self) -> None:
        self._group = None


class NCCLReceiver(NCCLWeightTransferEngine):
    """vLLM's own NCCL backend, which also notes the signature of each tensor it loads."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.received: dict[str, tuple[str, int]] = {}

    def start_weight_update(self) -> None:
        self.received = {}
        super().start_weight_update()

    def receive_weights(self, update_info: Any) -> None:
        model = self.model
        self.model = _Recording(model, self.received)  # type: ignore[assignment]  # only load_weights is called on it
        try:
            super().receive_weights(update_info)
        finally:
            self.model = model


class _Recording:
    """A model's `load_weights` that notes what passes through."""

    def __init__(self, model: Any, received: dict[str, tuple[str, int]]) -> None:
        self._model, self._received = model, received

    def load_weights(self, weights: list[tuple[str, Tensor]]) -> Any:
        weights = list(weights)
        self._received.update({name: signature(tensor) for name, tensor in weights})
        return self._model.load_weights(iter(weights))


class WeightReport:
    """Mixed into vLLM's worker: what this worker was last given."""

    def posttrain_reload(self, weights_path: str) -> None:
        """Takes the weights of a checkpoint folder."""
        transfer = self.weight_transfer_engine  # type: ignore[attr-defined]  # the worker's
        if isinstance(transfer, GlooReceiver | NCCLReceiver):
            transfer.received = {}
        self.reload_weights(weights_path=weights_path)  # type: ignore[attr-defined]  # the worker's
        renew_tied_heads(self.model_runner.model)  # type: ignore[attr-defined]  # the worker's

    def posttrain_weights(self) -> dict[str, list]:
        """name -> [dtype, checksum]: of the last update, or of the checkpoint where none has come."""
        transfer = self.weight_transfer_engine  # type: ignore[attr-defined]  # the worker's
        if isinstance(transfer, GlooReceiver | NCCLReceiver) and transfer.received:
            return {name: list(value) for name, value in transfer.received.items()}
        from vllm.model_executor.model_loader import get_model_loader

        loader = get_model_loader(self.vllm_config.load_config)  # type: ignore[attr-defined]  # the worker's
        weights = loader.get_all_weights(self.model_config, self.model_runner.model)  # type: ignore[attr-defined]  # the worker's
        return {name: list(signature(tensor)) for name, tensor in weights}


def register() -> None:
    """Makes the two backends known to vLLM. May run several times in one process."""
    for name, engine in ((BACKENDS["gloo"], GlooReceiver), (BACKENDS["nccl"], NCCLReceiver)):
        try:
            WeightTransferEngineFactory.register_engine(name, engine)
        except ValueError:
            continue  # vLLM's way of saying that it is registered already
