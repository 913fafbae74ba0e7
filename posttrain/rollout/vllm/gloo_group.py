"""A process group of its own between a trainer and the workers of its servers, over gloo.

It stands beside torch.distributed's default group and knows nothing of it, so a trainer of many ranks and servers
with ranks of their own can meet here. Both ends use this file; neither needs the other's environment.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

from posttrain.process.roll import own_address_towards


def listen(address: str) -> socket.socket:
    """A listening socket at a free port of this address only."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, 0))
    sock.listen()
    return sock


def join(
    address: str,
    port: int,
    rank: int,
    world_size: int,
    timeout_s: float,
    listener: socket.socket | None = None,
    called_off: threading.Event | None = None,
) -> Any:
    """Meets the others at address:port; rank 0 brings the listening socket. Blocks until all are there.

    Raises torch's DistStoreError or RuntimeError when somebody stays away for `timeout_s`, and RuntimeError soon after
    `called_off` is set.
    """
    timeout = timedelta(seconds=timeout_s)
    store = dist.TCPStore(
        address,
        port,
        world_size,
        is_master=listener is not None,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=None if listener is None else listener.detach(),
    )
    _wait_for_all(store, world_size, timeout_s, called_off)
    gloo: Any = dist.ProcessGroupGloo  # torch's stubs leave most of it out
    options = gloo._Options()
    options._timeout = timeout
    options._devices = [_device(address)]
    group = gloo(dist.PrefixStore("posttrain", store), rank, world_size, options)
    group.barrier().wait()
    return group


def _wait_for_all(store: Any, world_size: int, timeout_s: float, called_off: threading.Event | None) -> None:
    """Gloo waits for its peers where no exception reaches it, and a process that ends meanwhile is aborted; so it is
    asked only once all are there."""
    store.add("arrived", 1)
    end = time.monotonic() + timeout_s
    while (arrived := store.add("arrived", 0)) < world_size:
        if called_off is not None and called_off.is_set():
            raise RuntimeError("the meeting was called off")
        if time.monotonic() >= end:
            raise RuntimeError(f"{arrived} of {world_size} processes came within {timeout_s:.0f} s")
        time.sleep(0.02)


def _device(address: str) -> Any:
    """Traffic leaves by this side's address on the way to the meeting place, unless GLOO_SOCKET_IFNAME names an
    interface. Gloo's default device is what this host's name resolves to, which is often the loopback interface; torch
    reads the variable only where it makes the default group."""
    interface = os.environ.get("GLOO_SOCKET_IFNAME", "").partition(",")[0]
    if interface:
        return dist.ProcessGroupGloo.create_device(interface=interface)
    return dist.ProcessGroupGloo.create_device(hostname=own_address_towards(address))


def broadcast(group: Any, tensor: Tensor) -> None:
    """From rank 0 to all, in place."""
    options = dist.BroadcastOptions()
    options.rootRank = 0
    options.rootTensor = 0
    group.broadcast([tensor], options).wait()
