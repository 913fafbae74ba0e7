"""Who takes part in a run of several processes, so that one that waited in vain can say for whom. No torch.

Each process holds a listening socket while it lives, from which nothing is ever read. The operating system answers for
it: a connection that is made says that the process is there, however busy it is; one that is refused, that the process
is gone; one that is not answered, that its machine cannot be reached.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

WITHIN_S = 5.0
"""How long a machine has to answer; it has been silent for much longer by the time it is asked."""
_AT_ONCE = 64
_QUEUE = 2**14
"""Every other process may ask once, and nobody takes the connections; the system lowers it to net.core.somaxconn."""
_NAMED = 8


@dataclass(frozen=True)
class Member:
    """One process: its rank, its machine's name, and the address and port at which it can be asked for."""

    rank: int
    host: str
    address: str
    port: int

    def in_words(self) -> str:
        return f"rank {self.rank} on {self.host} ({self.address})"


@dataclass
class Roll:
    """The processes of this run. `sign`, hand everybody's signature to `meet`, and ask for the `absent`."""

    members: list[Member] = field(default_factory=list)
    rank: int = 0
    _listener: socket.socket | None = None

    def sign(self, rank: int) -> Member:
        """This process, from now on listening."""
        self.leave()
        self.rank = rank
        address = _own_address(os.environ.get("MASTER_ADDR", ""))
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        self._listener.bind((address, 0))
        self._listener.listen(_QUEUE)
        return Member(rank, socket.gethostname(), address, self._listener.getsockname()[1])

    def meet(self, members: Sequence[Member]) -> None:
        self.members = sorted(members, key=lambda member: member.rank)

    def leave(self) -> None:
        """No longer to be found."""
        if self._listener is not None:
            self._listener.close()
        self._listener, self.members = None, []

    def absent(self) -> tuple[list[Member], list[Member]]:
        """The members whose process is gone, and those whose machine does not answer."""
        others = [member for member in self.members if member.rank != self.rank]
        if not others:
            return [], []
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            answers = list(pool.map(_answer_of, others))
        gone = [member for member, answer in zip(others, answers, strict=True) if answer == "refused"]
        silent = [member for member, answer in zip(others, answers, strict=True) if answer == "silent"]
        return gone, silent

    def in_words(self) -> str:
        """What became of the others, for whom this process has waited in vain."""
        gone, silent = self.absent()
        parts = [f"does not answer any more: {_listed(silent)}"] if silent else []
        parts += [f"another process of the run is gone: {_listed(gone)}"] if gone else []
        if parts:
            return "; ".join(parts)
        if self.members:
            return (
                "the processes of the run have waited for each other in vain, though all are there: one is stuck, "
                "or its part of a step takes longer than train.ddp_timeout"
            )
        return "another process of the run is gone"


ROLL = Roll()
"""Of this process."""


def own_address_towards(host: str, port: int = 9) -> str:
    """This machine's address on the route to `host`, a name or an address. Nothing is sent.

    Raises OSError when the name is unknown or there is no route.
    """
    family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:  # a datagram socket "connects" without sending
        probe.connect(place)
        return probe.getsockname()[0]


def _own_address(towards: str) -> str:
    """The loopback one where there is no way."""
    try:
        return own_address_towards(towards or "127.0.0.1")
    except OSError:
        return "127.0.0.1"


def _answer_of(member: Member) -> str:
    """ "there", "refused" or "silent"."""
    try:
        socket.create_connection((member.address, member.port), timeout=WITHIN_S).close()
    except ConnectionRefusedError:
        return "refused"
    except OSError:
        return "silent"
    return "there"


def _listed(members: Sequence[Member]) -> str:
    words = [member.in_words() for member in members[:_NAMED]]
    return ", ".join([*words, f"and {len(members) - _NAMED} more"] if len(members) > _NAMED else words)
