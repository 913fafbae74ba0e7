"""Outside the enclosure, above the program: starts it, waits, and ends all that it has left.

A process of its own (`python -m posttrain.rewards.sandbox.warden PLAN`), because namespaces are entered by a process
with one thread, and because what the program forks falls back to it. SIGTERM is how it is told to end the program.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time

from posttrain.rewards.sandbox import namespaces, system_calls

TYPE_CHECKING = False  # `typing` takes longer to import than all the rest of a program's start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

_SIGNALS = {signal.SIGCHLD, signal.SIGTERM}


def main() -> None:
    """PLAN is JSON: kind, command, environment, mark, user, limits, visible, links, folder, report (fd), parent."""
    plan = json.loads(sys.argv[1])
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    namespaces.die_with_parent(signal.SIGTERM)
    if os.getppid() != plan["parent"]:  # it died before we asked to be told
        os._exit(1)
    namespaces.adopt_orphans()
    with contextlib.suppress(OSError):  # where memory runs out, the program goes first
        namespaces.write_file("/proc/self/oom_score_adj", "1000")
    try:
        child = _START[plan["kind"]](plan)
    except OSError as error:
        _report(plan, error)
        os._exit(1)
    _let_go()
    status = _wait(child)
    if plan["kind"] == "plain":
        from posttrain.rewards.descendants import end_descendants

        end_descendants(os.getpid(), plan["mark"])
    _bury()
    remove_folder(plan["folder"])
    os._exit(status)


def _let_go() -> None:
    """Pipes are to close when the program's processes have closed them."""
    os.closerange(0, 2**20)


def _report(plan: dict[str, Any], error: BaseException) -> None:
    with contextlib.suppress(OSError):
        os.write(plan["report"], f"{error}"[:500].encode())


def _wait(child: int) -> int:
    """Until the child has ended or we are to end it; its exit status as a shell gives it."""
    while True:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == child:
                    code = os.waitstatus_to_exitcode(status)
                    return code if code >= 0 else 128 - code
                if pid == 0:
                    break
        received = signal.sigtimedwait(_SIGNALS, 1.0)
        if received is not None and received.si_signo == signal.SIGTERM:
            os.kill(child, signal.SIGKILL)  # the first process of a PID namespace takes all others with it
            return 128 + signal.SIGKILL


def _bury() -> None:
    end = time.monotonic() + 2.0
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < end:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.002)


def _child(plan: dict[str, Any], action: Callable[[], NoReturn]) -> int:
    """Forks; an error on the way to the program is reported."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except BaseException as error:
            _report(plan, error)
        os._exit(1)
    return pid


def _become_program(plan: dict[str, Any]) -> NoReturn:
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    os.execve(plan["command"][0], plan["command"], plan["environment"])


def remove_folder(folder: str | None) -> None:
    """Also where the program has taken permissions from its own folders. Links are removed, not followed."""
    if folder is None or not os.path.isdir(folder):
        return
    import shutil  # only a plain program has a folder on disk, and pays for this

    for path, _, _ in os.walk(folder, onerror=_open_up):
        _open_up(path)
    shutil.rmtree(folder, ignore_errors=True)


def _open_up(path: str | OSError) -> None:
    with contextlib.suppress(OSError):
        os.chmod(path.filename if isinstance(path, OSError) else path, 0o700)


# ---- three ways


def _in_namespaces(plan: dict[str, Any]) -> int:
    try:
        namespaces.call("unshare", namespaces.NEW_PID)
    except OSError:  # not root, or root without the privilege
        namespaces.own_users(plan["user"])
        namespaces.call("unshare", namespaces.NEW_PID)
    return _child(plan, lambda: _first(plan))


def _first(plan: dict[str, Any]) -> NoReturn:
    """The first process of the PID namespace: prepares the others, starts the program, and ends when that ends."""
    namespaces.die_with_parent(signal.SIGKILL)
    namespaces.call("unshare", sum(namespaces.NEW_NAMESPACES.values()))
    namespaces.new_root(plan["visible"], plan["links"], plan["limits"]["folder"])
    namespaces.hide_memory()

    def start() -> NoReturn:
        os.setsid()
        _confine(plan, None)
        _become_program(plan)

    child = _child(plan, start)
    _let_go()
    os._exit(_wait(child))


def _confine(plan: dict[str, Any], alone: int | None) -> None:
    namespaces.drop_privileges(plan["user"])
    program = system_calls.filter_program(alone)
    if program is not None:
        system_calls.enter(program)


def _in_bubblewrap(plan: dict[str, Any]) -> int:
    program = system_calls.filter_program()
    if program is not None:
        file = os.memfd_create("filter", 0)  # without close-on-exec; the warden lets go of it with all others
        os.write(file, program)
        os.lseek(file, 0, os.SEEK_SET)
        at = plan["command"].index("--")
        plan["command"][at:at] = ["--seccomp", str(file)]
    return _child(plan, lambda: _become_program(plan))


def _plain(plan: dict[str, Any]) -> int:
    def start() -> NoReturn:
        os.setsid()
        os.chdir(plan["folder"])
        _confine(plan, os.getpid())
        _become_program(plan)

    return _child(plan, start)


_START = {"bubblewrap": _in_bubblewrap, "namespaces": _in_namespaces, "plain": _plain}


if __name__ == "__main__":
    main()
