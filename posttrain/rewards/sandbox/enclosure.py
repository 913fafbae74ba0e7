"""What an enclosure shows of the machine, and the command that starts a program in it."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from posttrain.rewards.descendants import MARK
from posttrain.rewards.sandbox import confine
from posttrain.rewards.sandbox.limits import ProgramLimits
from posttrain.rewards.sandbox.namespaces import DEVICES

Kind = Literal["bubblewrap", "namespaces", "plain"]
KINDS: tuple[Kind, ...] = ("bubblewrap", "namespaces", "plain")
"""From the one that protects most."""

_USERS = range(61184, 65520)
"""Users that no person has (systemd keeps them for services it makes up): what root becomes inside."""

_LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/nix/store")
_FILES = ("/etc/ld.so.cache", "/usr/share/zoneinfo")


@dataclass(frozen=True)
class Enclosure:
    """One way to run a program. `other_user`: started by root, the program is another user."""

    kind: Kind
    other_user: bool

    def possible(self) -> bool:
        """Whether it is worth a try on this machine."""
        if self.other_user and os.getuid() != 0:
            return False
        if self.kind == "bubblewrap":
            return shutil.which("bwrap") is not None
        return self.kind == "plain" or sys.platform == "linux"


def interpreter() -> str:
    """Python itself, not a virtual environment's link to it: the environment's packages are not shown."""
    return os.path.realpath(sys._base_executable)  # type: ignore[attr-defined]  # CPython's, without a public name


def visible_paths() -> tuple[list[str], dict[str, str]]:
    """(what is bound read only, links as they are): system libraries, and the interpreter with its library."""
    found: list[str] = []
    links: dict[str, str] = {}
    own = [str(Path(sys.base_prefix).resolve() / name) for name in ("lib", "lib64")]
    for path in (*_LIBRARIES, *own, *_FILES, interpreter()):
        if os.path.islink(path) and path.count("/") == 1:  # /lib -> usr/lib
            links[path] = os.readlink(path)
        elif os.path.exists(path) and not any(_within(path, other) for other in found):
            found.append(path)
    return found, links


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def warden_plan(
    enclosure: Enclosure,
    limits: ProgramLimits,
    *,
    payload: int,
    report: int,
    mark: str,
    folder: str | None,
) -> dict[str, Any]:
    """What the warden is told (warden.py). `folder` is the plain program's; the others have one in memory."""
    user = random.choice(_USERS) if enclosure.other_user else None
    inside = {
        "limits": limits.as_numbers(),
        "payload": payload,
        "report": report,
        "user": user if enclosure.kind == "bubblewrap" else None,
        "shares_user": enclosure.kind == "plain" and user is None,
    }
    source = Path(confine.__file__).read_text(encoding="utf-8")
    command = [interpreter(), "-s", "-S", "-P", "-B", "-c", source, json.dumps(inside)]
    visible, links = visible_paths()
    if enclosure.kind == "bubblewrap":
        command = [*_bubblewrap(visible, links, limits, user), *command]
    return {
        "kind": enclosure.kind,
        "command": command,
        "environment": environment(folder or "/tmp") | {MARK: mark},
        "mark": mark,
        "user": user,
        "limits": limits.as_numbers(),
        "visible": visible,
        "links": links,
        "folder": folder,
        "report": report,
        "parent": os.getpid(),
    }


def environment(home: str) -> dict[str, str]:
    """All that a program is told of its surroundings. Sets have one order in every run."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": home,
        "TMPDIR": home,
        "LANG": "C.UTF-8",
        "PYTHONUTF8": "1",
        "PYTHONHASHSEED": "0",
    }


def _bubblewrap(
    visible: list[str], links: dict[str, str], limits: ProgramLimits, user: int | None
) -> list[str]:
    program = shutil.which("bwrap")
    assert program is not None  # Enclosure.possible
    command = [
        program,
        "--die-with-parent",
        "--new-session",
        "--unshare-pid",
        "--unshare-net",
        "--unshare-ipc",
    ]
    command += ["--unshare-uts", "--unshare-cgroup-try", "--cap-drop", "ALL"]
    if user is None:
        command += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    else:  # root: no user namespace, and the two privileges that it takes to become another user
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    for folder in sorted(
        {str(parent) for path in (*visible, *DEVICES) for parent in Path(path).parents} - {"/"}
    ):
        command += [
            "--perms",
            "0755",
            "--dir",
            folder,
        ]  # made on the way to a bound one, it is closed to other users
    for path in visible:
        command += ["--ro-bind", path, path]
    for path, target in links.items():
        command += ["--symlink", target, path]
    for path in DEVICES:
        command += ["--dev-bind", path, path]
    command += ["--perms", "1777", "--size", str(limits.as_numbers()["folder"]), "--tmpfs", "/tmp"]
    return [*command, "--remount-ro", "/", "--chdir", "/tmp", "--"]
