"""Which enclosure this machine offers, found by trying: a probe runs inside and attempts what it should not be able to.

What is said of a machine (`describe`) is what the probe met there, not what an installed program promises.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from posttrain.rewards.sandbox.enclosure import KINDS, Enclosure, Kind
from posttrain.rewards.sandbox.limits import ProgramLimits
from posttrain.rewards.sandbox.run_program import SandboxError, run_script

_PROBE_LIMITS = ProgramLimits(seconds=20.0, processes=8)
_PROBE = """
import ctypes, json, os, random, resource, socket, sys
asked = json.loads(sys.stdin.read())

def happens(action):
    try:
        action()
    except (OSError, MemoryError):
        return False
    return True

def connect():
    socket.create_connection(("127.0.0.1", asked["port"]), timeout=2).close()

def read():
    open("/etc/passwd" if os.path.exists("/etc/passwd") else asked["file"]).close()

def write():
    with open(asked["file"] + ".written", "w"):
        pass

met = {
    "network": happens(connect),
    "files_read": happens(read),
    "files_written": happens(write),
    "signals": happens(lambda: os.kill(asked["process"], 0)),
    "looks": happens(lambda: open(f"/proc/{asked['process']}/mem", "r+b").close()),
    "namespaces": ctypes.CDLL(None).unshare(0x10000000) == 0,
    "root": os.getuid() == 0 and happens(lambda: os.setgroups([1])),
}
met["memory"] = happens(lambda: bytearray(asked["memory"]))
children = []
wait, go = os.pipe()
try:
    for _ in range(asked["forks"]):
        pid = os.fork()
        if pid == 0:
            os.close(go)
            os.read(wait, 1)
            os._exit(0)
        children.append(pid)
except OSError:
    pass
met["forks"] = len(children)
os.close(go)
for pid in children:
    os.waitpid(pid, 0)
print(json.dumps(met))
"""
_FORKS = 24

ALWAYS = (
    "faults of the kernel itself, which the program shares with the machine",
    "memory of many processes together: the limit is one of each process",
)
"""What no enclosure of these protects against."""


@dataclass(frozen=True)
class Protection:
    """An enclosure that works on this machine, and what the probe could do in it.

    open_to      the holes found, in words; empty where the probe met none
    tried        the other kinds with namespaces, as far as there is a reason not to use them
    """

    enclosure: Enclosure
    open_to: tuple[str, ...]
    tried: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        return self.enclosure.kind

    @property
    def isolates(self) -> bool:
        """Whether programs run in namespaces of their own; without, only limits hold them."""
        return self.kind != "plain"

    def describe(self) -> list[str]:
        """What protects here, and what it does not protect against, a sentence each."""
        return [
            f"sandbox: {_NAMES[self.kind]}",
            *(f"not used: {reason}" for reason in self.tried),
            *(f"does not protect against: {gap}" for gap in (*self.open_to, *ALWAYS)),
        ]


_NAMES = {
    "bubblewrap": "bubblewrap: namespaces of its own (no network, no files but Python's, no other process), limits",
    "namespaces": "namespaces of its own (no network, no files but Python's, no other process), limits",
    "plain": "none: a process with limits, and a filter of system calls where the kernel takes one",
}


@cache
def find_protection() -> Protection:
    """The enclosure with the fewest holes, of those that work here; one with namespaces before one without.
    RuntimeError where not even a process can be run."""
    found = {kind: protection_of(kind) for kind in KINDS[:-1]}
    working = [one for one in found.values() if isinstance(one, Protection)]
    if not working:
        plain = protection_of(KINDS[-1])
        if isinstance(plain, str):
            raise RuntimeError(f"sandbox: no program can be run on this machine: {plain}")
        working.append(plain)
    best = min(working, key=lambda one: len(one.open_to))
    others = {kind: one for kind, one in found.items() if one is not best}
    reasons = {
        kind: one if isinstance(one, str) else f"open to {'; '.join(one.open_to)}" if one.open_to else ""
        for kind, one in others.items()
    }
    return replace(best, tried=tuple(f"{kind}: {reason}" for kind, reason in reasons.items() if reason))


@cache
def protection_of(kind: Kind) -> Protection | str:
    """What an enclosure of one kind is worth here, or why there is none."""
    reason = "not installed" if kind == "bubblewrap" else "this system has none"
    for other_user in (True, False):
        enclosure = Enclosure(kind, other_user)
        if not enclosure.possible():
            continue
        try:
            met = _probe(enclosure)
        except SandboxError as error:
            reason = str(error).removeprefix("sandbox: ")
            continue
        if isinstance(met, str):
            reason = met
            continue
        holes = tuple(_holes(met))
        if kind != "plain" and {*holes} & {_HOLES[name] for name in _ISOLATION}:
            reason = f"it does not keep its promise: {'; '.join(holes)}"
            continue
        return Protection(enclosure, holes)
    return reason


_HOLES = {
    "network": "use of the network, also of servers on this machine",
    "files_read": "reading files of this machine, secrets in the home folder among them",
    "files_written": "writing files outside its folder, and filling the disk with many of them",
    "signals": "signals to other processes of the same user: it may end the training run",
    "looks": "a look into other processes of the same user: it may find the tests there, or change what they do",
    "namespaces": "making user namespaces, in which it reaches parts of the kernel that are meant for root",
    "root": "its being root: it may do all that root may do here",
    "memory": "use of more memory than its limit",
    "forks": "many processes (their number cannot be limited for root); they end with the program",
}
_ISOLATION = ("network", "files_read", "files_written", "signals", "looks")


def _holes(met: dict[str, int]) -> list[str]:
    found = [name for name in _HOLES if name != "forks" and met[name]]
    if met["forks"] >= _FORKS:
        found.append("forks")
    return [_HOLES[name] for name in found]


def _probe(enclosure: Enclosure) -> dict[str, int] | str:
    """What the probe could do, or why it says nothing. It looks for a server, a file and a process that are there
    to be found."""
    with tempfile.TemporaryDirectory(prefix="posttrain-probe-") as folder, socket.socket() as server:
        os.chmod(folder, 0o777)
        secret = Path(folder) / "secret"
        secret.write_text("")
        secret.chmod(0o644)
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        asked = {
            "port": server.getsockname()[1],
            "file": str(secret),
            "process": os.getpid(),
            "memory": 2 * _PROBE_LIMITS.memory_mb * 2**20,
            "forks": _FORKS,
        }
        ended = run_script([_PROBE], json.dumps(asked), _PROBE_LIMITS, enclosure)
    if ended.reason != "exit" or ended.code != 0:
        said = ended.errors.decode(errors="replace").strip().rpartition("\n")[2]
        return f"the probe did not run to its end ({said or ended.reason})"
    return json.loads(ended.output)
