"""Ends what a worker has started, also what left its process group: by the tree of parents and by a mark.

Each worker has a keeper above it, a process to which orphans fall back (PR_SET_CHILD_SUBREAPER): what forked twice, or
opened a session of its own, still has the keeper among its parents. The mark, an environment variable, finds those
whose keeper has died before them. Where there is no /proc (outside Linux) only the process group is ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import secrets
import signal
import time
from pathlib import Path
from typing import NoReturn

MARK = "POSTTRAIN_REWARD_WORKER"
_PR_SET_CHILD_SUBREAPER = 36
_ROUNDS = 20  # of looking again, for what was being forked meanwhile


def new_mark() -> str:
    return secrets.token_hex(12)


def keep(worker: int) -> NoReturn:
    """The keeper's life: buries the dead, and when its only child `worker` or the trainer is gone, ends what is left.

    It leaves as the worker did. It holds nothing of the worker's and cannot hang with it.
    """
    trainer = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    status = None
    while status is None and os.getppid() == trainer:
        status = _bury(worker)
        if status is None:
            _wait_for_a_death(1.0)
    end_descendants(os.getpid(), os.environ.get(MARK, ""))
    _bury_the_rest()
    if status is not None and os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # one core is enough
        with contextlib.suppress(OSError):  # SIGKILL cannot be set, and needs not
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(1 if status is None else os.waitstatus_to_exitcode(status))


def _bury(worker: int) -> int | None:
    """Takes all who have died from the process table; the worker's status if it is among them."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == worker:
                return status
            if pid == 0:
                return None
    return None


def _bury_the_rest() -> None:
    """What has been killed is not left to whoever is above, which in a container may bury nobody."""
    end = time.monotonic() + 1.0
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < end:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.005)


def _wait_for_a_death(seconds: float) -> None:
    if hasattr(signal, "sigtimedwait"):
        signal.sigtimedwait({signal.SIGCHLD}, seconds)
    else:  # macOS
        time.sleep(seconds / 10)


def adopt_orphans() -> None:
    """Makes this process the parent of what its children leave behind. Does nothing where Linux is not."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_descendants(worker: int, mark: str) -> bool:
    """Kills the descendants of the process `worker` and all that carry its mark; `worker` itself is left. False where
    processes cannot be looked at, or some go on appearing."""
    if not _processes():
        return False
    for attempt in range(_ROUNDS):
        found = (_below(worker) | (_marked(mark) if mark else set())) - {worker, os.getpid()}
        if not found:
            return True
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001 * attempt)
    return False


def _below(worker: int) -> set[int]:
    """The processes that have `worker` among their parents, zombies left out."""
    parents: dict[int, int] = {}
    for pid in _processes():
        fields = _stat(pid)
        if fields is not None and fields[0] not in ("Z", "X"):
            parents[pid] = int(fields[1])
    found: set[int] = set()
    border = {worker}
    while border:
        border = {pid for pid, parent in parents.items() if parent in border} - found
        found |= border
    return found


def _marked(mark: str) -> set[int]:
    wanted = f"{MARK}={mark}".encode()
    found = set()
    for pid in _processes():
        with contextlib.suppress(OSError):  # another user's, or gone
            if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.add(pid)
    return {pid for pid in found if (_stat(pid) or ["Z"])[0] not in ("Z", "X")}


def _processes() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def _stat(pid: int) -> list[str] | None:
    """State, parent and so on; the name before them may hold spaces and brackets."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
