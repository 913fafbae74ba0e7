"""One process at a time owns a run: a lock beside its folder that says which.

The lock is the operating system's (a POSIX record lock), so it ends with the process that holds it, however that
ended; the file's words are only for people. Record locks also hold between machines on NFS (v4, or v3 with lockd).
Where a file system knows no locks, the words decide: the process they name, as far as this machine can see it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

_HELD = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class RunInUse(Exception):
    """Another process has the run; the message says which."""


def lock_file(run_dir: Path) -> Path:
    return run_dir.with_name(f".{run_dir.name}.lock")


@contextmanager
def owned(run_dir: Path) -> Iterator[None]:
    """The run is this process's within. RunInUse where another has it; OSError where nothing can be written."""
    path = lock_file(run_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _taken(path)
    try:
        file.truncate(0)
        file.write(json.dumps(_this_process()) + "\n")
        file.flush()
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)  # while it is held: who opened it meanwhile sees that it is gone
        file.close()


def _taken(path: Path) -> IO[str]:
    """The lock's file, open and held."""
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  # it stays open as long as the run is owned
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(file)
            file.close()
            if error.errno in _HELD:
                raise RunInUse(_in_words(holder)) from None
            if error.errno not in _NO_LOCKS:
                raise
            if holder is not None and _may_live(holder):
                raise RunInUse(f"{_in_words(holder)}; if that is gone, remove {path}") from None
            return open(path, "a+", encoding="utf-8")
        # The holder before removes the file when it ends; a lock on a file that is gone is worth nothing.
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
        file.close()


def _this_process() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "began": _began(os.getpid()),
    }


def _holder(file: IO[str]) -> dict[str, Any] | None:
    file.seek(0)
    try:
        found = json.loads(file.read())
    except ValueError:  # taken this instant, or its writer was killed
        return None
    return found if isinstance(found, dict) else None


def _in_words(holder: dict[str, Any] | None) -> str:
    if holder is None:
        return "another process"
    return f"process {holder.get('pid')} on {holder.get('host')}, started {holder.get('started')}"


def _may_live(holder: dict[str, Any]) -> bool:
    """False where it is this machine's and gone, or its number is another process's by now."""
    if holder.get("host") != socket.gethostname():
        return True
    return _began(int(holder.get("pid", 0))) == holder.get("began")


def _began(pid: int) -> str | None:
    """When a process of this machine began, in ticks since boot; None where it is gone or the system does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
