"""The first code inside the enclosure: sets the limits, then runs what the payload says.

Its source is handed to the interpreter as text (`python -c`), because no file of ours is to be seen in there; so it
imports the standard library alone. The payload is JSON in an open file: `modules` (name -> source, our own code for the
inside), `entry` ("module:function") and its `argument`.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys

TYPE_CHECKING = False  # `typing` takes longer to import than all the rest of a program's start
if TYPE_CHECKING:
    from typing import Any


def set_limits(numbers: dict[str, Any], processes: int) -> None:
    """Hard limits, which no process without privileges raises again."""
    cpu = numbers["cpu_seconds"]
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, numbers["file"]),
        (resource.RLIMIT_NOFILE, numbers["open_files"]),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_AS, numbers["memory"]),
    ):
        with contextlib.suppress(ValueError):  # the limit above it is lower still
            resource.setrlimit(limit, (value, value))


def become(user: int | None) -> None:
    """Another user, in place of root: without its privileges."""
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)


def threads_of(user: int) -> int:
    """How many threads a user has, all programs together: what RLIMIT_NPROC counts where it is not enclosed."""
    count = 0
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        with contextlib.suppress(OSError, ValueError):
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == user:
                count += len(os.listdir(f"/proc/{name}/task"))
    return count


def load(modules: dict[str, str]) -> None:
    """Makes modules of their sources; their packages are empty."""
    for name, source in modules.items():
        parts = name.split(".")
        for n in range(1, len(parts)):
            package = sys.modules.setdefault(".".join(parts[:n]), type(sys)(".".join(parts[:n])))
            package.__path__ = []
        module = sys.modules[name] = type(sys)(name)
        exec(compile(source, f"<{name}>", "exec"), module.__dict__)


def main() -> None:
    settings = json.loads(sys.argv[1])
    sys.argv = ["program.py"]
    sys.path[:] = [folder for folder in sys.path if folder]
    become(settings["user"])
    above = threads_of(os.getuid()) if settings["shares_user"] else 0
    with os.fdopen(settings["payload"], "rb") as file:
        file.seek(0)
        payload = json.load(file)
    load(payload["modules"])
    module, _, function = payload["entry"].partition(":")
    entry = vars(sys.modules[module])[function]
    set_limits(settings["limits"], settings["limits"]["processes"] + above)
    os.write(settings["report"], b"ready")
    os.close(settings["report"])
    entry(payload["argument"])


if __name__ == "__main__":
    main()
