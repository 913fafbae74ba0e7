"""The trainer's side of a server's lease (server_lease.py): taken before anything else is asked, kept by a thread."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.rollout.base import EngineRefused
from posttrain.rollout.vllm.client import Failure, Server
from posttrain.rollout.vllm.server_lease import LEASE, LEASE_S, in_words

_CALL_S = 10.0  # of one request; a lease is answered at once
_POLL_S = 2.0


class Lease:
    """Of some servers, for the run that their `run` names."""

    def __init__(self, servers: Sequence[Server], every_s: float = LEASE_S / 4) -> None:
        self._servers = list(servers)
        self._every_s = every_s
        self._kept: list[Server] = []
        self._stop = threading.Event()

    def take(self) -> None:
        """Takes all leases and keeps them. EngineRefused where another run that lives holds one."""
        for server in self._servers:
            if server in self._kept:
                continue
            try:
                taken = self._take(server)
            except EngineRefused:
                self.release()
                raise
            if taken:
                self._kept.append(server)
        if self._kept and not self._stop.is_set():
            threading.Thread(target=self._keep, daemon=True, name="rollout lease").start()

    def take_again(self, server: Server) -> None:
        """Of a server that was away: one that was restarted knows of no lease."""
        self._kept = [one for one in self._kept if one is not server]
        if self._take(server):
            self._kept = [*self._kept, server]

    def release(self) -> None:
        self._stop.set()
        for server in self._kept:
            with contextlib.suppress(Failure):
                server.exchange("DELETE", LEASE, {}, _CALL_S)
        self._kept = []

    def _keep(self) -> None:
        while not self._stop.wait(self._every_s):
            for server in list(self._kept):
                with contextlib.suppress(Failure):  # one that is down, and may come back
                    status, _ = server.exchange("POST", LEASE, myself(), _CALL_S)
                    if status == 409:  # another run took it, which it will say when weights are next sent
                        self._kept = [one for one in self._kept if one is not server]

    def _take(self, server: Server) -> bool:
        """False where the server has no leases: it was not started by launch/serve_vllm.sh."""
        instead_of: str | None = None
        left: float | None = None
        while True:
            try:
                status, text = server.exchange("POST", LEASE, {**myself(), "instead_of": instead_of}, _CALL_S)
            except Failure:
                return False  # the calls that follow find it lost, and say so
            if status == 200:
                return True
            if status != 409:
                if status == 404:
                    print(
                        f"rollout server {server.url} does not say whether another run uses it: start it with "
                        "launch/serve_vllm.sh",
                        file=sys.stderr,
                    )
                return False
            try:
                holder = json.loads(text)
                float(holder["expires_in_s"]), str(holder["run"])
            except (ValueError, KeyError, TypeError):
                raise EngineRefused(
                    f"{server.url} answered {LEASE} with 409 and words that no server of ours says; is it "
                    "another service?"
                ) from None
            if has_ended(holder) or is_this_process(holder):
                instead_of = holder["run"]
                continue
            renewed = left is not None and holder["expires_in_s"] > left
            if renewed:
                raise EngineRefused(
                    f"rollout server {server.url} is in use by {in_words(holder)}; nothing was sent to it. Wait until "
                    "that run has ended, or start a server of its own for this one."
                )
            if left is None:
                print(
                    f"rollout server {server.url} is held by {in_words(holder)}; looking whether that run still lives",
                    file=sys.stderr,
                )
            left = holder["expires_in_s"]
            server.sleep(_POLL_S)


def myself() -> dict[str, Any]:
    """Which process this is."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "machine": _machine()}


def is_this_process(holder: dict[str, Any]) -> bool:
    """Whether an earlier engine of this very process holds it."""
    return holder.get("pid") == os.getpid() and bool(_machine()) and holder.get("machine") == _machine()


def has_ended(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that is gone."""
    machine = _machine()
    if not machine or holder.get("machine") != machine:
        return False
    return not Path(f"/proc/{holder['pid']}").exists()


def _machine() -> str:
    """Two processes that give the same can see each other; "" where that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
