"""Which of a run's servers take part: one that is lost is left out, and taken back at a sync of weights.

A server that is down comes back as soon as it answers. One that is up and yet gave no usable answers (slow, or wrong)
stays away longer each time, or every rollout would wait for it again; so does one that says it is well and cannot be
taken.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from posttrain.rollout.base import EngineError
from posttrain.rollout.vllm.client import Failure, Server

_LOOK_S = 3.0
"""For the answer to /health of a server that is asked whether it is there."""
_LONGEST_PAUSE = 31
"""Syncs between two looks at a server that cannot be taken back: each may wait for its answer."""


@dataclass
class Absence:
    """A server that takes no part. `pause`: syncs that it stays away; `passed`: those since it was left out."""

    reason: str
    pause: int
    passed: int = 0


class Roster:
    """The servers of a run; safe to use from the threads that wait for their answers."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self.all = list(servers)
        self._away: dict[str, Absence] = {}
        self._faults: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def active(self) -> list[Server]:
        with self._lock:
            return [server for server in self.all if server.url not in self._away]

    def is_active(self, server: Server) -> bool:
        with self._lock:
            return server.url not in self._away

    def leave_out(self, server: Server, error: EngineError) -> bool:
        """Says so on stderr; False where it is out already. Raises `error` where no other server is left."""
        up = is_up(server)
        with self._lock:
            if server.url in self._away:
                return False
            left = len(self.all) - len(self._away) - 1
            if left == 0:
                if len(self.all) == 1:
                    raise error
                others = "; ".join(f"{url}: {one.reason}" for url, one in self._away.items())
                raise type(error)(f"{error} No other server is left ({others}).") from error
            faults = self._faults[server.url] = self._faults.get(server.url, 0) + (1 if up else 0)
            what = "up, but gives no usable answers" if up else "down"
            self._away[server.url] = Absence(
                what, pause=min(2 ** (faults - 1) - 1, _LONGEST_PAUSE) if up else 0
            )
        others = "the other server" if left == 1 else f"the {left} others"
        print(
            f"rollout server {server.url} is left out: it is {what}: {_seen(server, error)}. "
            f"Its prompts go to {others}; "
            "it is taken back with current weights when it answers again.",
            file=sys.stderr,
            flush=True,
        )
        return True

    def take_back(self, admit: Callable[[Server], None]) -> Iterator[Server]:
        """The servers that are there again, at a sync of weights. `admit` takes one for the run, or raises an
        EngineError where the run cannot have it, which then stays away."""
        for server in self.all:
            with self._lock:
                absence = self._away.get(server.url)
                if absence is None:
                    continue
                absence.passed += 1
                waits = absence.passed <= absence.pause
            if waits or not is_up(server):
                continue
            try:
                admit(server)
            except EngineError as error:
                if str(error) != absence.reason:
                    print(
                        f"rollout server {server.url} is not taken back: {_seen(server, error)}",
                        file=sys.stderr,
                        flush=True,
                    )
                absence.reason = str(error)
                absence.pause, absence.passed = min(2 * absence.pause + 1, _LONGEST_PAUSE), 0
                continue
            with self._lock:
                del self._away[server.url]
            print(
                f"rollout server {server.url} is back; it is sent the current weights",
                file=sys.stderr,
                flush=True,
            )
            yield server


def _seen(server: Server, error: EngineError) -> str:
    """What was seen, without what to do where the run ends of it."""
    return str(error).removeprefix(f"rollout server {server.url}").lstrip(": ").split(". ")[0].rstrip(".")


def is_up(server: Server) -> bool:
    """Whether it answers at all, tried once."""
    try:
        status, _ = server.exchange("GET", "/health", None, _LOOK_S)
    except Failure:
        return False
    return status == 200
