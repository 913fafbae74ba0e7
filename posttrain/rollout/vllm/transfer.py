"""Three ways for weights to reach the servers: over NCCL, over gloo, or through files that both sides see.

A way has `open()`, `send(named_tensors, version)` and `close()`. After an error it is closed; the next `send` opens
it again, which also finds a server that was restarted.
"""

from __future__ import annotations

import queue
import shutil
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from posttrain.process.roll import own_address_towards
from posttrain.rollout.base import EngineError, EngineLost, EngineRefused, NamedTensors
from posttrain.rollout.vllm import gloo_group
from posttrain.rollout.vllm.client import Server
from posttrain.rollout.vllm.packing import CHUNK_BYTES, pack

Sync = Literal["nccl", "gloo", "disk"]


def at_once(tasks: Sequence[Callable[[], Any]], timeout_s: float, doing: str) -> list[Any]:
    """Runs the tasks beside one another and returns their results. The first error is raised at once, even while
    others still wait: a broadcast that one server has left would otherwise hold the trainer until its own limit."""
    ends: queue.Queue[tuple[int, Any, BaseException | None]] = queue.Queue()

    def run(index: int, task: Callable[[], Any]) -> None:
        try:
            ends.put((index, task(), None))
        except BaseException as error:  # handed to the caller, which raises it
            ends.put((index, None, error))

    for index, task in enumerate(tasks):
        threading.Thread(target=run, args=(index, task), daemon=True, name=doing).start()
    results: list[Any] = [None] * len(tasks)
    end = time.monotonic() + timeout_s
    for _ in tasks:
        try:
            index, result, error = ends.get(timeout=max(end - time.monotonic(), 0.0))
        except queue.Empty:
            raise EngineLost(f"{doing} took longer than {timeout_s:.0f} s; see the servers' logs") from None
        if error is not None:
            raise error
        results[index] = result
    return results


class Transfer(ABC):
    """What the three ways share: the servers, the limit, and the calls around an update."""

    def __init__(self, servers: Sequence[Server], timeout_s: float) -> None:
        self.servers = list(servers)
        self.timeout_s = timeout_s

    @abstractmethod
    def send(self, named_tensors: NamedTensors, version: str) -> None: ...

    @abstractmethod
    def close(self) -> None: ...

    def _on_all(self, path: str, body: Any = None, *, doing: str) -> list[Any]:
        """One POST to every server, tried once: none of these calls may be repeated blindly."""
        return at_once(
            [lambda server=server: server.post(path, body, retries=0) for server in self.servers],
            self.timeout_s,
            doing,
        )

    def _forget_prefixes(self) -> None:
        """Cached prompts were read with the old weights."""
        self._on_all("/reset_prefix_cache", doing="clearing the prefix caches")


class GroupTransfer(Transfer):
    """Broadcasts within a process group of the trainer's main process (rank 0) and all workers of all servers.

    host  the trainer's address as the servers see it; None: found from the route to the first server
    """

    def __init__(self, servers: Sequence[Server], timeout_s: float, host: str | None = None) -> None:
        super().__init__(servers, timeout_s)
        self._host = host
        self._opened = False

    device = torch.device("cpu")

    @abstractmethod
    def _meet(
        self, address: str, listener: socket.socket, world_size: int, called_off: threading.Event
    ) -> None: ...

    @abstractmethod
    def _init_info(self, address: str, port: int) -> dict[str, Any]: ...

    @abstractmethod
    def _broadcast(self, data: Tensor) -> None: ...

    def open(self) -> None:
        """Every worker of every server joins; blocks until all are there."""
        sizes = [server.get("/get_world_size")["world_size"] for server in self.servers]
        address = self._host or route_to(self.servers[0])
        try:
            listener = gloo_group.listen(address)
        except OSError as error:
            raise EngineRefused(
                f"rollout.vllm.sync_host {address}: this machine cannot listen there ({error}). It must be an address "
                "of the trainer's machine that the servers can reach; without one, the route to them decides."
            ) from error
        port = listener.getsockname()[1]
        base = {"world_size": 1 + sum(sizes), **self._init_info(address, port)}
        called_off = threading.Event()
        tasks: list[Callable[[], Any]] = [
            lambda: self._meet(address, listener, base["world_size"], called_off)
        ]
        offset = 1
        for server, size in zip(self.servers, sizes, strict=True):
            body = {"init_info": {**base, "rank_offset": offset}}
            tasks.append(
                lambda server=server, body=body: server.post("/init_weight_transfer_engine", body, retries=0)
            )
            offset += size
        try:
            at_once(tasks, self.timeout_s, "joining the weight transfer group")
        except EngineRefused:
            raise
        except RuntimeError as error:  # a server that says so, or torch where one stays away
            raise EngineLost(
                f"{error} The servers were to meet the trainer at {address}:{port}: can they reach that address, and "
                "does no firewall hold it? Set rollout.vllm.sync_host to one they can reach, or sync: disk."
            ) from error
        finally:
            called_off.set()
        self._opened = True

    def send(self, named_tensors: NamedTensors, version: str) -> None:
        try:
            if not self._opened:
                self.open()
            self._on_all("/start_weight_update", doing="starting a weight update")
            for chunk in pack(named_tensors, self.device, CHUNK_BYTES):
                body = {"update_info": chunk.describe()}
                tasks = [
                    lambda server=server, body=body: server.post("/update_weights", body, retries=0)
                    for server in self.servers
                ]
                at_once(
                    [lambda data=chunk.data: self._broadcast(data), *tasks], self.timeout_s, "sending weights"
                )
            self._on_all(
                "/finish_weight_update", {"weight_version": version}, doing="finishing a weight update"
            )
            self._forget_prefixes()
        except EngineError:
            self.close()
            raise
        except RuntimeError as error:  # how torch reports a peer that has left the group
            self.close()
            names = ", ".join(server.url for server in self.servers)
            raise EngineLost(
                f"weights could not be sent to {names}: {error}. A server has probably died: look at its log, "
                "restart it, and resume with --resume."
            ) from error


class GlooTransfer(GroupTransfer):
    """For servers without a GPU, or a trainer without one."""

    def __init__(self, servers: Sequence[Server], timeout_s: float, host: str | None = None) -> None:
        super().__init__(servers, timeout_s, host)
        self._group: Any = None

    def _init_info(self, address: str, port: int) -> dict[str, Any]:
        return {"master_address": address, "master_port": port, "timeout_s": self.timeout_s}

    def _meet(
        self, address: str, listener: socket.socket, world_size: int, called_off: threading.Event
    ) -> None:
        port = listener.getsockname()[1]
        self._group = gloo_group.join(address, port, 0, world_size, self.timeout_s, listener, called_off)

    def _broadcast(self, data: Tensor) -> None:
        gloo_group.broadcast(self._group, data)

    def close(self) -> None:
        self._group = None
        self._opened = False


class NCCLTransfer(GroupTransfer):
    """GPU to GPU, through vLLM's own NCCL backend; the trainer's environment needs vLLM for it.

    The chunks follow vLLM's packing rule (a buffer ends with the tensor that takes it past its size), so a chunk
    here is a buffer there.
    """

    def __init__(self, servers: Sequence[Server], timeout_s: float, host: str | None = None) -> None:
        super().__init__(servers, timeout_s, host)
        self.device = torch.device("cuda", torch.cuda.current_device())
        self._communicator: Any = None

    def _init_info(self, address: str, port: int) -> dict[str, Any]:
        return {
            "master_address": address,
            "master_port": port,
            "packed": True,
            "packed_buffer_size_bytes": CHUNK_BYTES,
        }

    def _meet(
        self, address: str, listener: socket.socket, world_size: int, called_off: threading.Event
    ) -> None:
        from vllm.distributed.weight_transfer.nccl_common import trainer_init

        port = listener.getsockname()[1]
        listener.close()  # vLLM opens the port itself
        torch.cuda.set_device(self.device)  # a thread starts on device 0
        self._communicator = trainer_init(
            {"master_address": address, "master_port": port, "world_size": world_size}
        )

    def _broadcast(self, data: Tensor) -> None:
        torch.cuda.set_device(self.device)
        self._communicator.broadcast(data, src=0)
        torch.cuda.current_stream().synchronize()

    def close(self) -> None:
        if self._communicator is not None:
            self._communicator.destroy()  # aborts what still waits for a server that has gone
        self._communicator = None
        self._opened = False


class DiskTransfer(Transfer):
    """Writes a checkpoint that the servers read: slower, needs a folder both see, works wherever files do."""

    def __init__(self, servers: Sequence[Server], timeout_s: float, folder: str | Path) -> None:
        super().__init__(servers, timeout_s)
        self._folder = Path(folder).absolute()
        self._written: list[Path] = []

    def send(self, named_tensors: NamedTensors, version: str) -> None:
        path = write_weights(self._folder, version.replace(":", "-"), named_tensors)
        body = {"method": "posttrain_reload", "kwargs": {"weights_path": str(path)}}
        self._on_all("/collective_rpc", body, doing="reading weights from disk")
        self._on_all("/update_weight_version", {"new_version": version}, doing="naming the weights")
        self._forget_prefixes()
        for old in self._written:
            if old != path:
                shutil.rmtree(old, ignore_errors=True)
        self._written = [path]

    def close(self) -> None:
        for path in self._written:
            shutil.rmtree(path, ignore_errors=True)
        self._written = []


def write_weights(folder: Path, name: str, named_tensors: NamedTensors, limit_bytes: int = 1 << 31) -> Path:
    """Safetensors files of about `limit_bytes` each in folder/name, written aside and renamed when complete."""
    final, aside = folder / name, folder / f".{name}.writing"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    part: dict[str, Tensor] = {}
    size = count = 0
    for key, tensor in named_tensors:
        part[key] = tensor.detach().to("cpu", copy=True).contiguous()
        size += part[key].nbytes
        if size > limit_bytes:
            save_file(part, aside / f"model-{count:05d}.safetensors")
            part, size, count = {}, 0, count + 1
    if part:
        save_file(part, aside / f"model-{count:05d}.safetensors")
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)
    return final


def route_to(server: Server) -> str:
    """This machine's address on the way to the server; traffic to the loopback interface stays on it."""
    host = "127.0.0.1" if server.host == "localhost" else server.host  # not ::1, which may be switched off
    return own_address_towards(host, server.port)


def make_transfer(
    sync: Sync,
    servers: Sequence[Server],
    timeout_s: float,
    *,
    folder: str | None = None,
    host: str | None = None,
) -> Transfer:
    if sync == "disk":
        if folder is None:
            raise ValueError(
                "rollout.vllm.sync: disk needs sync_dir, a folder that trainer and servers both see"
            )
        return DiskTransfer(servers, timeout_s, folder)
    return (NCCLTransfer if sync == "nccl" else GlooTransfer)(servers, timeout_s, host)
